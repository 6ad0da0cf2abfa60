"""Classification as action: what a choice is worth, handing over, and that nothing tells the label beforehand."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401
from envs.classification import HANDOVER, ClassificationEnv, cost_matrix

TEXTS = ["shares crash", "shares soar", "shares trade"]
LABELS = ["bad", "good", "flat"]
COSTS = {"bad": {"good": -5, "flat": -2.5}, "good": {"good": 2}}


def worth(env: gymnasium.Env, seed: int, action: str) -> float:
    env.reset(seed=seed)
    return env.step(env.action_names.index(action))[1]


def test_a_cost_matrix_says_what_each_pair_is_worth():
    env = ClassificationEnv(TEXTS, LABELS, costs=COSTS)
    table = [[worth(env, seed, chosen) for chosen in LABELS] for seed in range(3)]
    assert table == [[1, -5, -2.5], [0, 2, 0], [0, 0, 1]]


def test_costs_come_from_a_file_of_either_kind(tmp_path: Path):
    (tmp_path / "costs.json").write_text(json.dumps(COSTS))
    (tmp_path / "costs.csv").write_text("right,bad,good,flat\nbad,, -5,-2.5\ngood,,2,\n")
    for name in ("costs.json", "costs.csv"):
        assert cost_matrix(str(tmp_path / name), LABELS) == cost_matrix(COSTS, LABELS)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"bda": {"good": -1}}, r"costs names 'bda', which is not a label; did you mean 'bad'\? \(labels: bad, flat"),
        ({"bad": {"goood": -1}}, r"costs\['bad'\] names 'goood', which is not a label; did you mean 'good'\?"),
        ({"bad": {"good": float("nan")}}, r"costs\['bad'\]\['good'\] is nan: expected a finite number"),
        ({"bad": {"good": "-1"}}, r"costs\['bad'\]\['good'\] is '-1': expected a finite number"),
        ({"bad": -1}, r"costs\['bad'\] is -1: expected \{chosen label: reward\}"),
        ([1, 2], r"costs is \[1, 2\]: expected \{right label"),
        ("nowhere.json", "costs file 'nowhere.json' cannot be read: No such file"),
    ],
)
def test_costs_that_cannot_be(costs: object, message: str):
    with pytest.raises(ValueError, match=message):
        ClassificationEnv(TEXTS, LABELS, costs=costs)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("costs.json", "{", "is not JSON: .*a matrix belongs in a .csv file"),
        ("costs.csv", ",bad,good\nbad,1\n", "row 'bad' has 1 rewards for 2 labels"),
        ("costs.csv", ",bad,good\nbad,1,x\n", "row 'bad', column 'good' is 'x': expected a number"),
    ],
)
def test_costs_files_that_cannot_be_read(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        cost_matrix(tmp_path / name, LABELS)


def test_handing_over_is_an_action_with_a_price():
    env = ClassificationEnv(TEXTS, LABELS, costs=COSTS, handover=-0.3, critical="bad")
    assert env.action_space.n == 4
    assert env.action_names == ["bad", "flat", "good", HANDOVER]
    assert [worth(env, seed, HANDOVER) for seed in range(3)] == [-0.3] * 3
    env.reset(seed=0)
    info = env.step(3)[4]
    assert info == {"label": "bad", "success": False, "handed_over": True, "missed": False}
    assert max(action for _, action in env.examples(range(3))) == 2, "no label asks a human"
    assert ClassificationEnv(TEXTS, LABELS).action_space.n == 3


def test_missing_the_critical_label_is_a_column():
    env = ClassificationEnv(TEXTS, LABELS, critical="bad")
    missed = []
    for seed, action in ((0, "bad"), (0, "good"), (1, "bad"), (1, "good")):
        env.reset(seed=seed)
        missed.append(env.step(env.action_names.index(action))[4]["missed"])
    assert missed == [False, True, None, None]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"handover": float("inf")}, "handover is inf: expected a finite number"),
        ({"handover": 0, "labels": ["bad", "good", HANDOVER]}, "a label is called 'ask a human'"),
        ({"critical": "bade"}, r"critical names 'bade', which is not a label; did you mean 'bad'\?"),
    ],
)
def test_what_else_cannot_be(kwargs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClassificationEnv(**{"texts": TEXTS, "labels": LABELS, **kwargs})


def test_the_label_is_nowhere_before_the_choice():
    """Two environments that differ in the labels alone look the same until the episode has ended."""
    seen = []
    for labels in (LABELS, LABELS[::-1]):
        env = ClassificationEnv(TEXTS, labels, label_names=LABELS, costs=COSTS, handover=-0.3, critical="bad")
        seen.append([env.reset(seed=seed) for seed in range(3)])
        for seed, (observation, info) in enumerate(seen[-1]):
            assert observation == [{"role": "user", "content": TEXTS[seed]}]
            assert info == {"seed": seed}
    assert seen[0] == seen[1]
    env.reset(seed=0)
    observation, _, terminated, _, info = env.step(0)
    assert terminated
    assert observation == [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": "bad"}]
    assert info["label"] == "flat", "after the choice it is told"


def test_gymnasiums_checker_passes_without_warnings():
    env = gymnasium.make(
        "rlobj/Classification-v0", handover=0.5, costs={"praise": {"complaint": -1}}, critical="praise"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
