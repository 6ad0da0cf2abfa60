"""Policies between two λ: their parameters, how far training is from them, and what is said of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlobj.compared import Comparison
from rlobj.encoder_policy import as_one_token_policy
from rlobj.policies import make_causal, make_encoder, make_tokenizer
from rlobj.recipes import load_recipe
from rlobj.results import WARM_START, lambda_title
from rlobj.runs import mark_done, stage_key
from rlobj.soup import Soup, above_line, ends_of, in_words, interpolated, taste

SIZE = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32}
NAN = math.nan


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_soup_is_between_its_ends_in_every_parameter(kind):
    tokenizer = make_tokenizer(["one two three"], vocab_size=300, max_length=32)
    make = {
        "causal": lambda seed: make_causal(tokenizer, **SIZE, seed=seed),
        "encoder": lambda seed: as_one_token_policy(make_encoder(tokenizer, ["a", "b"], **SIZE, seed=seed)),
    }[kind]
    first, second = make(0), make(1)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    soup = interpolated(first, second, 0.25)
    for name, value in second.named_parameters():
        torch.testing.assert_close(soup.get_parameter(name), 0.75 * before[name] + 0.25 * value)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items()), "the end is left alone"
    for share, end in ((0.0, first), (1.0, second)):
        end_of_soup = interpolated(first, second, share).state_dict()
        assert all(torch.equal(value, end_of_soup[name]) for name, value in end.state_dict().items())


def test_policies_of_other_shapes_make_no_soup():
    tokenizer = make_tokenizer(["one two three"], vocab_size=300, max_length=32)
    first, second = (make_causal(tokenizer, **{**SIZE, "hidden_size": width}, seed=0) for width in (16, 32))
    with pytest.raises(ValueError, match=r"differ in \['model\..*same warm start"):
        interpolated(first, second, 0.5)


def test_the_ends_are_the_smallest_and_the_largest_number():
    assert ends_of([0.3, "lagrange:factor=1.1", 1.0, 0.0]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="needs two numbers among lambdas to stand between; there are 1"):
        ends_of([0.3, "lagrange:factor=1.1"])


def test_the_distance_is_taken_at_the_same_ell():
    line = [(3.0, 10.0), (1.0, 4.0), (2.0, 8.0)]  # in any order
    assert above_line((1.5, 7.0), line) == pytest.approx(1.0)  # the line is at 6
    assert above_line((2.5, 8.0), line) == pytest.approx(-1.0)
    assert above_line((9.0, 11.0), line) == pytest.approx(1.0)  # beyond its end: that end


def test_trained_policies_are_held_against_the_soup_of_their_own_seed(tmp_path: Path):
    lambdas = [0.0, 0.1, 1.0]
    comparison = Comparison(tmp_path, load_recipe("customer-service"), lambdas, seeds=2, ell_bound=1.25, soup=1)
    results = {}
    for trial in comparison.trials:
        # ends (ℓ, return): (3, 1) and (1, 0) plus the seed; trained in between (2, 1) and (2, 2)
        ell, back = {0.0: (3.0, 1.0), 0.1: (2.0, 1.0 + trial.seed), 1.0: (1.0, 0.0)}[trial.lambda_sup]
        values = {"ell": [ell], "return": [back + trial.seed], "success": [0.5]}
        results[trial] = {WARM_START: {"per_episode": values}, lambda_title(trial.lambda_sup): {"per_episode": values}}
        mark_done(trial.directory / "evaluation", "any", {}, {"policies": [trial.name]})
    ends = [[t for t in comparison.trials if t.seed == seed and t.lambda_sup in (0.0, 1.0)] for seed in (0, 1)]
    for seed, (low, high) in enumerate(ends):
        key = stage_key({end.name: {"policies": [end.name]} for end in (low, high)})
        between = {"per_episode": {"ell": [2.0], "return": [0.5 + seed], "success": [0.5]}}
        mark_done(tmp_path / "soup" / f"seed-{seed}" / "0.500000", key, between)
    soup = taste(comparison, results)
    assert soup is not None and soup.seeds == 2
    assert soup.points[0.5]["return"][0] == pytest.approx(1.0)
    # above the line by 1 − 0.5 with seed 0, by 3 − 1.5 with seed 1: 1.0 on average
    assert soup.gaps[0.1][0] == pytest.approx(1.0)
    mark_done(ends[0][0].directory / "evaluation", "any", {}, {"policies": ["trained again"]})
    assert taste(comparison, results).seeds == 1, "a soup of policies that are no more does not count"
    assert taste(replace(comparison, soup=2), results) is None


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ((0.5, 0.2, 0.8), "would not have been enough"),
        ((-0.5, -0.8, -0.2), "would have given more"),
        ((0.1, -0.2, 0.4), "tell no difference"),
        ((0.1, NAN, NAN), "one seed cannot tell"),
    ],
)
def test_what_is_said_of_a_soup(gap, words):
    said = in_words(Soup((0.0, 1.0), 3, {0.5: {}}, {0.1: gap, 0.3: (0.01, -0.1, 0.1)}))
    assert words in said and f"that of λ = 0.1, {gap[0]:+.2f}" in said and "λ = 0.3: +0.01 [-0.10, +0.10]" in said
    assert "no λ between the two was trained" in in_words(Soup((0.0, 1.0), 3, {0.5: {}}, {}))
