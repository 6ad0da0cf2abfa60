"""What is searched: `objective.lambda_sup=log:0.01..1`, `training.num_generations=4..16`, `training.beta=0|0.1`.

Nothing here imports torch or Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlobj.recipes import check_key, field_type

FORM = "expected KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=ONE|OTHER, such as objective.lambda_sup=log:0.01..1"


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    """drawn evenly in the logarithm"""
    whole: bool = False
    """whole numbers alone"""

    @property
    def ends(self) -> tuple[str, ...]:
        """As they would stand on the command line."""
        return tuple(f"{int(value)}" if self.whole else repr(value) for value in (self.low, self.high))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values, as they would stand on the command line."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        return self.values


Space = Mapping[str, Range | Choice]
"""Dotted name of a field -> what it may be."""


def read_space(texts: Sequence[str]) -> dict[str, Range | Choice]:
    """What these texts name.

    Raises:
        ValueError: one is not of the form, names no field, or has no values.
    """
    space: dict[str, Range | Choice] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"--space {text!r}: {FORM}")
        check_key(key, "--space")
        if key in space:
            raise ValueError(f"--space names {key} twice: give all of its values in one")
        space[key] = _range(key, values) if ".." in values else _choice(key, values)
    if not space:
        raise ValueError(f"--space is empty: {FORM}")
    return space


def _choice(key: str, text: str) -> Choice:
    values = tuple(text.split("|"))
    if len(values) < 2 or len(set(values)) < len(values) or not all(values):
        raise ValueError(f"--space {key}={text}: expected LOW..HIGH, or at least two different values with | between")
    return Choice(values)


def _range(key: str, text: str) -> Range:
    log, text_of_ends = text.startswith("log:"), text.removeprefix("log:")
    low_text, _, high_text = text_of_ends.partition("..")
    try:
        low, high = float(low_text), float(high_text)
    except ValueError:
        raise ValueError(f"--space {key}={text}: {text_of_ends!r} is not two numbers with .. between them") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"--space {key}={text}: expected two finite numbers, the smaller one first")
    if log and low <= 0:
        raise ValueError(f"--space {key}={text}: a logarithm has no {low:g}; begin above 0, or leave out log:")
    whole = field_type(key) is int
    if whole and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"--space {key}={text}: {key} is a whole number, and so are the ends of its range")
    return Range(low, high, log, whole)
