"""Proxy and truth against √KL to the warm start (Gao et al. 2022): where a reward is gamed, the one rises and the other
falls as the policy moves away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlobj.intervals import mean_interval_over_seeds
from rlobj.pictures import Picture, Point

KL = "kl/episode"
"""Logged now and then: KL(π ‖ warm start) along an episode, in nats."""
MEASURES = {"objective/return": "return", "environment/success": "task success"}
"""Key in the log -> heading: the proxy that is maximised, and the environment's own measure."""


def against_kl(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Of a training log: heading -> (√KL, mean of the steps from one measurement of KL to the next)."""
    windows: list[tuple[float, list[Mapping[str, Any]]]] = []
    for log in history:
        if log.get(KL) is not None:
            windows.append((math.sqrt(max(float(log[KL]), 0.0)), []))
        if windows:
            windows[-1][1].append(log)
    found: dict[str, list[Point]] = {}
    for key, heading in MEASURES.items():
        known = [(x, [float(log[key]) for log in logs if log.get(key) is not None]) for x, logs in windows]
        found[heading] = [Point(x, fmean(values)) for x, values in known if values]
    return {heading: points for heading, points in found.items() if points}


def mean_over_seeds(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """The points of several seeds, measured at the same steps, with intervals of y."""
    return [
        Point(fmean(p.x for p in points), *mean_interval_over_seeds([p.y for p in points]))
        for points in zip(*runs, strict=False)
    ]


def drift_pictures(lines: Mapping[str, Mapping[str, Sequence[Point]]]) -> list[Picture]:
    """A picture of each measure against √KL.

    Args:
        lines: name of a policy -> heading -> points.
    """
    headings = [heading for heading in MEASURES.values() if any(heading in found for found in lines.values())]
    note = "The reward that is maximised beside the task: where the first rises and the second falls, it is gamed."
    return [
        Picture(
            f"{heading} in training against √KL",
            "√KL to the warm start",
            heading,
            {name: found[heading] for name, found in lines.items() if heading in found},
            note=note if heading == headings[-1] and len(headings) > 1 else "",
        )
        for heading in headings
    ]
