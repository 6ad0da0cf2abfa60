"""Whether pretraining on texts without labels helps where there are few labels: several seeds, with and without.

    python benchmarks/pretraining.py --train customer-intents --seeds 5
    python benchmarks/pretraining.py --train TRAIN.jsonl --test TEST.jsonl --rows_per_label 10

For each seed a small causal model with random weights is trained to say the next token of TRAIN's texts (no labels),
and from there, or from the random weights themselves, a classifier learns so many labelled rows of each label. Both are
judged on TEST, whose texts neither has seen: a fifth of TRAIN where no file is given. Printed: accuracy by seed, the
means with 95% Student-t intervals over seeds, and that of the difference within a seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rlobj.fit_config import FitConfig, PretrainConfig
from rlobj.fitting import fit
from rlobj.intervals import mean_interval_over_seeds
from rlobj.policies import make_causal, make_tokenizer, save_policy
from rlobj.pretraining import pretrain
from rlobj.reading import load_rows
from rlobj.recipes import read_recipe
from rlobj.splitting import split_rows

LONGEST = 64
"""Tokens of a text."""


def files_of(given: argparse.Namespace) -> tuple[Path, Path]:
    """Training and test file; split into two where one is given, the same for every seed."""
    if given.test is not None:
        return Path(given.train), given.test
    given.output_dir.mkdir(parents=True, exist_ok=True)
    files = given.output_dir / "train.jsonl", given.output_dir / "test.jsonl"
    for file, rows in zip(files, split_rows(load_rows(given.train), 0.2, seed=0), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def new_model(train: Path, directory: Path, seed: int) -> Path:
    """A causal model with random weights, and a tokenizer for the training texts."""
    tokenizer = make_tokenizer((row["text"] for row in load_rows(str(train))), vocab_size=2000, max_length=LONGEST)
    model = make_causal(tokenizer, hidden_size=64, layers=2, heads=4, max_length=LONGEST, seed=seed)
    save_policy(model, tokenizer, directory)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="file or shipped data set, columns text and label")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--rows_per_label", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pretrain_epochs", type=float, default=4)
    parser.add_argument("--fit_epochs", type=float, default=10)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/pretraining"))
    given = parser.parse_args()
    train, test = files_of(given)
    found: dict[str, list[float]] = {"from scratch": [], "pretrained": []}
    for seed in range(given.seeds):
        shared: dict[str, Any] = {"output_dir": given.output_dir / f"seed-{seed}", "seed": seed}
        shared["policy.max_length"] = LONGEST
        start = new_model(train, given.output_dir / f"seed-{seed}" / "random", seed)
        text = {**shared, "name": "text", "text.train": train, "policy.model": start}
        text |= {"pretrain.epochs": given.pretrain_epochs, "pretrain.learning_rate": 2e-3}
        pretrained = pretrain(read_recipe(PretrainConfig, "next-word", overrides_of(text))).parent / "model"
        for kind in found:
            labels = {**shared, "name": kind.replace(" ", "-"), "data.train": train, "data.test": test}
            labels |= {"data.rows_per_label": given.rows_per_label, "fit.epochs": given.fit_epochs}
            labels |= {"fit.learning_rate": 1e-3, "fit.batch_size": 16}
            labels["policy.model"] = pretrained if kind == "pretrained" else start
            report = fit(read_recipe(FitConfig, "bert-classifier", overrides_of(labels)))
            found[kind].append(json.loads((report.parent / "summary.json").read_text())["table"][-1]["accuracy"][0])
    found["difference"] = [b - a for a, b in zip(*found.values(), strict=True)]
    print(f"\n| accuracy, {given.rows_per_label} rows a label | mean | by seed |\n|---|---|---|")
    for kind, values in found.items():
        mean, low, high = mean_interval_over_seeds(values)
        print(f"| {kind} | {mean:.3f} [{low:.3f}, {high:.3f}] | {', '.join(f'{value:.3f}' for value in values)} |")


def overrides_of(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


if __name__ == "__main__":
    main()
