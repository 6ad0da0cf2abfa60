"""Wall time of a comparison: trials side by side, one thread each, against one after the other with all threads.

    python benchmarks/comparison_wall_time.py [--trials 4] [--steps 20] [--rounds 2]

Warm start and reward model are made before the clock starts. The two ways take turns, each in a new directory; the
seconds of each round and the ratio of the medians are printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from rlobj.comparison import compare
from rlobj.jobs import Processes
from rlobj.recipes import load_recipe

SMALL = {
    "data.demonstrations": 500, "warm_start.epochs": 1, "reward.pairs": 200, "policy.hidden_size": 64,
    "env.eval_episodes": 100, "training.prompts_per_step": 4,
}  # fmt: skip


def seconds(prepared: Path, steps: int, trials: int, workers: int) -> float:
    """Wall time of a comparison of two λ whose warm start and reward model are there already."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        settings = {**SMALL, "training.steps": steps, "output_dir": folder}
        config = load_recipe("customer-service", [f"--{key}={value}" for key, value in settings.items()])
        begun = time.perf_counter()
        compare(config, [0.0, 0.1], max(trials // 2, 1), engine=lambda jobs: Processes(workers, jobs))
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    found: dict[int, list[float]] = {cores: [], 1: []}
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SMALL, "training.steps": 1, "output_dir": folder}
        config = load_recipe("customer-service", [f"--{key}={value}" for key, value in settings.items()])
        compare(config, [0.0], 1)  # for its warm start and reward model
        prepared = Path(folder)
        shutil.rmtree(prepared / "customer-service-compared" / "trials")
        for _ in range(given.rounds):
            for workers, times in found.items():
                times.append(seconds(prepared, given.steps, given.trials, workers))
    for workers, times in found.items():
        how = "one after the other" if workers == 1 else f"{workers} at once"
        print(f"{given.trials} trials, {how}: {', '.join(f'{each:.0f}' for each in times)} s")
    print(f"ratio of the medians: {median(found[1]) / median(found[cores]):.2f}")


if __name__ == "__main__":
    main()
