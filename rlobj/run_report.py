"""The report of one run: its facts, table, curves, warnings, and episodes side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rlobj.report as report
from rlobj import __version__
from rlobj.best_policy import told
from rlobj.drift import against_kl, drift_pictures
from rlobj.one_run import Run
from rlobj.pictures import Point
from rlobj.results import lambda_directory, lambda_title, policy_curves, policy_history, warnings_of
from rlobj.runs import read_outputs


def write(run: Run, evaluation: dict[str, Any]) -> Path:
    """Write the report of a run from what its evaluation found; return its path."""
    path = run.directory / "report.html"
    if not run.main:
        return path
    facts = {
        "run": run.config.name,
        "environment": run.config.env.id,
        "seed": str(run.config.seed),
        "rlobj": __version__,
        **(run.task.facts or {}),
    }
    reward_model = run.directory / "reward_model"
    if run.trains_reward:
        facts["reward model"] = read_outputs(reward_model)["says"]
    curves: dict[str, dict[str, list[Point]]] = {}
    for lam in run.config.objective.lambdas:
        for title, points in policy_curves(run.directory, lam).items():
            curves.setdefault(title, {})[lambda_title(lam)] = points
    report.write_report(
        path,
        title=f"{run.config.name}: −R + λℓ",
        facts=facts,
        table=evaluation["table"],
        curves=curves,
        samples=samples(evaluation["results"]),
        pictures=drift_pictures(
            {lambda_title(lam): against_kl(policy_history(run.directory, lam)) for lam in run.config.objective.lambdas}
        ),
        notes=[
            f"{lambda_title(lam)}: {told(best)}; none of those is among the episodes below."
            for lam in run.config.objective.lambdas
            if (best := read_outputs(lambda_directory(run.directory, lam)).get("best")) is not None
        ]
        + [
            f"Warning: {lambda_title(lam)}, up to step {each['step']}: {each['text']}."
            for lam in run.config.objective.lambdas
            for each in warnings_of(run.directory, lam)
        ],
    )
    return path


def samples(results: Mapping[str, Any], most: int = 4) -> list[dict[str, Any]]:
    """The same held-out episodes of every policy: first those where the outcome differs, then the others.

    Args:
        results: of `evaluation`, by policy.
    """
    sides = [(name, result["episodes"], result["per_episode"]["return"]) for name, result in results.items()]
    numbers = range(min(len(episodes) for _, episodes, _ in sides))
    differing = [n for n in numbers if len({episodes[n]["success"] for _, episodes, _ in sides}) > 1]
    chosen = [*differing[: most - 1], *[n for n in numbers if n not in differing]][:most]
    return [
        {
            "title": f"episode {sides[0][1][n]['seed']}",
            "sides": [
                {
                    "name": name,
                    "messages": episodes[n]["messages"],
                    "success": episodes[n]["success"],
                    "rewards": {"return": returns[n], **episodes[n].get("rewards", {})},
                }
                for name, episodes, returns in sides
            ],
        }
        for n in chosen
    ]
