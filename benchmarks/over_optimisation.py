"""A reward model that is too small, optimised too hard (Gao et al. 2022), and what λ and an ensemble do to it.

    python benchmarks/over_optimisation.py --seeds 5

For each seed: a warm start, a reward model learned from few pairs (the proxy), an ensemble of such models, and policies
trained on the proxy (λ = 0 and λ > 0) and on the ensemble's mean less its spread. Success is the environment's own.
What a seed has done is kept in --output, and the same command goes on. Figures are means over seeds with 95% Student-t
intervals; drops are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlobj.alarms import WINDOW
from rlobj.drift import MEASURES, against_kl, drift_pictures, mean_over_seeds
from rlobj.intervals import mean_interval_over_seeds
from rlobj.report import write_report
from rlobj.results import policy_history
from rlobj.runs import atomic_write_json


def histories(seed: int, given: argparse.Namespace, extra: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The training logs of one seed's policies, by name."""
    common = [
        "--seed", str(seed), "--output_dir", str(given.output), "--reward.pairs", str(given.pairs),
        "--reward.normalise", "true", "--training.steps", str(given.steps), "--training.kl_every", "2",
        "--training.prompts_per_step", "4",
        "--env.eval_episodes", "50", *extra,
    ]  # fmt: skip
    ensemble = ["--objective.lambda_sup", "[0.0]", "--reward.ensemble", "4", "--reward.kappa", str(given.kappa)]
    warm_start = ["--policy.model", str(given.output / f"one-{seed}" / "warm_start"), "--warm_start.epochs", "0"]
    runs = {
        f"one-{seed}": ["--objective.lambda_sup", json.dumps([0.0, given.lambda_sup])],
        f"ensemble-{seed}": [*warm_start, *ensemble],
    }
    for name, settings in runs.items():
        command = [sys.executable, "-m", "rlobj", "run", "customer-service", "--name", name, *common, *settings]
        subprocess.run(command, check=True)
    return {
        "one model, λ = 0": policy_history(given.output / f"one-{seed}", 0.0),
        f"one model, λ = {given.lambda_sup:g}": policy_history(given.output / f"one-{seed}", given.lambda_sup),
        "ensemble, λ = 0": policy_history(given.output / f"ensemble-{seed}", 0.0),
    }


def figures(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Peak and end of the success, as means of WINDOW steps, and what the proxy and √KL were there."""
    logs = [log for log in history if "environment/success" in log]
    success = [fmean(log["environment/success"] for log in logs[i : i + WINDOW]) for i in range(len(logs) - WINDOW + 1)]
    proxy = [fmean(log["objective/return"] for log in logs[i : i + WINDOW]) for i in range(len(logs) - WINDOW + 1)]
    peak = max(range(len(success)), key=lambda i: success[i])
    root = [point.x for point in against_kl(history)["return"]]
    return {
        "success at its peak": success[peak], "success at the end": success[-1], "drop": success[peak] - success[-1],
        "proxy at the peak": proxy[peak], "proxy at the end": proxy[-1],
        "√KL at the peak": root[min(peak * len(root) // len(success), len(root) - 1)], "√KL at the end": root[-1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=300, help="preference pairs of the proxy")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lambda_sup", type=float, default=0.3)
    parser.add_argument("--kappa", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("runs/over-optimisation"))
    given, extra = parser.parse_known_args()
    every = [histories(seed, given, extra) for seed in range(given.seeds)]
    found = {name: [figures(one[name]) for one in every] for name in every[0]}
    names = list(next(iter(found.values()))[0])
    table = {name: {key: mean_interval_over_seeds([f[key] for f in of]) for key in names} for name, of in found.items()}
    curves = {
        name: {
            heading: mean_over_seeds([against_kl(one[name])[heading] for one in every]) for heading in MEASURES.values()
        }
        for name in found
    }
    atomic_write_json(given.output / "over_optimisation.json", {"by_seed": found, "table": table})
    write_report(
        given.output / "report.html",
        title="A reward model optimised too hard",
        facts={"made by": "python benchmarks/over_optimisation.py " + " ".join(sys.argv[1:])},
        table=[{"name": name, "success": row["success at the end"]} for name, row in table.items()],
        curves={},
        samples=[],
        pictures=drift_pictures(curves),
        intervals="over seeds",
    )
    print("\n| | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{m:.2f} [{low:.2f}, {high:.2f}]" for m, low, high in row.values()) + " |")
    print(f"\n{len(every)} seeds; the picture is in {given.output / 'report.html'}")


if __name__ == "__main__":
    main()
