"""The customer-service demo over several seeds: the table in the README.

    python benchmarks/demo_seeds.py --seeds 5

Every seed has its own demonstrations, warm start, reward model, policies and sampling; the held-out goals are the
same. Each figure is the mean over seeds with its 95% Student-t interval.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from rlobj.intervals import mean_interval_over_seeds
from rlobj.runs import atomic_write_text

METRICS = ("success", "return", "turns", "ell", "kl")


def one_run(recipe: str, seed: int, output: Path, extra: list[str]) -> tuple[list[dict], float]:
    """The evaluation table of one seed, and its wall time in seconds."""
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "rlobj",
        "run",
        recipe,
        "--seed",
        str(seed),
        "--name",
        f"{recipe}-{seed}",
        "--output_dir",
        str(output),
        *extra,
    ]
    subprocess.run(command, check=True)
    table = json.loads((output / f"{recipe}-{seed}" / "summary.json").read_text(encoding="utf-8"))["table"]
    return table, time.monotonic() - started


def markdown(tables: list[list[dict]]) -> str:
    lines = ["| policy | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for rows in zip(*tables, strict=True):
        cells = []
        for metric in METRICS:
            mean, low, high = mean_interval_over_seeds([row[metric][0] for row in rows])
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {rows[0]['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="customer-service")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    arguments, extra = parser.parse_known_args()
    runs = [one_run(arguments.recipe, seed, arguments.output, extra) for seed in range(arguments.seeds)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    seconds = [seconds for _, seconds in runs]
    text = markdown([table for table, _ in runs])
    text += f"\n\n{len(runs)} seeds; {min(seconds):.0f} to {max(seconds):.0f} s and at most {peak:.1f} GiB a run"
    per_seed = [
        "",
        "success by seed: "
        + "; ".join(
            f"{rows[0]['name']} " + ", ".join(f"{row['success'][0]:.2f}" for row in rows)
            for rows in zip(*[table for table, _ in runs], strict=True)
        ),
    ]
    atomic_write_text(arguments.output / f"{arguments.recipe}.md", text + "\n".join(per_seed) + "\n")
    print(text + "\n".join(per_seed))


if __name__ == "__main__":
    main()
