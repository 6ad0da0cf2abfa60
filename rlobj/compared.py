"""What the trials of a comparison of λ came to: statistics over seeds, a recommendation, tables and the report."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset

import rlobj.report as report
from rlobj.config import RunConfig, dump
from rlobj.intervals import (
    Interval,
    interquartile_mean,
    over_seeds,
    probability_of_improvement,
    share_above,
)
from rlobj.lambdas import lambda_name
from rlobj.recipes import load_recipe
from rlobj.results import WARM_START, lambda_directory, lambda_title
from rlobj.runs import atomic_write_json, atomic_write_text, read_outputs

PLAN = "comparison.json"
"""File with what was asked of a comparison."""
BEST = "best_policy"
"""Folder of the policy with the highest true measure of the recommended λ."""
FEW_SEEDS = 5
"""Bootstrap intervals of fewer hold the truth too seldom: with as much spread between seeds as within one's episodes,
those of 2 to 4 seeds in 80% to 86%, of 5 in 93%."""
TRUE_MEASURES = ("success", "accuracy", "return")
"""What a policy is chosen by: the first of them that the environment has."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One λ with one seed."""

    lambda_sup: float | str
    seed: int
    directory: Path

    @property
    def name(self) -> str:
        return f"{lambda_title(self.lambda_sup)}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.directory.parent / f"{self.directory.name}.log"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was asked of a comparison, and where it lies."""

    directory: Path
    config: RunConfig
    lambdas: Sequence[float | str]
    seeds: int
    ell_bound: float
    """the recommended λ has an ℓ of at most so many times the warm start's"""
    soup: int = 0
    """policies to judge between the ends of λ (`rlobj.soup`)"""

    @property
    def recipe(self) -> Path:
        return self.directory / "trials.yaml"

    @property
    def trials(self) -> list[Trial]:
        """Every λ with every seed; seed by seed: stopped early, every λ has as many."""
        return [
            Trial(
                value, seed, self.directory / "trials" / lambda_directory(self.directory, value).name / f"seed-{seed}"
            )
            for seed in range(self.seeds)
            for value in self.lambdas
        ]

    def save(self) -> None:
        atomic_write_text(self.recipe, dump(self.config))
        asked = {"lambdas": list(self.lambdas), "seeds": self.seeds, "ell_bound": self.ell_bound, "soup": self.soup}
        atomic_write_json(self.directory / PLAN, asked)


def load_comparison(directory: Path) -> Comparison:
    """A comparison that was begun in this directory.

    Raises:
        ValueError: there is none.
    """
    try:
        asked = json.loads((directory / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{directory} holds no comparison ({PLAN}): expected what rlobj compare wrote") from None
    return Comparison(directory, load_recipe(str(directory / "trials.yaml")), **asked)


@dataclass(frozen=True, slots=True)
class Summary:
    """What the seeds of one λ did. Intervals are 95%."""

    lambda_sup: float | str | None
    """None for the warm start"""
    seeds: int
    mean: dict[str, Interval]
    interquartile_mean: dict[str, Interval]
    better_than_warm_start: Interval | None
    """probability that a seed is better than the warm start by the true measure"""
    better_than_zero: Interval | None
    """…, better than a seed of λ = 0"""
    on_front: bool
    """no other λ has both more return and a smaller ℓ"""

    @property
    def name(self) -> str:
        return WARM_START if self.lambda_sup is None else lambda_title(self.lambda_sup)


# What came out --------------------------------------------------------------------------------------------------------


def summarise(results: Mapping[Trial, Mapping[str, Any]]) -> list[Summary]:
    """The warm start, and each λ over its seeds.

    Args:
        results: for each trial, by policy (WARM_START, λ), the values `per_episode` of each metric.
    """
    runs: dict[float | str, list[dict[str, list[float]]]] = {}
    warm: list[dict[str, list[float]]] = []
    for trial, result in results.items():
        runs.setdefault(trial.lambda_sup, []).append(result[lambda_title(trial.lambda_sup)]["per_episode"])
        warm.append(result[WARM_START]["per_episode"])
    true = true_measure(warm[0])
    scores = {value: [fmean(run[true]) for run in of_lambda] for value, of_lambda in runs.items()}
    # the warm start is one policy, the same in every trial
    summaries = [_summary(None, warm[:1], None, None, False)]
    ends = {value: (_means(r).get("return", math.nan), _means(r).get("ell", math.nan)) for value, r in runs.items()}
    for value, of_lambda in runs.items():
        over_zero = (
            None if 0.0 not in scores or value == 0.0 else probability_of_improvement(scores[value], scores[0.0])
        )
        over_warm = share_above(scores[value], fmean(warm[0][true]))
        best = not any(
            other[0] >= ends[value][0] and other[1] <= ends[value][1] and other != ends[value]
            for other in ends.values()
        )
        summaries.append(_summary(value, of_lambda, over_warm, over_zero, best))
    return summaries


def true_measure(metrics: Mapping[str, Any]) -> str:
    """The name of the measure that policies are chosen by."""
    return next(name for name in TRUE_MEASURES if name in metrics)


def _means(runs: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    return {name: fmean(fmean(run[name]) for run in runs) for name in runs[0]}


def _summary(
    value: float | str | None,
    runs: Sequence[Mapping[str, Sequence[float]]],
    over_warm: Interval | None,
    over_zero: Interval | None,
    on_front: bool,
) -> Summary:
    known = [name for name in runs[0] if all(run.get(name) for run in runs)]
    means = {name: over_seeds([run[name] for run in runs]) for name in known}
    middle = {name: over_seeds([run[name] for run in runs], interquartile_mean) for name in known}
    return Summary(value, len(runs), means, middle, over_warm, over_zero, on_front)


def recommend(summaries: Sequence[Summary], ell_bound: float) -> tuple[Summary | None, str]:
    """The λ with the highest true measure among those whose ℓ is within the bound, in words; of equals the largest λ.
    Where the intervals of others overlap with its own, it says so.
    """
    warm, *trained = summaries
    true = true_measure(warm.mean)
    limit = ell_bound * warm.mean["ell"][0] if "ell" in warm.mean else math.inf
    within = [s for s in trained if s.mean.get("ell", (0.0,))[0] <= limit]
    bound = f"an ℓ of at most {ell_bound:g} times the warm start's ({limit:.3g})"
    if not within:
        return None, f"No λ is recommended: none has {bound}. Compare a larger one, or raise --ell_bound."
    best = max(within, key=lambda s: (s.mean[true][0], _size(s.lambda_sup)))
    mean, low, _ = best.mean[true]
    rivals = [s for s in trained if s is not best and not s.mean[true][2] < low]
    said = (
        f"Recommended: {best.name}, which has the highest {report.METRICS[true][0]}, {mean:.2f}, of those with {bound}."
    )
    if math.isnan(low):
        return best, f"{said} One seed cannot tell it from the others: give --seeds 5."
    if best.seeds < FEW_SEEDS:
        said = f"{said} {best.seeds} seeds are few: their intervals are narrower than they should be; give --seeds 5."
    if rivals:
        names = "; ".join(s.name for s in rivals)
        return best, f"{said} Not enough seeds to tell it from {names}: their intervals overlap."
    if len(trained) == 1:
        return best, f"{said} It is the only one."
    return best, f"{said} Its interval lies above those of all others."


def _size(value: float | str | None) -> float:
    return value if isinstance(value, float) else math.inf


def _keep_best(directory: Path, best: Summary, results: Mapping[Trial, Mapping[str, Any]]) -> None:
    """Copy the best seed's policy of the recommended λ."""
    of_lambda = [trial for trial in results if trial.lambda_sup == best.lambda_sup]
    winner = max(of_lambda, key=lambda trial: score(trial)[1])
    partial = directory / f"{BEST}.writing"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(lambda_directory(winner.directory, winner.lambda_sup), partial)
    shutil.rmtree(directory / BEST, ignore_errors=True)
    partial.rename(directory / BEST)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the trials of a comparison that have ended came to."""

    comparison: Comparison
    results: Mapping[Trial, Mapping[str, Any]]
    """for each trial, by policy (WARM_START, λ): `per_episode` values of each metric, and `episodes`"""
    summaries: Sequence[Summary]
    best: Summary | None
    advice: str


def find(comparison: Comparison, failed: Sequence[Trial] = ()) -> Findings:
    """Gather what the trials wrote.

    Args:
        failed: trials that ended without a result in this call.

    Raises:
        ValueError: none has a result.
    """
    results = {
        trial: read_outputs(trial.directory / "evaluation")["results"]
        for trial in comparison.trials
        if trial not in failed and (trial.directory / "evaluation" / "stage.json").exists()
    }
    if not results:
        raise ValueError(f"no trial has a result; the first one's log: {comparison.trials[0].log}")
    summaries = summarise(results)
    best, advice = recommend(summaries, comparison.ell_bound)
    return Findings(comparison, results, summaries, best, advice)


def write_results(found: Findings, more: Mapping[str, Any]) -> None:
    """Write results.csv and .parquet (a row per trial and policy), summary.json, and the best policy.

    Args:
        more: what else stands in summary.json.
    """
    directory = found.comparison.directory
    rows = []
    for trial, result in found.results.items():
        for policy, values in result.items():
            means = {name: fmean(v) for name, v in values["per_episode"].items()}
            rows.append({"lambda": lambda_name(trial.lambda_sup), "seed": trial.seed, "policy": policy, **means})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name) for name in columns} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(directory / "results.csv", text.getvalue())
    partial = directory / "results.parquet.writing"
    Dataset.from_list(rows).to_parquet(str(partial))
    os.replace(partial, directory / "results.parquet")
    lambdas = [{"name": s.name, **asdict(s)} for s in found.summaries]
    atomic_write_json(directory / "summary.json", {"recommendation": found.advice, "lambdas": lambdas, **more})
    if found.best is not None:
        _keep_best(directory, found.best, found.results)


def score(trial: Trial) -> tuple[str, float]:
    """The true measure of a trial that has ended: its name and mean."""
    metrics = read_outputs(trial.directory / "evaluation")["results"][lambda_title(trial.lambda_sup)]["per_episode"]
    true = true_measure(metrics)
    return true, fmean(metrics[true])
