"""Early stopping of hopeless settings (ASHA: Li et al. 2020), in its form that stops and never pauses.

At a few steps of the training, the rungs, each setting shows what it has reached. It goes on if it is among the best
1/η of all settings that have come so far; the first few, that have too little to be compared with, always do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

RUNGS = 2
"""Rungs of a training: the last at 1/η of its steps, each one before at 1/η of the next."""


def rungs(steps: int, eta: float) -> list[int]:
    """The steps at which settings are compared.

    Raises:
        ValueError: not η > 1.
    """
    if not eta > 1:
        raise ValueError(f"early_stop is {eta:g}: expected a factor above 1; 3 lets the best third go on")
    return sorted({step for power in range(1, RUNGS + 1) if (step := int(steps / eta**power)) >= 1})


def hopeless(scores: Mapping[str, Sequence[float]], name: str, eta: float) -> bool:
    """Whether a setting is not among the best 1/η at a rung.

    Args:
        scores: setting -> what each of its seeds had reached, more is better; of those that have come so far.
    """
    means = {each: fmean(values) for each, values in scores.items() if values}
    if len(means) < eta:
        return False
    best = sorted(means.values(), reverse=True)[: math.ceil(len(means) / eta)]
    return means[name] < best[-1]


def reached(log: Sequence[Mapping[str, float]], step: int, before: int, measures: Sequence[str]) -> float | None:
    """What a training had reached at a rung: the mean since the rung before; None where it has not come so far.

    Args:
        log: of the training, each line with `step`.
        measures: keys of the log, the first that it has counts.
    """
    if not log or log[-1]["step"] < step:
        return None
    window = [line for line in log if before < line["step"] <= step]
    key = next((key for key in measures if any(line.get(key) is not None for line in window)), None)
    return None if key is None else fmean(float(line[key]) for line in window if line.get(key) is not None)
