"""The search for λ and more: the space, what a search comes to, and a small one from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pipeline import SMALL

from rlobj.cli import main
from rlobj.recipes import load_recipe
from rlobj.search_space import Choice, Range, read_space
from rlobj.searched import ELL_EXCESS, METRICS, Search

optuna = pytest.importorskip("optuna", reason="pip install 'rlobj[tune]'")

# The space ------------------------------------------------------------------------------------------------------------


def test_a_space_is_read():
    space = read_space(
        [
            "objective.lambda_sup=log:0.01..1",
            "training.num_generations=4..16",
            "training.beta=0..0.1",
            "training.estimator=grpo|rloo",
        ]
    )
    assert space == {
        "objective.lambda_sup": Range(0.01, 1.0, log=True),
        "training.num_generations": Range(4, 16, whole=True),
        "training.beta": Range(0.0, 0.1),
        "training.estimator": Choice(("grpo", "rloo")),
    }
    assert space["training.num_generations"].ends == ("4", "16")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("objective.lambda_sup", "expected KEY=LOW..HIGH"),
        ("training.learning_rat=log:0.01..1", "did you mean 'training.learning_rate'?"),
        ("objective.lambda_sup=0.1..x", "'0.1..x' is not two numbers"),
        ("objective.lambda_sup=1..0.1", "the smaller one first"),
        ("objective.lambda_sup=0..inf", "two finite numbers"),
        ("objective.lambda_sup=log:0..1", "a logarithm has no 0"),
        ("training.steps=1.5..3", "training.steps is a whole number"),
        ("objective.lambda_sup=0.1", "at least two different values"),
        ("objective.lambda_sup=0.1|0.1", "at least two different values"),
    ],
)
def test_what_is_wrong_with_a_space_is_said(text, words):
    with pytest.raises(ValueError, match="--space") as told:
        read_space([text])
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--space", "objective.lambda_sup=-1..1"], "-1"),
        (["--space", "training.estimator=grpo|gpro"], "training.estimator is gpro"),
        (["--space", "training.beta=0..0.1"], "objective.lambda_sup has 2 values: search it"),
        (["--space", "objective.lambda_sup=0..1", "--trials", "0"], "trials is 0"),
        (["--space", "objective.lambda_sup=0..1", "--ell_bound", "0"], "ell_bound is 0"),
        (["--space", "objective.lambda_sup=0..1", "objective.lambda_sup=0..2"], "twice"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(arguments, words, capsys, tmp_path):
    assert main(["tune", "customer-service", *arguments, f"--output_dir={tmp_path}"]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# What came out --------------------------------------------------------------------------------------------------------


@pytest.fixture
def search(tmp_path):
    config = load_recipe("customer-service", [f"--output_dir={tmp_path}"])
    space = read_space(["objective.lambda_sup=log:0.01..1", "training.estimator=grpo|rloo"])
    return Search(tmp_path / "tuned", config, space, trials=4, ell_bound=1.25)


def study_of(ends):
    """An Optuna study whose trials ended so: λ, success, return, ℓ above the bound."""
    study = optuna.create_study(direction="maximize")
    space = {
        "objective.lambda_sup": optuna.distributions.FloatDistribution(0.01, 1, log=True),
        "training.estimator": optuna.distributions.CategoricalDistribution(("grpo", "rloo")),
    }
    for value, success, back, excess in ends:
        metrics = {"success": (success,) * 3, "return": (back,) * 3, "ell": (1 + excess,) * 3}
        trial = optuna.trial.create_trial(
            params={"objective.lambda_sup": value, "training.estimator": "rloo"},
            distributions=space,
            value=success,
            user_attrs={METRICS: metrics},
        )
        trial.set_constraint(ELL_EXCESS, excess)
        study.add_trial(trial)
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
    return study


def test_the_best_within_the_bound_is_written_as_a_recipe(search, capsys):
    from rlobj.tuning_report import conclude

    study = study_of([(0.01, 0.9, 3.0, 2.0), (0.5, 0.7, 2.0, -0.5), (0.1, 0.8, 2.5, 0.0), (0.9, 0.1, 1.0, -0.1)])
    page = conclude(search, study).read_text(encoding="utf-8")
    best = load_recipe(str(search.directory / "best.yaml"))
    assert (best.objective.lambdas, best.training.estimator) == ([0.1], "rloo")
    assert "Best: trial 2" in page and "4 trials ended, 1 were given up" in page
    front = page[page.index("policy,ℓ,return") :].partition("</pre>")[0]
    assert front.count("on the front") == 3 and front.count("others") == 1, "0.9 has less return and more ℓ than 0.5"
    assert "log10 objective.lambda_sup" in page
    said = json.loads((search.directory / "summary.json").read_text(encoding="utf-8"))
    assert said["best"] == 2 and len(said["trials"]) == 5
    assert str(search.directory / "best.yaml") in capsys.readouterr().out


def test_where_no_trial_is_within_the_bound_none_is_the_best(search):
    from rlobj.tuning_report import conclude

    assert "raise --ell_bound" in conclude(search, study_of([(0.01, 0.9, 3.0, 2.0)])).read_text(encoding="utf-8")
    assert not (search.directory / "best.yaml").exists()
    with pytest.raises(ValueError, match="no trial has a result"):
        conclude(search, study_of([]))


def test_another_space_is_another_search(search):
    other = Search(search.directory, search.config, {**search.space, "training.beta": Range(0, 1)}, 4, 1.25)
    assert other.run_of(0) != search.run_of(0)
    assert Search(search.directory, search.config, search.space, 40, 1.25).run_of(0) == search.run_of(0)


# From end to end ------------------------------------------------------------------------------------------------------


def trials_in(directory: Path):
    storage = f"sqlite:///{directory / 'study.db'}"
    return optuna.load_study(study_name=None, storage=storage).get_trials()


@pytest.mark.slow
def test_a_search_that_is_stopped_goes_on(tmp_path):
    fields = {**SMALL, "training.steps": 5, "output_dir": tmp_path}
    command = [sys.executable, "-m", "rlobj", "tune", "customer-service", "--trials", "3", "--workers", "1"]
    command += ["--space", "objective.lambda_sup=log:0.01..1", "training.learning_rate=log:1e-4..1e-2"]
    command += [f"--{key}={value}" for key, value in fields.items()]
    directory = tmp_path / "customer-service-tuned"
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list(directory.glob("trials/*/trial-1/config.yaml")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=300)
    assert first.returncode == 130
    before = trials_in(directory)
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    assert set(before[0].intermediate_values) == {1, 2, 3, 4}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    after = trials_in(directory)
    assert [trial.state.is_finished() for trial in after] == [True] * 3
    assert [trial.params for trial in after[:2]] == [trial.params for trial in before], "the second went on"
    assert len(list(directory.rglob("warm_start/checkpoints"))) == 0
    assert len(list(directory.glob("shared/reward_model/model.safetensors"))) == 1
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "return against ℓ" in page and "task success against training.learning_rate" in page
