"""Rewards made of rewards."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from reward_models.protocol import Conversation, Reward


class WeightedSum:
    """Σ weight · reward. An episode that any part gives no reward has none.

    Args:
        parts: name -> (reward, weight); weights are finite.

    Attributes:
        parts: after a call, name -> mean of that part over the episodes that it scored, before its weight.
    """

    __name__ = "weighted_sum"

    def __init__(self, parts: Mapping[str, tuple[Reward, float]]) -> None:
        if not parts:
            raise ValueError("parts is empty: expected at least one name -> (reward, weight)")
        for name, part in parts.items():
            if not isinstance(part, tuple | list) or len(part) != 2:
                raise TypeError(f"part {name!r} is {part!r}: expected a pair (reward, weight)")
            reward, weight = part
            if not callable(reward):
                raise TypeError(f"reward {name!r} is {reward!r}: expected a function; by name: load_reward(name)")
            if not isinstance(weight, numbers.Real):
                raise TypeError(f"weight of reward {name!r} is {weight!r}: expected a number")
            if not math.isfinite(weight):
                raise ValueError(f"weight of reward {name!r} is {weight}: expected a finite number")
        self._parts = dict(parts)
        self.parts: dict[str, float] = {}

    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[float | None]:
        totals: list[float | None] = [0.0] * len(completions)
        for name, (reward, weight) in self._parts.items():
            values = list(reward(prompts=prompts, completions=completions, **columns))
            if len(values) != len(totals):
                raise ValueError(f"reward {name!r} returned {len(values)} values for {len(totals)} episodes")
            scored = [float(value) for value in values if value is not None]
            self.parts[name] = sum(scored) / len(scored) if scored else math.nan
            totals = [
                None if total is None or value is None else total + weight * float(value)
                for total, value in zip(totals, values, strict=True)
            ]
        return totals
