"""What each way to make a model smaller does to its quality, its size and its speed on a CPU, over seeds.

    python benchmarks/pruning.py --subjects small policy [--amounts 0.3 0.5 0.7] [--seeds 3]
    python benchmarks/pruning.py --subjects minilm --train BANKING77_TRAIN --test BANKING77_TEST

small   `rlobj fit bert-classifier` as it is shipped, a BERT of two layers made from scratch; judged by accuracy on 72
        messages; trained on afterwards for one epoch.
minilm  MiniLM (the extra `minilm`), fitted to 5 rows of each of the first 10 labels of Banking77; accuracy on 200
        texts; three epochs.
policy  the demo's with λ = 0.3, from one warm start and reward model, 20 steps for each seed; task success in 100
        held-out episodes; ten steps of −R + λℓ.

Speed is that of one thread: turns of the whole model and the smaller one beside one another, one text (or one reply of
16 tokens) at a time, and 32 texts (dialogues read) in one batch. What is trained on afterwards is as fast as what is
not, so it is timed once alone. Means over seeds, with 95% Student-t intervals; of speeds the median over seeds of the
turns' medians, with the least and the most turn. Each run is kept, and the same command goes on; the figures go to
benchmarks/results/pruning.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arms import shown
from banking import first_labels
from fit import pretrained
from measuring import RESULTS, machine

from rlobj.cli import main as rlobj
from rlobj.runs import atomic_write_json
from rlobj.slimming import Pruning, prune, ways

METHODS = ("magnitude", "layer", "2:4", "heads", "neurons", "int8")
BOTH = Pruning("neurons+int8", 0.5)
"""What a CPU likes best, in one."""
TURNS = 3
"""Of each side, for each seed."""


def call(*arguments: object) -> None:
    if rlobj([str(each) for each in arguments]):
        raise SystemExit(1)


def small(given: argparse.Namespace) -> list[Path]:
    """The recipe as it is, for each seed."""
    return fitted(given, "small")


def minilm(given: argparse.Namespace) -> list[Path]:
    """A pretrained encoder on a few rows, for each seed."""
    if given.train is None or given.test is None:
        raise SystemExit("minilm learns from Banking77: give --train FILE --test FILE")
    parts = first_labels(given.train, given.test, 10, given.output_dir / "minilm")
    files = [each for part, file in parts.items() for each in (f"--data.{part}", file)]
    return fitted(given, "minilm", *files, "--policy.model", pretrained("minilm"), "--policy.max_length", 64,
                  "--data.rows_per_label", 5, "--fit.epochs", 8, "--fit.batch_size", 10, "--fit.learning_rate", 2e-4,
                  "--fit.metric", "ell")  # fmt: skip


def fitted(given: argparse.Namespace, name: str, *settings: object) -> list[Path]:
    home = given.output_dir / name
    for seed in range(given.seeds):
        call("fit", "bert-classifier", "--name", f"seed-{seed}", "--output_dir", home, "--seed", seed, *settings)
    return [home / f"seed-{seed}" for seed in range(given.seeds)]


def policies(given: argparse.Namespace) -> list[Path]:
    """A trial of `rlobj compare` for each seed."""
    call("compare", "customer-service", "--lambdas", 0.3, "--seeds", given.seeds, "--name", "policy",
         "--output_dir", given.output_dir, "--training.steps", 20, "--env.eval_episodes", 100)  # fmt: skip
    trials = given.output_dir / "policy-compared" / "trials" / "lambda=0.3"
    return [trials / f"seed-{seed}" for seed in range(given.seeds)]


SUBJECTS: dict[str, tuple[Callable[[argparse.Namespace], list[Path]], dict[str, Any], tuple[str, str, str]]] = {
    "small": (small, {"epochs": 1}, ("accuracy", "one text", "32 texts in a batch")),
    "minilm": (minilm, {"epochs": 3}, ("accuracy", "one text", "32 texts in a batch")),
    "policy": (policies, {"steps": 10}, ("task success", "a reply of 16 tokens", "32 dialogues read in a batch")),
}
"""Name -> a run for each seed; training afterwards; what quality and times are called."""


def measured(run: Path, wanted: Sequence[Pruning], turns: int) -> list[dict[str, Any]]:
    """What `rlobj prune` has found of each way."""
    prune(run, wanted, turns=turns)
    folder = run / "pruned" if (run / "model").exists() else run / "pruned" / "lambda=0.3"
    found: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["table"]
    return found


def one_seed(
    run: Path, amounts: Sequence[float], afterwards: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each way, and each trained on afterwards."""
    wanted = [*ways(METHODS, amounts), BOTH]
    if "steps" in afterwards:  # of the policy's four heads, three are no number that transformers takes
        wanted = [each for each in wanted if each.method != "heads" or each.amount >= 0.5]
    again = [replace(each, **afterwards) for each in wanted if each.method != "int8"]
    return measured(run, wanted, TURNS), measured(run, again, 1)


def one_subject(runs: Sequence[Path], amounts: Sequence[float], afterwards: dict[str, Any]) -> dict[str, Any]:
    """For each way, what all seeds have found."""
    by_seed = [one_seed(run, amounts, afterwards) for run in runs]
    first = by_seed[0][0][0]
    ways_found = [
        {
            "method": each["method"],
            "amount": each["amount"],
            "quality": [_quality(seed[n], "after") for seed, _ in by_seed],
            "trained on": [
                _quality(row, "after")
                for _, seed in by_seed
                for row in seed
                if (row["method"], row["amount"]) == (each["method"], each["amount"])
            ],
            "MB": each["bytes"]["after"] / 1e6,
            "weights": each["weights"]["after"],
            "seconds": {way: [seed[n]["seconds"][way] for seed, _ in by_seed] for way in each["seconds"]},
        }
        for n, each in enumerate(by_seed[0][0])
    ]
    whole = {
        "quality": [_quality(seed[0], "before") for seed, _ in by_seed],
        "MB": first["bytes"]["before"] / 1e6,
        "weights": first["weights"]["before"],
    }
    return {"whole": whole, "ways": ways_found}


def _quality(row: dict[str, Any], when: str) -> float:
    """On the data that nothing was chosen by."""
    return float(list(row["quality"][when].values())[-1][0])


def table(name: str, found: dict[str, Any]) -> list[str]:
    """A line for each way."""
    quality, one, many = SUBJECTS[name][2]
    whole, first = found["whole"], found["ways"][0]["seconds"]
    before = [1e3 * median(each["before"] for each in seeds) for seeds in first.values()]
    head = ["", quality, "trained on", "MB", "weights not 0", f"{one}: times faster", f"{many}: times faster"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    cells = [shown(whole["quality"]), "", f"{whole['MB']:.1f}", f"{whole['weights']:,}"]
    lines.append("| " + " | ".join(["whole", *cells, *(f"1 ({each:.2g} ms)" for each in before)]) + " |")
    for each in found["ways"]:
        amount = "" if each["method"] in ("2:4", "int8") else f" {each['amount']:g}"
        cells = [
            f"{each['method']}{amount}",
            shown(each["quality"]),
            shown(each["trained on"]) if each["trained on"] else "",
            f"{each['MB']:.1f}",
            f"{each['weights']:,}",
            *(_times(seeds) for seeds in each["seconds"].values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _times(seeds: Sequence[dict[str, float]]) -> str:
    least, most = min(each["least"] for each in seeds), max(each["most"] for each in seeds)
    return f"{median(each['ratio'] for each in seeds):.2f} ({least:.2f} to {most:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="Banking77's training texts")
    parser.add_argument("--test", type=Path, help="its test texts")
    parser.add_argument("--subjects", nargs="+", default=["small", "policy"], choices=SUBJECTS)
    parser.add_argument("--amounts", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/pruning"))
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    file = RESULTS / "pruning.json"
    for name in given.subjects:
        make, afterwards, _ = SUBJECTS[name]
        found = one_subject(make(given), given.amounts, afterwards)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        atomic_write_json(file, {**kept, **machine(), name: found})
    kept = json.loads(file.read_text(encoding="utf-8"))
    for name in given.subjects:
        print("\n" + "\n".join(table(name, kept[name])))


if __name__ == "__main__":
    main()
