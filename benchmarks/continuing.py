"""What a classifier forgets when it goes on with new classes, and what rehearsal of the old ones keeps.

    python benchmarks/continuing.py --train TRAIN.jsonl --test TEST.jsonl --seeds 3

The classes of a data set (columns text and label; Banking77) are dealt at random into two halves, anew for each seed. A
small BERT with random weights learns the first half (`rlobj fit`), and goes on with the second (`rlobj continue`) on
L = ℓ_new + λ·ℓ_old, for each λ from the same model; with --rows N it rehearses N old rows instead of all. Judged on the
test texts of both halves, where all labels that the model knows stand to choice. Printed: means with 95% Student-t
intervals over seeds, of the change within a seed, too.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from rlobj.cli import main as rlobj
from rlobj.intervals import mean_interval_over_seeds
from rlobj.reading import load_rows


def halves(rows: list[dict[str, Any]], seed: int) -> tuple[set[str], set[str]]:
    """The labels, dealt into two."""
    labels = sorted({row["label"] for row in rows})
    random.Random(f"halves {seed}").shuffle(labels)
    middle = (len(labels) + 1) // 2
    return set(labels[:middle]), set(labels[middle:])


def write(file: Path, rows: list[dict[str, Any]], labels: set[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = [{"text": row["text"], "label": row["label"]} for row in rows if row["label"] in labels]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return file


def run(*arguments: object) -> None:
    if rlobj([str(each) for each in arguments]):
        raise SystemExit(1)


def one_seed(given: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The table of one seed's run of `rlobj continue`."""
    home = given.output_dir / f"seed-{seed}"
    train, test = load_rows(given.train), load_rows(given.test)
    files = {}
    for side, labels in zip(("old", "new"), halves(train, seed), strict=True):
        for part, rows in (("train", train), ("test", test)):
            files[side, part] = write(home / f"{side}.{part}.jsonl", rows, labels)
    common = ["--fit.batch_size", given.batch_size, "--seed", seed, "--output_dir", home]
    size = ["--policy.hidden_size", 64, "--policy.layers", 2, "--policy.heads", 4, "--policy.max_length", 48]
    run("fit", "bert-classifier", "--name", "old", "--data.train", files["old", "train"], "--data.test",
        files["old", "test"], "--data.rows_per_label", given.rows_per_label, "--fit.epochs", given.old_epochs,
        "--fit.learning_rate", 2e-3, *size, *common)  # fmt: skip
    run("continue", home / "old", "--data", files["new", "train"], "--data.test", files["new", "test"],
        "--data.rows_per_label", given.rows_per_label, "--lambda_sup", *given.lambdas, "--fit.epochs",
        given.new_epochs, "--fit.learning_rate", 1e-3, "--objective.rows", given.rows or "null", *common)  # fmt: skip
    table: list[dict[str, Any]] = json.loads((home / "old-continued" / "summary.json").read_text())["table"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="file with the columns text and label")
    parser.add_argument("--test", required=True)
    parser.add_argument("--lambdas", nargs="+", default=["0", "1"])
    parser.add_argument("--rows_per_label", type=int, default=20)
    parser.add_argument("--rows", type=int, help="rehearse so many old rows (default: all)")
    parser.add_argument("--old_epochs", type=float, default=20)
    parser.add_argument("--new_epochs", type=float, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/continuing"))
    given = parser.parse_args()
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for seed in range(given.seeds):
        for row in one_seed(given, seed):
            if row["measure"] == "accuracy":
                values = found.setdefault((row["name"], row["data"]), {"before": [], "after": [], "change": []})
                for name in values:
                    values[name].append(row[name][0])
    print("\n| accuracy on test texts | of | before | after | change |\n|---|---|---|---|---|")
    for (title, side), values in found.items():
        cells = [f"{m:.3f} [{low:.3f}, {high:.3f}]" for m, low, high in map(mean_interval_over_seeds, values.values())]
        print(f"| {title} | {side} classes | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
