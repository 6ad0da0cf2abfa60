"""Rewarded soups (Ramé et al. 2023): policies between two λ that nobody trained, their parameters interpolated.

Two policies that began at the same warm start often lie in one basin: what stands between their parameters stands
between them in return and ℓ, too. Whether it does here is measured, beside what training gave in between.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from transformers import PreTrainedModel

from rlobj.compared import Comparison, Trial
from rlobj.intervals import Interval, mean_interval_over_seeds, over_seeds
from rlobj.pipeline import judge_made
from rlobj.progress import say
from rlobj.results import lambda_directory, lambda_title
from rlobj.runs import done_with, is_done, mark_done, read_outputs, stage_key

PerEpisode = Mapping[str, Sequence[float]]
"""Metric -> its value in each held-out episode."""


def interpolated(first: PreTrainedModel, second: PreTrainedModel, share: float) -> PreTrainedModel:
    """The policy with parameters (1 − share) · first + share · second.

    Raises:
        ValueError: the two have other parameters than each other.
    """
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (first, second)]
    if shapes[0] != shapes[1]:
        differing = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
        raise ValueError(f"the policies differ in {differing[:3]}: expected two that began at the same warm start")
    soup = copy.deepcopy(first)
    with torch.no_grad():
        for ours, theirs in zip(soup.parameters(), second.parameters(), strict=True):
            ours.lerp_(theirs, share)
    return soup


def ends_of(lambdas: Sequence[float | str]) -> tuple[float, float]:
    """The smallest and the largest constant λ.

    Raises:
        ValueError: there are not two.
    """
    numbers = sorted(value for value in lambdas if isinstance(value, float))
    if len(numbers) < 2:
        raise ValueError(f"soup needs two numbers among lambdas to stand between; there are {len(numbers)}")
    return numbers[0], numbers[-1]


def cook(comparison: Comparison) -> None:
    """Judge `comparison.soup` policies between the ends of λ for each seed that has both, unless it was done before."""
    low, high = ends_of(comparison.lambdas)
    for seed in range(comparison.seeds):
        first, second = (_trial(comparison, value, seed) for value in (low, high))
        inputs = {end.name: _made_with(end) for end in (first, second)}
        if None in inputs.values():
            continue  # it failed, which the report says
        key = stage_key(inputs)
        places = {share: _place(comparison, seed, share) for share in _shares(comparison.soup)}
        missing = {share for share, place in places.items() if not is_done(place, key)}
        if missing:
            say(f"soup of {lambda_title(low)} and {lambda_title(high)}, seed {seed}")
        folders = [lambda_directory(end.directory, end.lambda_sup) for end in (first, second)]
        made = {f"{share:.3g} of {lambda_title(high)}": share for share in sorted(missing)}
        points = {name: partial(interpolated, share=share) for name, share in made.items()}
        for name, values in judge_made(first.directory, folders, points) if points else ():
            mark_done(places[made[name]], key, {"per_episode": values}, inputs)


def _shares(points: int) -> list[float]:
    """Shares of the second policy, evenly between the two."""
    return [number / (points + 1) for number in range(1, points + 1)]


def _place(comparison: Comparison, seed: int, share: float) -> Path:
    return comparison.directory / "soup" / f"seed-{seed}" / f"{share:.6f}"


def _trial(comparison: Comparison, value: float, seed: int) -> Trial:
    return next(trial for trial in comparison.trials if (trial.lambda_sup, trial.seed) == (value, seed))


def _made_with(trial: Trial) -> object:
    """What a trial's evaluation depends on: another training, or another evaluation, is another soup."""
    return done_with(trial.directory / "evaluation")


# What came out --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Soup:
    """Policies between two λ, and how far those that were trained in between are from them. Intervals are 95%."""

    ends: tuple[float, float]
    seeds: int
    points: Mapping[float, Mapping[str, Interval]]
    """share of the second end -> metric -> over seeds"""
    gaps: Mapping[float, Interval]
    """trained λ between the ends -> its return less that of the soup at the same ℓ, over seeds"""

    @property
    def name(self) -> str:
        low, high = map(lambda_title, self.ends)
        return f"soup of {low} and {high}"


def taste(comparison: Comparison, results: Mapping[Trial, Mapping[str, Mapping[str, PerEpisode]]]) -> Soup | None:
    """What `cook` has judged; None where it has not, or with other policies than there are now.

    Args:
        results: of the trials, as in `rlobj.compared.Findings`.
    """
    if not comparison.soup:
        return None
    ends = ends_of(comparison.lambdas)
    cooked: dict[int, dict[float, PerEpisode]] = {}
    for seed in range(comparison.seeds):
        key = stage_key({end.name: _made_with(end) for end in (_trial(comparison, value, seed) for value in ends)})
        places = {share: _place(comparison, seed, share) for share in _shares(comparison.soup)}
        if all(is_done(place, key) for place in places.values()):
            cooked[seed] = {share: read_outputs(place)["per_episode"] for share, place in places.items()}
    if not cooked:
        return None
    trained = {
        (trial.lambda_sup, trial.seed): result[lambda_title(trial.lambda_sup)]["per_episode"]
        for trial, result in results.items()
        if isinstance(trial.lambda_sup, float)
    }
    names = next(iter(cooked.values()))[_shares(comparison.soup)[0]].keys()
    points = {
        share: {name: over_seeds([of_seed[share][name] for of_seed in cooked.values()]) for name in names}
        for share in _shares(comparison.soup)
    }
    return Soup(ends, len(cooked), points, _gaps(ends, cooked, trained))


def _gaps(
    ends: tuple[float, float],
    cooked: Mapping[int, Mapping[float, PerEpisode]],
    trained: Mapping[tuple[float, int], PerEpisode],
) -> dict[float, Interval]:
    inside = sorted({value for value, _ in trained if ends[0] < value < ends[1]})
    gaps: dict[float, list[float]] = {value: [] for value in inside}
    for seed, of_seed in cooked.items():
        line = [_ell_and_return(each) for each in [*of_seed.values(), *(trained[end, seed] for end in ends)]]
        for value in inside:
            if (value, seed) in trained and not math.isnan(line[0][0]):
                gaps[value].append(above_line(_ell_and_return(trained[value, seed]), line))
    return {value: mean_interval_over_seeds(found) for value, found in gaps.items() if found}


def _ell_and_return(values: PerEpisode) -> tuple[float, float]:
    return (fmean(values["ell"]) if values.get("ell") else math.nan), fmean(values["return"])


def above_line(point: tuple[float, float], line: Sequence[tuple[float, float]]) -> float:
    """How far a point (ℓ, return) lies above the line through others, in order of ℓ; beyond its ends it is level."""
    ell, back = zip(*sorted(line), strict=True)
    return point[1] - float(np.interp(point[0], ell, back))


def in_words(soup: Soup) -> str:
    """What the soup says about training between its ends."""
    begin = f"The {soup.name} ({len(soup.points)} points"
    begin += f", {soup.seeds} seeds)" if soup.seeds > 1 else ", one seed)"
    if not soup.gaps:
        return f"{begin} has nothing to stand beside: no λ between the two was trained, or there is no ℓ."
    each = "; ".join(f"{lambda_title(value)}: {_number(gap)}" for value, gap in soup.gaps.items())
    furthest = max(soup.gaps, key=lambda value: abs(soup.gaps[value][0]))
    mean, low, high = soup.gaps[furthest]
    if math.isnan(low):
        verdict = "one seed cannot tell whether two runs would have been enough"
    elif low > 0:
        verdict = "the two ends alone would not have been enough"
    elif high < 0:
        verdict = "the two ends alone would have given more"
    else:
        verdict = "these seeds tell no difference: the two ends might have been enough"
    return (
        f"{begin}: return of the policies trained between its ends, less that of the soup at the same ℓ: {each}. "
        f"The largest difference is that of {lambda_title(furthest)}, {mean:+z.2f}; {verdict}."
    )


def _number(interval: Interval) -> str:
    mean, low, high = interval
    return f"{mean:+z.2f}" + ("" if math.isnan(low) else f" [{low:+z.2f}, {high:+z.2f}]")
