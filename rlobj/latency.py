"""How long a model takes for texts, beside another: in turns, on the threads that torch has.

Turns lie beside one another in time, so whatever else the machine does weighs on both; the ratio is the median of the
turns' own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faster:
    """Seconds of one text before and after, and how many times faster it became."""

    before: float
    """median over turns"""
    after: float
    ratio: float
    """above 1 where it is faster; median over turns"""
    least: float
    most: float
    """the turns' smallest and largest"""


def compare_seconds(before: Callable[[], object], after: Callable[[], object], texts: int, turns: int) -> Faster:
    """Time two ways to do the same texts; a first turn of each, which warms up, is left out.

    Args:
        before, after: do all the texts.
        texts: how many they are.
    """
    sides = {"before": before, "after": after}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for turn in range(turns):
        for name in list(sides) if turn % 2 == 0 else reversed(sides):  # who goes first changes
            began = time.perf_counter()
            sides[name]()
            taken[name].append((time.perf_counter() - began) / texts)
    ratios = sorted(a / b for a, b in zip(taken["before"], taken["after"], strict=True))
    medians = [statistics.median(taken[name]) for name in sides]
    return Faster(medians[0], medians[1], statistics.median(ratios), ratios[0], ratios[-1])
