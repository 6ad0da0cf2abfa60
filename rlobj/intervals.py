"""95% intervals of proportions and means; scipy does the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): sensible at 0 of n and n of n, too.

    Raises:
        ValueError: not 0 ≤ successes ≤ n with n ≥ 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 ≤ successes ≤ n with n ≥ 1")
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(values: Sequence[float]) -> tuple[float, float, float]:
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
        n_resamples=2000,
        batch=200,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return mean, float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_interval_over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
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
