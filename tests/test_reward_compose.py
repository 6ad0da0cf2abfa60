"""Weighted sums of rewards."""

from __future__ import annotations

import math
from typing import Any

import pytest

from envs.core import Episode
from envs.rewards import BadReward, score_episodes
from reward_models import WeightedSum, load_reward
from reward_models.compose import compose

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


def test_a_tree() -> None:
    rewards = {"a": fixed(1.0, 2.0, 3.0), "b": fixed(4.0, 0.0, -1.0)}
    logged: dict[str, float] = {}

    def made(tree: Any) -> Any:
        return compose(tree, lambda name, kwargs: rewards[name])(**ROWS, log_metric=logged.__setitem__)

    assert made({"sum": {"a": 2.0, "half": {"reward": "b", "weight": -0.5}}}) == [0.0, 4.0, 6.5]
    assert logged["reward/a/mean"] == 2.0 and logged["reward/half/mean"] == 1.0
    # by hand: totals 0, 4, 6.5 about 3.5; 2a = 2, 4, 6 about 4: covariance 13, variance 21.5 (times 3)
    assert logged["reward/a/variance_share"] == pytest.approx(13 / 21.5)
    assert logged["reward/a/variance_share"] + logged["reward/half/variance_share"] == pytest.approx(1.0)
    assert made({"min": {"a": "a", "b": "b"}}) == [1.0, 0.0, -1.0]
    assert made({"product": {"a": "a", "b": {"reward": "b", "clip": [0, 1]}}}) == [1.0, 0.0, 0.0]
    assert made({"gate": "b", "at_least": 0.0, "then": "a", "otherwise": -9}) == [1.0, 2.0, -9.0]
    assert made({"sum": {"inner": {"min": {"a": "a", "b": "b"}}, "a": 1}, "clip": [0, 2]}) == [2.0, 2.0, 2.0]


def test_a_part_that_failed_is_not_hidden() -> None:
    rewards = {"a": fixed(1.0, 1.0, 1.0), "b": fixed(math.nan, 2.0, 2.0), "text": fixed("1", 1.0, 1.0)}
    tree = {"min": {"a": "a", "b": "b"}}
    values = compose(tree, lambda name, kwargs: rewards[name])(**ROWS)
    assert str(values) == "[nan, 1.0, 1.0]"
    with pytest.raises(TypeError, match="'text' returned '1'"):
        compose({"min": {"text": "text"}}, lambda name, kwargs: rewards[name])(**ROWS)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sum": {}}, r"compose.sum is \{\}"),
        ({"sum": {"a": 1}, "min": {"a": 1}}, "expected exactly one of"),
        ({"min": {"a": {"reward": "a", "weight": 2}}}, "they belong into a sum"),
        ({"sum": {"a": {"reward": "a", "wieght": 2}}}, "'wieght'; did you mean 'weight'"),
        ({"gate": "a"}, "gate without 'then'"),
        ({"reward": "a", "clip": [1, 0]}, "low below high"),
        ({"reward": "a", "clip": 3}, r"compose.clip is 3: expected two numbers \[low, high\]"),
        ({"sum": {"x": {"reward": "a", "clip": [0, "1"]}}}, r"compose.sum.x.clip is \[0, '1'\]: expected two numbers"),
        ({"reward": "a", "kwargs": 3}, "expected a reward's name, and kwargs"),
        ({"gate": "a", "then": "a", "at_least": "high"}, "compose.at_least is 'high': expected a number"),
        (3, "compose is 3"),
    ],
)
def test_trees_that_are_none(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(tree, lambda name, kwargs: fixed(1.0))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (fixed(1.0, math.nan), "the part 'mine', which returned nan"),
        (fixed(math.inf, 1.0), "the part 'mine', which returned inf"),
        (lambda prompts, completions, **columns: ["1"] * len(completions), "reward 'mine' returned '1'"),
        (fixed(), "reward 'mine' returned 0 values"),
        (load_reward("label_match"), "raised .*in the part 'mine'"),
    ],
)
def test_an_error_names_the_part(part: Any, message: str) -> None:
    """Through the boundary that a run has, in a composition within another."""
    rewards = {"success": load_reward("success"), "mine": part}
    tree = {"sum": {"success": 1, "both": {"sum": {"success": 1, "mine": 1}}}}
    reward = compose(tree, lambda name, kwargs: rewards[name])
    episodes = [Episode(seed, [], [], {"success": True}) for seed in range(2)]
    with pytest.raises(BadReward, match=message):
        score_episodes(reward, episodes)
