"""Hopeless λ of a comparison are given up on the way: from what their trainings have logged so far."""

from __future__ import annotations

import json

import pytest

from rlobj.compared import Comparison
from rlobj.early_stopping import EarlyStopping, kept_of
from rlobj.recipes import load_recipe
from rlobj.results import lambda_directory
from rlobj.tracking import METRICS

LAMBDAS = [0.0, 0.1, 0.3, 1.0]


@pytest.fixture
def comparison(tmp_path):
    config = load_recipe("customer-service", ["--training.steps=18"])
    return Comparison(tmp_path, config, LAMBDAS, seeds=2, ell_bound=1.25)


def logs(trial, steps, success):
    """A training that has come so far."""
    policy = lambda_directory(trial.directory, trial.lambda_sup)
    folder = policy.parent / "checkpoints" / policy.name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, "environment/success": success}) for step in range(1, steps + 1)]
    (folder / METRICS).write_text("\n".join(lines) + '\n{"step": 99, "env', encoding="utf-8")  # half a line


def test_a_lambda_that_is_behind_is_given_up_with_all_its_seeds(comparison, capsys):
    first = [trial for trial in comparison.trials if trial.seed == 0]
    stopping = EarlyStopping(comparison, 3)
    assert stopping.rungs == [2, 6]
    for trial, success in zip(first, (0.9, 0.1, 0.8, 0.2), strict=True):
        logs(trial, 1, success)
    assert stopping.look(first) == [], "none has come to a rung"
    for trial, success in zip(first, (0.9, 0.1, 0.8, 0.2), strict=True):
        logs(trial, 2, success)
    assert stopping.look(first) == [0.1, 1.0], "of four the best ⌈4/3⌉ = 2 go on"
    assert "λ = 1 was given up: at step 2 it had reached 0.20" in capsys.readouterr().out
    again = EarlyStopping(comparison, 3)
    assert again.given_up == {0.1, 1.0}, "the same command trains them no more"
    assert set(kept_of(comparison)["given up"]) == {"0.1", "1"}
    assert EarlyStopping(comparison, 2).given_up == set(), "with another factor it is another race"
    assert EarlyStopping(comparison, None).given_up == set()


def test_the_mean_of_the_seeds_counts(comparison):
    stopping = EarlyStopping(comparison, 3)
    zero, tenth, _third, one, *second_seed = comparison.trials
    for trial, success in ((zero, 0.5), (tenth, 0.6)):
        logs(trial, 2, success)
    assert stopping.look([zero, tenth]) == [], "two are too few to tell a third"
    logs(second_seed[0], 2, 0.9)  # λ = 0 now has 0.7
    logs(one, 2, 0.65)
    assert stopping.look([zero, tenth, second_seed[0], one]) == [0.1, 1.0]


def test_without_a_factor_nothing_is_given_up(comparison):
    for trial in comparison.trials:
        logs(trial, 18, 0.0)
    stopping = EarlyStopping(comparison, None)
    assert stopping.look(comparison.trials) == [] and kept_of(comparison) == {}
