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


def left_behind(scores: Mapping[str, float], eta: float) -> list[str]:
    """The settings that are not among the best 1/η at a rung; none, while fewer than η have come.

    Args:
        scores: setting -> what it had reached, more is better; of those that have come so far.
    """
    if len(scores) < eta:
        return []
    best = sorted(scores.values(), reverse=True)[: math.ceil(len(scores) / eta)]
    return [name for name, score in scores.items() if score < best[-1]]


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
