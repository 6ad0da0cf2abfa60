"""Reward models from scores, outcomes and labels; normalisation; ensembles."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest
from test_reward_training import WORDS, new_model, red_over_blue, tokenizer_of_tests
from test_reward_training import train as train_pairs

from reward_models import EnsembleReward, TrainedReward, load_reward, normalise, train_on_ratings
from reward_models.trained import load_trained
from reward_models.training import encode_pairs

COLOURS = ("red", "blue", "green")


def rated(n: int, seed: int, column: str, rate) -> list[dict]:
    """Answers with one colour in them, rated by it."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        colour = rng.choice(COLOURS)
        words = rng.choices([word for word in WORDS if word not in COLOURS], k=rng.randint(1, 5))
        words.insert(rng.randint(0, len(words)), colour)
        said = [{"role": "user", "content": "well ?"}, {"role": "assistant", "content": " ".join(words)}]
        rows.append({"messages": said, column: rate(colour)})
    return rows


def train(output: Path, column: str, rate, num_labels: int = 1, **config):
    tokenizer = tokenizer_of_tests()
    rows, held_out = rated(480, 1, column, rate), rated(90, 2, column, rate)
    settings = {"use_cpu": True, "learning_rate": 1e-2, "num_train_epochs": 3, **config}
    return train_on_ratings(new_model(tokenizer, num_labels), tokenizer, rows, held_out, output, settings), held_out


def rewards(path: Path, rows: list[dict], **options) -> list[float]:
    return TrainedReward(path, **options)([[]] * len(rows), [row["messages"] for row in rows])


def test_scores(tmp_path):
    wanted = {"red": 2.0, "blue": -1.0, "green": 0.5}
    metrics, held_out = train(tmp_path / "model", "score", wanted.__getitem__)
    low, high = metrics["correlation_interval"]
    assert 0.8 < low < metrics["correlation"] <= high
    assert metrics["rank_correlation"] > 0.8
    errors = [abs(r - row["score"]) for r, row in zip(rewards(tmp_path / "model", held_out), held_out, strict=True)]
    assert statistics.fmean(errors) < 0.5, "scores come back in their own unit"


@pytest.mark.parametrize("values", [(True, False), (1, 0)])
def test_outcomes_give_their_log_odds(tmp_path, values):
    metrics, held_out = train(tmp_path / "model", "label", lambda colour: values[colour != "red"])
    assert metrics["accuracy_interval"][0] > 0.85 > metrics["most_frequent"] > 0.5
    assert metrics["auc"] > 0.9
    given = rewards(tmp_path / "model", held_out)
    assert all((r > 0) == bool(row["label"]) for r, row in zip(given, held_out, strict=True)) == (
        metrics["accuracy"] == 1
    )


def test_a_step_in_parts_has_the_loss_of_the_whole(tmp_path):
    """transformers adds up what each part of a step says as if it were divided by the rows of all."""
    first = []
    for name, parts in (("whole", 1), ("parts", 2)):
        size = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        found, _ = train(tmp_path / name, "score", len, logging_steps=1, max_steps=1, **size)
        first.append(found["history"][0])
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-3)
    assert first[1]["grad_norm"] == pytest.approx(first[0]["grad_norm"], rel=1e-2)


def test_any_label_of_a_classifier_is_a_reward(tmp_path):
    metrics, held_out = train(tmp_path / "model", "label", str, num_labels=3)
    assert metrics["accuracy_interval"][0] > 0.85
    odds = {name: rewards(tmp_path / "model", held_out, label=name) for name in COLOURS}
    sure = {name: rewards(tmp_path / "model", held_out, label=name, output="probability") for name in COLOURS}
    for i, row in enumerate(held_out):
        assert sum(sure[name][i] for name in COLOURS) == pytest.approx(1, abs=1e-4)
        p = sure[row["label"]][i]
        if 0.01 < p < 0.99:
            assert odds[row["label"]][i] == pytest.approx(math.log(p / (1 - p)), abs=1e-3)
    with pytest.raises(ValueError, match=r"label is None.*expected one of blue, green, red"):
        TrainedReward(tmp_path / "model")
    with pytest.raises(ValueError, match="output is 'logit': expected one of log_odds, probability"):
        TrainedReward(tmp_path / "model", label="red", output="logit")
    by_name = load_reward(str(tmp_path / "model"), {"label": "red", "output": "probability"})
    assert by_name(prompts=[[]], completions=[held_out[0]["messages"]]) == [pytest.approx(sure["red"][0], abs=1e-5)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "0 rows to train on"),
        ([{"messages": []}], r"train_rows\[0\] has the columns \['messages'\]: expected score .* or label"),
        ([{"messages": [], "score": "3"}], r"train_rows\[0\] has the score '3': expected a finite number"),
        ([{"messages": [], "score": math.nan}], r"has the score nan"),
        ([{"messages": [], "score": 1.0}, {"messages": []}], r"train_rows\[1\] has nothing in 'score'"),
        ([{"messages": [], "label": "a"}], r"the labels to train on are \['a'\]: expected at least two"),
        ([{"label": 1}, {"label": 0}], "row 0 has the columns .*expected messages, or prompt and completion"),
    ],
)
def test_ratings_that_are_none(tmp_path, rows, words):
    tokenizer = tokenizer_of_tests()
    with pytest.raises(ValueError, match=words):
        train_on_ratings(new_model(tokenizer), tokenizer, rows, rows, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_margins_widen_the_gap(tmp_path):
    pairs, held_out = red_over_blue(480, seed=1), red_over_blue(60, seed=2)
    gaps = []
    for name, margin in (("none", None), ("wide", 3.0)):
        rows = [pair if margin is None else {**pair, "margin": margin} for pair in pairs]
        train_pairs(tmp_path / name, rows, held_out, learning_rate=1e-2)
        reward = TrainedReward(tmp_path / name)
        chosen, rejected = (reward([[]] * 60, [pair[side] for pair in held_out]) for side in ("chosen", "rejected"))
        gaps.append(statistics.fmean(chosen) - statistics.fmean(rejected))
    assert gaps[1] > gaps[0] + 1


@pytest.mark.parametrize(
    ("margins", "words"),
    [((1.0, None), "a margin in 1 of 2 pairs: expected all or none"), ((1.0, "2"), r"pairs\[1\] has the margin '2'")],
)
def test_margins_that_are_none(margins, words):
    pairs = [{**pair, "margin": margin} for pair, margin in zip(red_over_blue(2, seed=1), margins, strict=True)]
    with pytest.raises(ValueError, match=words):
        encode_pairs(tokenizer_of_tests(), pairs, None, "pairs")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "reward_model"
    for seed in range(3):
        pairs = red_over_blue(100, seed=seed)
        train_pairs(folder / f"member-{seed}", pairs, pairs[:10], seed=seed)
    return folder


def conversations(n: int, seed: int):
    pairs = red_over_blue(n, seed)
    return [(pair["chosen"][:1], pair[side][1:]) for pair in pairs for side in ("chosen", "rejected")]


def test_normalised_on_what_it_was_fitted_to(ensemble, tmp_path):
    path = ensemble / "member-0"
    said = conversations(50, seed=7)
    prompts, completions = map(list, zip(*said, strict=True))
    raw = TrainedReward(path)(prompts, completions)
    scores = normalise(path, said)(prompts, completions)
    assert statistics.fmean(scores) == pytest.approx(0, abs=1e-4)
    assert statistics.pstdev(scores) == pytest.approx(1, abs=1e-4)
    assert TrainedReward(path)(prompts, completions) == scores, "kept with the model"
    assert TrainedReward(path, raw=True)(prompts, completions) == pytest.approx(raw)
    again = normalise(path, said)  # fitted to raw scores, not to normalised ones
    assert again(prompts, completions) == pytest.approx(scores, abs=1e-5)
    with pytest.raises(ValueError, match="4 conversations one score"):
        normalise(path, said[:1] * 4)
    # a model that begins with these weights has scores of its own
    pairs = red_over_blue(40, seed=1)
    from reward_models import train_reward_model

    train_reward_model(str(path), tokenizer_of_tests(), pairs, pairs, tmp_path / "next", {"use_cpu": True})
    assert TrainedReward(tmp_path / "next").mean == 0


def test_an_ensemble_is_the_mean_less_kappa_spreads(ensemble):
    said = conversations(10, seed=8)
    prompts, completions = map(list, zip(*said, strict=True))
    members = [TrainedReward(ensemble / f"member-{i}")(prompts, completions) for i in range(3)]
    opinions = list(zip(*members, strict=True))
    logged = {}
    for kappa in (0.0, 1.5):
        reward = load_reward(str(ensemble), {"kappa": kappa})
        expected = [statistics.fmean(each) - kappa * statistics.pstdev(each) for each in opinions]
        given = reward(prompts=prompts, completions=completions, log_metric=logged.__setitem__)
        assert given == pytest.approx(expected, abs=1e-4)
    assert logged["reward/ensemble/std"] == pytest.approx(statistics.fmean(map(statistics.pstdev, opinions)), abs=1e-4)
    assert isinstance(load_trained(ensemble), EnsembleReward)
    assert isinstance(load_trained(ensemble / "member-1"), TrainedReward)
    with pytest.raises(ValueError, match="kappa is -1"):
        load_trained(ensemble, kappa=-1)
    with pytest.raises(ValueError, match="has 1 members: expected at least 2"):
        EnsembleReward([ensemble / "member-0"])
