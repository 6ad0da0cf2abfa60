"""What adapters cost and reach beside training all weights: trainable parameters, peak memory, time, accuracy.

    python benchmarks/adapters.py --train BANKING77_TRAIN --test BANKING77_TEST [--seeds 3] [--labels 10] [--rows 5]

MiniLM (the extra `minilm`) learns so many rows of each of the first labels of Banking77 by the alphabet, with each
method of `policy.peft` and with all weights; the test has 20 rows of each label. Each run is a process of its own,
forked when only imports have been done, whose largest resident memory is told; the time is that of the CPU, in one
thread, training and two evaluations on 4 rows of each label included. Means over seeds with 95% Student-t intervals.
Each run is kept, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import peft  # noqa: F401  (imported before the processes are forked)
import torch
import transformers.models.bert.modeling_bert  # noqa: F401
from banking import first_labels
from fit import pretrained

from rlobj.fit_config import FitConfig
from rlobj.fitting import fit
from rlobj.intervals import mean_interval_over_seeds
from rlobj.recipes import read_recipe
from rlobj.runs import atomic_write_json, read_outputs

METHODS: dict[str, tuple[dict[str, Any] | None, float]] = {
    "all weights": (None, 2e-4),
    "LoRA, rank 8": ({"method": "lora", "r": 8}, 2e-3),
    "AdaLoRA, rank 12 to 8": ({"method": "adalora", "init_r": 12, "target_r": 8}, 5e-3),
    "IA3": ({"method": "ia3"}, 1e-2),
    "prefix, 20 tokens": ({"method": "prefix"}, 1e-2),
    "prompt, 20 tokens": ({"method": "prompt"}, 2e-2),
}
"""Name -> policy.peft and the peak learning rate: what is usual for each, not searched."""
BATCH = 10


def one_run(settings: dict[str, Any], found: Path) -> None:
    """Train and judge, in this process, and write down what it took."""
    began = time.process_time()
    report = fit(read_recipe(FitConfig, "bert-classifier", [f"--{key}={value}" for key, value in settings.items()]))
    outputs = read_outputs(report.parent / "model")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts it in KiB
    atomic_write_json(
        found,
        {
            "trained": outputs["trained"],
            "accuracy": outputs["measured"]["test"]["metrics"]["accuracy"][0],
            "seconds": time.process_time() - began,
            "MB": memory,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--model", default="minilm", help="minilm, or a directory")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=10, help="of Banking77's 77")
    parser.add_argument("--rows", type=int, default=5, help="training rows of each label")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/adapters"))
    given = parser.parse_args()
    files = first_labels(given.train, given.test, given.labels, given.output_dir)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    steps = -(-given.labels * given.rows // BATCH) * given.epochs
    fork = multiprocessing.get_context("fork")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(given.seeds):
        for name, (adapter, learning_rate) in METHODS.items():
            place = given.output_dir / f"seed-{seed}"
            settings = {
                **{f"data.{part}": file for part, file in files.items()},
                "name": name.partition(",")[0].replace(" ", "-"),
                "output_dir": place,
                "seed": seed,
                "policy.model": pretrained(given.model),
                "policy.max_length": 64,
                "policy.peft": json.dumps(adapter),
                "data.rows_per_label": given.rows,
                "fit.epochs": given.epochs,
                "fit.learning_rate": learning_rate,
                "fit.batch_size": BATCH,
                "fit.metric": "ell",
                **{f"fit.trainer.{what}_strategy": "steps" for what in ("eval", "save")},
                **{f"fit.trainer.{what}_steps": max(round(steps / 2), 1) for what in ("eval", "save")},
            }
            found = place / f"{settings['name']}.json"
            if not found.exists():
                process = fork.Process(target=one_run, args=(settings, found))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{name}, seed {seed}, failed: what it said tells why")
            results[name].append(json.loads(found.read_text(encoding="utf-8")))
    print(f"\n| {given.labels} labels, {given.rows} rows each | trained | MB | CPU s | accuracy | by seed |")
    print("|---|---|---|---|---|---|")
    for name, runs in results.items():
        mean, low, high = mean_interval_over_seeds([run["accuracy"] for run in runs])
        by_seed = ", ".join(f"{run['accuracy']:.2f}" for run in runs)
        megabytes, seconds = (sum(run[key] for run in runs) / len(runs) for key in ("MB", "seconds"))
        print(
            f"| {name} | {runs[0]['trained']:,} | {megabytes:,.0f} | {seconds:.0f} "
            f"| {mean:.2f} [{low:.2f}, {high:.2f}] | {by_seed} |"
        )


if __name__ == "__main__":
    main()
