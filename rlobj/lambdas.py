"""λ as a function of the step. A form of λ is any callable `step -> float`; these are the first ones.

The arithmetic is pure: no trainer, no logging. Legend: step counts optimiser steps from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LambdaForm = Callable[[int], float]


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
class Linear:
    """λ goes from `start` to `end` in a straight line over `steps` optimiser steps, then stays at `end`."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        checked_lambda(self.start, "lambda_sup start")
        checked_lambda(self.end, "lambda_sup end")
        if self.steps < 1:
            raise ValueError(f"lambda_sup schedule has steps={self.steps}: expected at least 1")

    def __call__(self, step: int) -> float:
        done = min(max(step, 0) / self.steps, 1.0)
        return self.start + (self.end - self.start) * done


def as_lambda(value: float | LambdaForm) -> LambdaForm:
    """A number becomes a constant; a form stays itself."""
    return value if callable(value) else Constant(float(value))
