"""Weighted sums of rewards."""

from __future__ import annotations

import math
from typing import Any

import pytest

from reward_models import WeightedSum, load_reward

ROWS: dict[str, Any] = {"prompts": [[]] * 3, "completions": [[]] * 3}


def fixed(*values: float | None) -> Any:
    return lambda prompts, completions, **columns: list(values)


def test_sum_and_means_of_parts() -> None:
    reward = WeightedSum({"a": (fixed(1.0, 2.0, 3.0), 2.0), "b": (fixed(4.0, 0.0, -1.0), -0.5)})
    assert reward(**ROWS) == [0.0, 4.0, 6.5]
    assert reward.parts == {"a": 2.0, "b": 1.0}


def test_no_reward_from_a_part_is_none_of_the_row() -> None:
    reward = WeightedSum({"a": (fixed(1.0, None, 3.0), 1), "b": (fixed(None, None, 1.0), 0.0)})
    assert reward(**ROWS) == [None, None, 3.0]
    assert reward.parts == {"a": 2.0, "b": 1.0}, "means over the rows that have one, before the weight"


def test_part_without_any_reward_has_no_mean() -> None:
    reward = WeightedSum({"a": (fixed(None, None, None), 1)})
    assert reward(**ROWS) == [None] * 3
    assert math.isnan(reward.parts["a"])


def test_parts_are_of_the_last_call() -> None:
    reward = WeightedSum({"done": (load_reward("success"), 1)})
    for done, mean in ((True, 1.0), (False, 0.0)):
        assert reward(**ROWS, success=[done] * 3) == [mean] * 3
        assert reward.parts == {"done": mean}


def test_sums_nest() -> None:
    inner = WeightedSum({"a": (fixed(1.0, None, 3.0), 2)})
    assert WeightedSum({"inner": (inner, 10), "b": (fixed(1.0, 1.0, 1.0), 1)})(**ROWS) == [21.0, None, 61.0]


def test_wrong_number_of_values_names_the_part() -> None:
    with pytest.raises(ValueError, match="'short' returned 2 values for 3 episodes"):
        WeightedSum({"short": (fixed(1.0, 2.0), 1)})(**ROWS)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({}, ValueError, "parts is empty"),
        ({"a": (fixed(), math.nan)}, ValueError, "weight of reward 'a' is nan"),
        ({"a": (fixed(), -math.inf)}, ValueError, "weight of reward 'a' is -inf"),
        ({"a": (fixed(), "1")}, TypeError, "weight of reward 'a' is '1'"),
        ({"a": ("success", 1.0)}, TypeError, r"reward 'a' is 'success': .*load_reward"),
        ({"a": fixed()}, TypeError, r"part 'a' is .*expected a pair"),
    ],
)
def test_wrong_parts(parts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WeightedSum(parts)
