"""95% intervals of proportions and means; scipy does the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Interval = tuple[float, float, float]
"""A value and the ends of its 95% interval; NaN where there is none."""
LEVEL = 0.95
RESAMPLES = 2000


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): sensible at 0 of n and n of n, too.

    Raises:
        ValueError: not 0 ≤ successes ≤ n with n ≥ 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n with n ≥ 1")
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(gained: int, lost: int, n: int) -> Interval:
    """Difference of two shares of the same n rows, of which `gained` count in the second alone, `lost` in the first
    alone, with the interval of Bonett and Price (2012): of some width where no row differs, too.

    d ± z √((p₊ + p₋ − d²) / (n + 2)),   p₊ = (gained + 1) / (n + 2), p₋ = (lost + 1) / (n + 2), d = p₊ − p₋

    Raises:
        ValueError: not gained, lost ≥ 0 and gained + lost ≤ n with n ≥ 1.
    """
    if n < 1 or gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f"{gained} gained and {lost} lost of {n}: expected no less than 0 and together at most n ≥ 1")
    more, less = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    return (gained - lost) / n, max(more - less - half, -1.0), min(more - less + half, 1.0)


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Mean and bootstrap percentile interval over episodes; the same for the same values.

    Returns: (mean, low, high); all NaN without values, the ends NaN for a single one, which says nothing of the spread.
    """
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return math.nan, math.nan, math.nan
    mean = float(data.mean())
    if len(data) == 1 or not np.isfinite(data).all():
        return mean, math.nan, math.nan
    if np.ptp(data) == 0:  # nothing to resample
        return mean, mean, mean
    result = stats.bootstrap(
        (data,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=200,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return mean, float(result.confidence_interval.low), float(result.confidence_interval.high)


def bootstrap_statistic(statistic: Callable[[np.ndarray], float], n: int, resamples: int = RESAMPLES) -> Interval:
    """A statistic of n rows, such as an F1, with its bootstrap percentile interval; the same for the same rows.

    Args:
        statistic: of row indices, (n,), some more than once.
        resamples: 0 leaves the interval out.

    Returns: (value, low, high); the ends are NaN for a single row.
    """
    value = float(statistic(np.arange(n)))
    if n < 2 or resamples == 0 or not math.isfinite(value):
        return value, math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def mean_interval_over_seeds(values: Sequence[float]) -> Interval:
    """Mean and Student's t interval over the few seeds of an experiment.

    Returns: (mean, low, high); the ends are NaN for a single seed, which says nothing of the spread, and where a
        value is not finite.
    """
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return math.nan, math.nan, math.nan
    mean = float(data.mean())
    if len(data) == 1 or not np.isfinite(data).all():
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(data) - 1) * stats.sem(data))
    return mean, mean - half, mean + half


# Experiments of several seeds, each judged on many episodes -----------------------------------------------------------


def interquartile_mean(values: Sequence[float] | np.ndarray, axis: int = 0) -> Any:
    """Mean of the middle half (Agarwal et al. 2021): less moved by one odd seed than the mean."""
    return stats.trim_mean(np.asarray(values, dtype=float), 0.25, axis=axis)


def over_seeds(runs: Sequence[Sequence[float]], statistic: Callable[..., Any] = np.mean) -> Interval:
    """A statistic of the runs' means, with a bootstrap interval over seeds and over each one's episodes.

    Seeds are drawn again, and then the episodes of each seed drawn: policies of one seed fail together, so episodes
    alone would say too little of the spread.

    Args:
        runs: for each seed the values of its episodes.
        statistic: of one value per seed, along `axis`: np.mean, interquartile_mean.

    Returns: (value, low, high); the ends are NaN for a single seed.
    """
    data = [np.asarray(run, dtype=float) for run in runs]
    if not data or any(len(run) == 0 for run in data):
        return math.nan, math.nan, math.nan
    value = float(statistic(np.array([run.mean() for run in data]), axis=0))
    if len(data) == 1:
        return value, math.nan, math.nan
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(data), size=(RESAMPLES, len(data)))
    means = np.empty(chosen.shape)
    for i, run in enumerate(data):
        places = chosen == i
        means[places] = run[rng.integers(len(run), size=(places.sum(), len(run)))].mean(axis=1)
    low, high = np.quantile(statistic(means, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """P(a seed of ours is better than a seed of theirs), ties counting half (Mann and Whitney 1947), with a bootstrap
    interval over the seeds of both.

    Args:
        ours, theirs: one value per seed; more is better.

    Returns: (value, low, high); the ends are NaN where either has a single seed.
    """
    x, y = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    value = float(_share_of_pairs(x, y))
    if len(x) < 2 or len(y) < 2:
        return value, math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = _share_of_pairs(rng.choice(x, (RESAMPLES, len(x))), rng.choice(y, (RESAMPLES, len(y))))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def share_above(values: Sequence[float], level: float) -> Interval:
    """Share of the values above a level, with Wilson's interval: a point of a performance profile, or how often a seed
    is better than one fixed policy. A bootstrap of few seeds that are all above would have no width.

    Returns: (share, low, high); the ends are NaN for a single value.
    """
    above = int((np.asarray(values, dtype=float) > level).sum())
    if len(values) < 2:
        return float(above), math.nan, math.nan
    return above / len(values), *wilson(above, len(values))


def _share_of_pairs(x: np.ndarray, y: np.ndarray) -> Any:
    """Share of pairs in which x is above y along the last axes, ties half."""
    return (np.sign(x[..., :, None] - y[..., None, :]).mean(axis=(-2, -1)) + 1) / 2
