"""λ as a function of how far the training has come: constant, or along a schedule. Pure arithmetic.

Legend: step counts optimiser steps from 0; with `rlobj.controllers.OverTokens`, tokens.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


def checked_lambda(value: float, where: str = "lambda_sup") -> float:
    """Return `value` if it can be a λ.

    Raises:
        ValueError: it is negative, NaN or infinite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} is {value}: expected a finite number >= 0 (0 trains on reward alone)")
    return value


@dataclass(frozen=True, slots=True)
class Constant:
    """λ stays what it is (InstructGPT's γ, with its loss put as L = −R + γ·ℓ)."""

    value: float

    def __post_init__(self) -> None:
        checked_lambda(self.value)

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class _FromTo:
    """λ goes from `start` to `end` over `steps` optimiser steps, then stays at `end`."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_span(self.start, self.end, self.steps)


@dataclass(frozen=True, slots=True)
class Linear(_FromTo):
    """λ goes from `start` to `end` in a straight line over `steps` optimiser steps, then stays at `end`."""

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * _share(step, self.steps)


@dataclass(frozen=True, slots=True)
class Cosine(_FromTo):
    """λ goes from `start` to `end` along half a cosine over `steps` optimiser steps, then stays at `end`."""

    def __call__(self, step: int) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * _share(step, self.steps))) / 2


@dataclass(frozen=True, slots=True)
class Step:
    """λ begins at `start` and is multiplied by `factor` after every `steps` optimiser steps."""

    start: float
    factor: float
    steps: int

    def __post_init__(self) -> None:
        checked_lambda(self.start, "lambda_sup start")
        if not 0 <= self.factor <= 1:
            raise ValueError(f"lambda_sup step has factor={self.factor}: expected 0 to 1")
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        return self.start * self.factor ** (step // self.steps)


@dataclass(frozen=True, slots=True)
class Warmup:
    """λ rises from 0 to `value` in a straight line over `steps` optimiser steps, then stays there."""

    value: float
    steps: int

    def __post_init__(self) -> None:
        _check_span(0.0, self.value, self.steps)

    def __call__(self, step: int) -> float:
        return self.value * _share(step, self.steps)


@dataclass(frozen=True, slots=True)
class Piecewise:
    """λ goes through points (step, value): in straight lines between them, or held until the next.

    Before the first point it has the first value, after the last point the last one.
    """

    points: tuple[tuple[int, float], ...]
    hold: bool = False

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.points]
        if not steps or steps != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"lambda_sup has points at the steps {steps}: expected them to rise from 0 or more")
        for step, value in self.points:
            checked_lambda(value, f"lambda_sup at step {step}")

    def __call__(self, step: int) -> float:
        for (before, low), (after, high) in itertools.pairwise(self.points):
            if before <= step < after:
                return low if self.hold else low + (high - low) * (step - before) / (after - before)
        return self.points[0][1] if step < self.points[0][0] else self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Chord:
    """CHORD's μ (Zhang et al. 2025) falls from `start` to `end` over `steps` optimiser steps; λ = μ / (1 − μ).

    Their loss (1 − μ)·(−R) + μ·ℓ is ours times 1 − μ.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name, mu in (("start", self.start), ("end", self.end)):
            if not 0 <= mu < 1:
                raise ValueError(f"lambda_sup chord has {name}={mu}: expected a μ of 0 to below 1")
        _check_span(self.start, self.end, self.steps)

    def __call__(self, step: int) -> float:
        mu = self.start + (self.end - self.start) * _share(step, self.steps)
        return mu / (1 - mu)


def _share(step: int, steps: int) -> float:
    return min(max(step, 0) / steps, 1.0)


def _check_span(start: float, end: float, steps: int) -> None:
    checked_lambda(start, "lambda_sup start")
    checked_lambda(end, "lambda_sup end")
    _check_steps(steps)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"lambda_sup schedule has steps={steps}: expected at least 1")


Schedule = Constant | Linear | Cosine | Step | Warmup | Piecewise | Chord
