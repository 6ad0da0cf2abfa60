"""Several λ and seeds from one warm start: the statistics, the words, and a small comparison from end to end."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from test_pipeline import SMALL
from transformers import AutoModelForCausalLM

from rlobj.cli import main
from rlobj.compared import Summary, Trial, find, load_comparison, recommend, summarise
from rlobj.comparison import compare
from rlobj.intervals import interquartile_mean, over_seeds, probability_of_improvement, share_above
from rlobj.recipes import load_recipe
from rlobj.results import WARM_START, lambda_title
from rlobj.soup import cook

# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 8, 20])
def test_the_interquartile_mean_is_that_of_the_middle_half(n):
    values = np.random.default_rng(n).normal(size=n)
    middle = sorted(values)[n // 4 : n - n // 4]
    assert interquartile_mean(values) == pytest.approx(sum(middle) / len(middle))


def test_one_odd_seed_moves_the_interquartile_mean_little():
    assert interquartile_mean([0.5, 0.5, 0.5, 0.5, -100.0]) == 0.5


def coverage(seeds: int, experiments: int = 200) -> float:
    """How often the interval over seeds holds the true mean, 0.5 + seed's own deviation, of 0/1 episodes."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(experiments):
        rates = np.clip(0.5 + 0.1 * rng.normal(size=seeds), 0, 1)
        runs = [rng.binomial(1, rate, size=100).astype(float) for rate in rates]
        _, low, high = over_seeds(runs)
        held += low <= 0.5 <= high
    return held / experiments


def test_the_interval_over_seeds_covers_the_truth():
    assert 0.9 <= coverage(seeds=20) <= 0.99
    # of few seeds a bootstrap sees too little; resampling the episodes as well makes up for some of it
    assert coverage(seeds=5) >= 0.85


def test_one_seed_has_no_interval_over_seeds():
    value, low, high = over_seeds([[0.5, 0.5]], interquartile_mean)
    assert value == 0.5
    assert math.isnan(low) and math.isnan(high)


def test_probability_of_improvement_counts_pairs():
    value, low, high = probability_of_improvement([1.0, 2.0, 3.0], [0.0, 2.0])
    assert value == pytest.approx((1 + 1.5 + 2) / 6)
    assert low <= value <= high
    assert probability_of_improvement([1, 2], [3, 4])[0] == 0
    assert math.isnan(probability_of_improvement([1.0], [0.0])[1])


def test_a_performance_profile_is_the_share_above_a_level():
    share, low, high = share_above([0.1, 0.2, 0.3, 0.4], 0.25)
    assert share == 0.5
    assert 0 <= low < 0.5 < high <= 1
    # Wilson at 2 of 2: (1 + z²/4 ± z √(z²/16)/2) / (1 + z²/2), whose ends are 1 / (1 + z²/2) and 1
    assert share_above([0.5, 0.6], 0.1) == pytest.approx((1, 1 / (1 + 1.959964**2 / 2), 1))
    assert math.isnan(share_above([0.5], 0.1)[1])


# Words ----------------------------------------------------------------------------------------------------------------


def summary(value, success, ell=1.0, seeds=5) -> Summary:
    means = {"success": success, "ell": (ell, ell, ell)}
    return Summary(value, seeds, means, means, None, None, False)


WARM = summary(None, (0.3, 0.25, 0.35))
NAN = math.nan


@pytest.mark.parametrize(
    ("trained", "chosen", "words"),
    [
        ([summary(0.0, (0.9, 0.85, 0.95), 5.0), summary(0.1, (0.7, 0.6, 0.8))], 0.1, "overlap"),
        ([summary(0.0, (0.9, 0.85, 0.95)), summary(0.1, (0.7, 0.6, 0.8))], 0.0, "above those of all others"),
        (
            [summary(0.0, (0.8, 0.7, 0.9)), summary(0.1, (0.7, 0.6, 0.8))],
            0.0,
            "Not enough seeds to tell it from λ = 0.1",
        ),
        ([summary(0.0, (0.8, 0.7, 0.9)), summary(0.1, (0.8, 0.7, 0.9))], 0.1, "Not enough seeds"),
        ([summary(0.0, (0.8, NAN, NAN), seeds=1)], 0.0, "One seed"),
        ([summary(0.0, (0.9, 0.85, 0.95), seeds=2)], 0.0, "2 seeds are few"),
        ([summary(0.0, (0.9, 0.8, 1.0), 5.0)], None, "No λ is recommended"),
    ],
)
def test_the_recommendation(trained, chosen, words):
    best, said = recommend([WARM, *trained], ell_bound=1.25)
    assert (best.lambda_sup if best else None) == chosen
    assert words in said


def test_a_dominated_lambda_is_not_on_the_front():
    def result(value, level, ell):
        per_episode = {"success": [level, level], "return": [level, level], "ell": [ell]}
        return {WARM_START: {"per_episode": per_episode}, lambda_title(value): {"per_episode": per_episode}}

    levels = {0.0: (0.9, 3.0), 0.1: (0.8, 1.0), 1.0: (0.5, 2.0)}
    found = summarise({Trial(v, seed, Path()): result(v, *ends) for v, ends in levels.items() for seed in range(2)})
    assert {s.lambda_sup for s in found if s.on_front} == {0.0, 0.1}
    assert found[3].better_than_zero[0] == 0
    assert found[1].better_than_warm_start == share_above([0.9, 0.9], 0.9), "as good is not better"


# From end to end ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    settings = {**SMALL, "output_dir": tmp_path_factory.mktemp("runs")}
    return load_recipe("customer-service", [f"--{key}={value}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def compared(recipe):
    return compare(recipe, [0.0, "lagrange:factor=1.1", 1.0], seeds=1, soup=2).parent


def test_it_writes_a_table_for_people_and_for_programs(compared):
    with open(compared / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["lambda"], row["policy"]) for row in rows] == [
        ("0", "warm start"), ("0", "λ = 0"),
        ("lagrange:factor=1.1", "warm start"), ("lagrange:factor=1.1", "λ = lagrange:factor=1.1"),
        ("1", "warm start"), ("1", "λ = 1"),
    ]  # fmt: skip
    assert Dataset.from_parquet(str(compared / "results.parquet")).num_rows == len(rows)
    said = json.loads((compared / "summary.json").read_text(encoding="utf-8"))
    assert "One seed" in said["recommendation"] or "No λ" in said["recommendation"]
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "return against ℓ" in page
    assert "rlobj compare" in page


def test_a_soup_is_judged_once_and_drawn_beside_what_was_trained(compared, capsys):
    places = sorted(compared.glob("soup/seed-0/*/stage.json"))
    assert [place.parent.name for place in places] == ["0.333333", "0.666667"]
    values = json.loads(places[0].read_text(encoding="utf-8"))["outputs"]["per_episode"]
    assert len(values["return"]) == len(values["kl"]) == int(SMALL["env.eval_episodes"])
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert page.count("soup of λ = 0 and λ = 1,") >= 2, "its numbers stand behind the picture"
    assert "--soup 2" in page
    before = [place.stat().st_mtime_ns for place in places]
    cook(load_comparison(compared))
    assert [place.stat().st_mtime_ns for place in places] == before and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="two numbers among lambdas"):
        compare(load_comparison(compared).config, [0.0, "lagrange:factor=1.1"], 1, soup=2)


def test_the_report_is_written_again_from_the_results(compared, capsys):
    page = compared / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert main(["report", str(compared)]) == 0
    assert page.read_text(encoding="utf-8") == before
    assert "performance profile" in before and "Interquartile means" in before
    assert str(page) in capsys.readouterr().out
    trial = compared / "trials/lambda=0/seed-0"
    (trial / "report.html").unlink()
    assert main(["report", str(trial)]) == 0
    assert "warm start" in (trial / "report.html").read_text(encoding="utf-8")


def test_two_comparisons_stand_side_by_side(compared, tmp_path, capsys):
    other = shutil.copytree(compared, tmp_path / "other")
    assert main(["report", str(compared), str(other)]) == 0
    page = (compared / "against-other.html").read_text(encoding="utf-8")
    for name in (compared.name, "other"):
        assert f"{name}: λ = 0" in page and f"{name}: λ = lagrange:factor=1.1" in page
    assert page.count("return against ℓ") >= 1
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_a_comparison_without_a_result_says_where_to_look(compared, tmp_path):
    other = shutil.copytree(compared, tmp_path / "other")
    for stage in other.glob("trials/*/*/evaluation"):
        shutil.rmtree(stage)
    with pytest.raises(ValueError, match=r"no trial has a result.*seed-0\.log"):
        find(load_comparison(other))


def test_the_warm_start_is_trained_once(compared):
    assert list(compared.rglob("reward_model/model.safetensors")) == [
        compared / "shared/reward_model/model.safetensors"
    ]
    warm = [json.loads(path.read_text())["outputs"]["says"] for path in compared.rglob("warm_start/stage.json")]
    assert len(warm) == 4


def test_another_seed_trains_that_alone_and_is_another(recipe, compared, capsys):
    before = {path: path.stat().st_mtime_ns for path in compared.rglob("policies/*/model.safetensors")}
    said = {path: path.read_bytes() for path in compared.rglob("seed-*.log")}
    compare(recipe, [0.0], seeds=2)
    assert "2 trials, 1 of them done before" in capsys.readouterr().out
    assert all(path.read_bytes() == text for path, text in said.items()), "no process was started for it"
    after = {path: path.stat().st_mtime_ns for path in compared.rglob("policies/*/model.safetensors")}
    assert len(after) == len(before) + 1
    assert all(after[path] == when for path, when in before.items())
    first, second = (compared / f"trials/lambda=0/seed-{seed}/policies/lambda=0/model.safetensors" for seed in (0, 1))
    assert first.read_bytes() != second.read_bytes()
    assert AutoModelForCausalLM.from_pretrained(compared / "best_policy").config.vocab_size > 0


def test_a_trial_that_fails_is_told_and_ends_no_other(recipe, tmp_path, capsys):
    (tmp_path / "form.py").write_text("def breaks(state, ell):\n    raise RuntimeError('no more')\n")
    broken = replace(recipe, name="broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        patch.syspath_prepend(tmp_path)
        page = compare(broken, [0.0, "form:breaks"], seeds=1)
    assert "λ = form:breaks, seed 0 failed" in capsys.readouterr().out
    assert "form:breaks, seed 0 has no result" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lambdas", "0,-1"], "-1"),
        (["--lambdas", "0,0"], "once"),
        (["--lambdas", "0", "--seeds", "0"], "seeds is 0"),
        (["--lambdas", "0", "--ell_bound", "0"], "ell_bound is 0"),
        (["--lambdas", "linaer:start=1"], "linear"),
        (["--lambdas", "0", "--training.stesp", "3"], "training.steps"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(arguments, words, capsys, tmp_path):
    assert main(["compare", "customer-service", *arguments, f"--output_dir={tmp_path}"]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
