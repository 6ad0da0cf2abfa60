"""Arms of an experiment: runs of one recipe with other settings, over seeds, and what is said of them.

Every seed has its own warm start, which its arms share. An arm is an ordinary run, kept in a folder: the same call goes
on. Intervals are Student's t over seeds, 95%, of differences within a seed where there are two arms.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from rlobj.intervals import mean_interval_over_seeds
from rlobj.runs import atomic_write_json

Values = dict[str, list[float]]
"""measure -> its value in each seed"""
RETURN = "objective/return"
LEARNING = "learning"
"""Measure: the mean return while learning."""
WARM_START = "warm start"


@dataclass(frozen=True)
class Arm:
    """Settings of a run of the recipe."""

    name: str
    settings: Mapping[str, Any]
    lambda_sup: str = "0"


@dataclass(frozen=True)
class Plan:
    """What one seed runs."""

    recipe: str
    arms: Sequence[Arm]
    shared: Mapping[str, Any] = field(default_factory=dict)
    """settings of all arms"""


def run_seed(plan: Callable[[Path, int], Plan], seed: int, output: Path, threads: int, extra: Sequence[str]) -> Any:
    """All arms of a seed, one after the other: name -> measure -> value. What was done before is read."""
    import torch

    from rlobj.cli import be_calm

    be_calm()
    torch.set_num_threads(threads)
    folder = output / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        return _arms(plan(folder, seed), seed, folder, extra)


def _arms(plan: Plan, seed: int, folder: Path, extra: Sequence[str]) -> dict[str, dict[str, float]]:
    from rlobj.pipeline import prepare, run
    from rlobj.recipes import load_recipe
    from rlobj.results import load_summary, policy_history

    def config(name: str, settings: Mapping[str, Any]) -> Any:
        given = {**settings, "name": name, "seed": seed, "output_dir": folder}
        return load_recipe(plan.recipe, [*(f"--{key}={value}" for key, value in given.items()), *extra])

    warm = prepare(config("shared", plan.shared))
    found: dict[str, dict[str, float]] = {}
    for number, arm in enumerate(plan.arms):
        settings = {**plan.shared, **warm, **arm.settings, "objective.lambda_sup": json.dumps([arm.lambda_sup])}
        this = config(f"{number:02d}", settings)
        run(this)
        history = [log[RETURN] for log in policy_history(folder / this.name, arm.lambda_sup) if RETURN in log]
        for row in load_summary(folder / this.name):
            name = WARM_START if row["name"] == WARM_START else arm.name
            found[name] = {key: value[0] for key, value in row.items() if key != "name" and value is not None}
        found[arm.name][LEARNING] = fmean(history)
        found[WARM_START][LEARNING] = history[0]
    return found


def over_seeds(
    plan: Callable[[Path, int], Plan], seeds: int, output: Path, workers: int, extra: Sequence[str] = ()
) -> dict[str, Values]:
    """Every arm's measures, by seed; also written to `output`.json.

    Args:
        plan: a function of a module: what a seed runs, given a folder for its files.
        workers: seeds at once.
        extra: settings over those of all arms, as on the command line.
    """
    threads = max(len(os.sched_getaffinity(0)) // workers, 1)
    by_seed: dict[int, dict[str, dict[str, float]]] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_seed, plan, seed, output, threads, extra): seed for seed in range(seeds)}
        for done in as_completed(waiting):
            by_seed[waiting[done]] = done.result()
            print(f"{output.name}: {len(by_seed)} of {seeds} seeds are done", file=sys.stderr, flush=True)
    found = {
        name: {key: [by_seed[seed][name][key] for seed in range(seeds)] for key in values}
        for name, values in by_seed[0].items()
    }
    atomic_write_json(output.with_suffix(".json"), found)
    return found


def shown(values: Sequence[float]) -> str:
    mean, low, high = mean_interval_over_seeds(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def whiskers(interval: Sequence[float | None]) -> list[list[float]] | None:
    """For matplotlib's errorbar: how far an interval goes below and above its mean; None where it has no ends."""
    middle, low, high = interval
    return None if middle is None or low is None or high is None else [[middle - low], [high - middle]]


def table(found: Mapping[str, Values], measures: Mapping[str, str]) -> list[str]:
    """A line for each arm.

    Args:
        measures: name -> its title.
    """
    lines = ["| | " + " | ".join(measures.values()) + " |", "|---" * (len(measures) + 1) + "|"]
    for name, values in found.items():
        lines.append(f"| {name} | " + " | ".join(shown(values[key]) for key in measures) + " |")
    return lines


def differences(
    found: Mapping[str, Values], pairs: Sequence[tuple[str, str]], measures: Mapping[str, str]
) -> list[str]:
    """A line for each pair of arms: the first less the second, seed by seed."""
    lines = ["| | " + " | ".join(measures.values()) + " |", "|---" * (len(measures) + 1) + "|"]
    for ours, theirs in pairs:
        cells = [
            shown([a - b for a, b in zip(found[ours][measure], found[theirs][measure], strict=True)])
            for measure in measures
        ]
        lines.append(f"| {ours} − {theirs} | " + " | ".join(cells) + " |")
    return lines
