"""Supervised tasks from files to reports."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlobj import __version__
from rlobj.cli import main
from rlobj.fit_config import FitConfig
from rlobj.fit_data import augmented, classified, read_synonyms, tagged, written
from rlobj.fit_tasks import TextClassification
from rlobj.fitting import fit
from rlobj.measures import classification, entities, regression
from rlobj.prediction import Predictor
from rlobj.progress import StopWhenAsked
from rlobj.recipes import read_recipe
from rlobj.runs import read_outputs
from rlobj.stages import Interrupted

COLOURS, THINGS = ["red", "green", "blue"], ["box", "door", "boat", "hat"]
SMALL = {
    "policy.hidden_size": 32, "policy.layers": 1, "policy.heads": 2, "policy.max_length": 32, "policy.vocab_size": 350,
    "fit.epochs": 4, "fit.batch_size": 16, "fit.learning_rate": 5e-3,
}  # fmt: skip


def rows(n: int = 200) -> list[dict[str, Any]]:
    rng = random.Random(0)
    made = []
    for _ in range(n):
        colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
        words = ["see", "the", colour, thing, "over", "there"][rng.randrange(2) :]
        tags = [{colour: "B-thing", thing: "I-thing"}.get(word, "O") for word in words]
        made.append(
            {"text": " ".join(words), "label": colour, "score": 100.0 + 10 * COLOURS.index(colour), "words": words,
             "tags": tags}
        )  # fmt: skip
    return made


@pytest.fixture
def config(tmp_path: Path):
    """Makes the configuration of a small task on a file."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))

    def make(task: str = "text-classification", **settings: Any) -> FitConfig:
        named = {"task": task, "data.train": path, "output_dir": tmp_path / "runs", "name": "small", **SMALL}
        named |= {key.replace("__", "."): value for key, value in settings.items()}
        return read_recipe(FitConfig, "bert-classifier", [f"--{key}={value}" for key, value in named.items()])

    return make


def measured(report: Path, part: str = "test") -> dict[str, Any]:
    table = json.loads((report.parent / "summary.json").read_text())["table"]
    return next(row for row in table if row["name"] == part)


def test_labels_of_texts_are_learned_and_reported(config) -> None:
    report = fit(config(fit__epochs=8))
    assert measured(report)["accuracy"][1] > 0.6, "the whole interval above chance"
    page = report.read_text()
    for said in (
        "macro_f1",
        "By label: validation",
        "By label: test",
        "confusion matrix, test",
        "training loss",
        "f1-score",
    ):
        assert said in page
    model = AutoModelForSequenceClassification.from_pretrained(report.parent / "model")
    assert sorted(model.config.label2id) == sorted(COLOURS)


def test_the_report_says_how_it_was_trained_and_how_to_do_so_again(config, capsys) -> None:
    report = fit(config(fit__epochs=1, fit__trainer__weight_decay=0.1, seed=3))
    page, directory = report.read_text(), report.parent
    for said in (
        "<dt>learning rate</dt><dd>0.005</dd>",
        "<dt>epochs</dt><dd>1 of 1, 10 optimiser steps</dd>",
        "<dt>batch</dt><dd>16 rows</dd>",
        "weight_decay 0.1",
        "<dt>seed</dt><dd>3</dd>",
        f"rlobj {__version__}, torch {torch.__version__}, transformers",
        f"<dt>made by</dt><dd>rlobj fit {directory / 'config.yaml'}</dd>",
    ):
        assert said in page
    assert "supervised: 10 steps in" in capsys.readouterr().out
    assert main(["fit", str(directory / "config.yaml")]) == 0
    assert "done before, inputs unchanged" in capsys.readouterr().out


def test_a_model_that_tells_nothing_apart_is_told_of(config, capsys) -> None:
    report = fit(config(fit__learning_rate=1e-9, fit__epochs=1))
    warning = re.search(r"warning: the model says '(\w+)' of every row of the .*test data", capsys.readouterr().out)
    assert warning and warning[1] in COLOURS and "Warning: the model says" in report.read_text()
    columns = {"data__text_column": "words", "data__label_column": "tags"}
    fit(config("token-classification", **columns, fit__epochs=6, name="tagged"))
    assert "warning" not in capsys.readouterr().out
    alike = classification(np.array([0, 1, 1]), np.array([[2.0, 1.0]] * 3), ["a", "b"], resamples=0)
    assert alike.same == "says 'a' of every row"
    assert not classification(np.array([0, 0]), np.array([[2.0, 1.0]] * 2), ["a", "b"], resamples=0).same
    assert entities([["B-x", "O"]], [["O", "O"]], [0.1], resamples=0).same == "finds no entity in any row"
    assert not entities([["O", "O"]], [["O", "O"]], [0.1], resamples=0).same, "there is none"
    assert regression(np.array([1.0, 2.0]), np.array([1.5, 1.5]), resamples=0).same == "says 1.5 of every row"


@pytest.mark.parametrize("task", ["text-classification", "regression", "token-classification"])
def test_ell_is_divided_by_the_whole_batch_however_it_is_split(config, task) -> None:
    columns = {"regression": {"data__label_column": "score"},
               "token-classification": {"data__text_column": "words", "data__label_column": "tags"}}  # fmt: skip
    settings = {"data__limit": 20, "fit__epochs": 1, "fit__trainer__logging_steps": 1, **columns.get(task, {})}
    found = []
    for size, parts in ((16, 1), (4, 4)):
        split = {"fit__batch_size": size, "fit__trainer__gradient_accumulation_steps": parts, "name": f"in-{parts}"}
        outputs = read_outputs(fit(config(task, **split, **settings)).parent / "model")
        assert outputs["best"]["step"] == 1, "16 rows of the 20 are for training"
        found.append(next(log for log in outputs["history"] if "loss" in log))
    one, four = found
    assert four["loss"] == pytest.approx(one["loss"], rel=0.3), "but for dropout"
    assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.5)


def test_the_best_epoch_is_kept_not_the_last(config) -> None:
    # the learning rate is so high at the end that the model is destroyed again
    report = fit(
        config(fit__trainer__lr_scheduler_type="constant", fit__metric="ell", fit__learning_rate=0.02, fit__epochs=6)
    )
    outputs = read_outputs(report.parent / "model")
    losses = [log["eval_ell"] for log in outputs["history"] if "eval_ell" in log]
    assert len(losses) == 6 and min(losses) < losses[-1]
    assert outputs["best"]["value"] == pytest.approx(min(losses))
    assert measured(report, "validation")["ell"][0] == pytest.approx(min(losses), rel=1e-5)


def test_early_stopping_and_fields_of_transformers(config) -> None:
    settings = {"fit__patience": 1, "fit__epochs": 8, "fit__learning_rate": 1e-9}
    for name, value in {"optim": "adafactor", "lr_scheduler_type": "cosine", "label_smoothing_factor": 0.1}.items():
        settings[f"fit__trainer__{name}"] = value
    outputs = read_outputs(fit(config(**settings)).parent / "model")
    assert sum("eval_accuracy" in log for log in outputs["history"]) == 2, "the second epoch is no better"


def test_words_are_tagged(config) -> None:
    settings = {"data__text_column": "words", "data__label_column": "tags"}
    found = measured(fit(config("token-classification", **settings, fit__epochs=6)))
    assert found["f1"][1] > 0.6


def test_numbers_are_learned_in_their_own_units(config) -> None:
    report = fit(config("regression", data__label_column="score", fit__epochs=8))
    found = measured(report)
    assert found["spearman"][1] > 0.5
    assert found["mae"][0] < 6.6, "less than the mean of all would have: (10 + 0 + 10) / 3"
    said = Predictor(report.parent / "model")([{"text": "see the red box"}, {"text": "see the blue box"}])
    low, high = (row["score"] for row in said)
    assert 90 < low < high < 130, "the saved model says units of the data"


def test_text_is_learned(config) -> None:
    report = fit(config("language-modeling"))
    found = measured(report)
    assert found["perplexity"][0] < 6, "six words, some of them sure: far from the 350 of the vocabulary"


def test_what_was_done_is_not_done_again(config, capsys) -> None:
    fit(config(fit__epochs=1))
    capsys.readouterr()
    fit(config(fit__epochs=1))
    assert "done before, inputs unchanged" in capsys.readouterr().out


def test_an_interrupted_training_goes_on_to_the_same_weights(config, tmp_path, monkeypatch) -> None:
    settings = {"data__augment__drop": 0.2, "fit__trainer__save_strategy": "steps", "fit__trainer__save_steps": 4}
    settings |= {"fit__trainer__eval_strategy": "steps", "fit__trainer__eval_steps": 4, "fit__epochs": 2}
    straight = fit(config(name="straight", **settings))

    on_step_end = StopWhenAsked.on_step_end

    def ask_to_stop(callback, args, state, control, **kwargs):
        callback.stop.requested = state.global_step == 6
        on_step_end(callback, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopWhenAsked, "on_step_end", ask_to_stop)
        with pytest.raises(Interrupted):
            fit(config(name="halting", **settings))
    halting = fit(config(name="halting", **settings))
    weights = [load(report) for report in (straight, halting)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def load(report: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForSequenceClassification.from_pretrained(report.parent / "model")
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.train=null"], "data.train is null: text-classification needs labelled rows"),
        (["--fit.metric=f1"], "fit.metric is 'f1': expected one of accuracy, macro_f1, weighted_f1, ell"),
        (["--fit.trainer.optm=sgd"], "transformers.TrainingArguments has no such field; did you mean 'optim'"),
        (["--fit.trainer.learning_rate=1"], "use fit.learning_rate instead"),
        (["--fit.trainer.optim=sdg"], "sdg"),
        (["--data.augment.swop=0.1"], "did you mean 'swap'"),
        (["--data.augment.drop=1"], "data.augment.drop is 1: expected a share"),
        (["--policy.heads=3"], "policy.hidden_size is 128: expected a multiple of 3"),
        (["--data.label_column=lable"], "data.label_column is 'lable'.*did you mean 'label'"),
        (["--data.only.text=nothing"], "has no rows with {'text': 'nothing'}"),
        (["--task=token-classification"], "expected a list of words"),
        (["--task=regression"], "expected a finite number"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(arguments, message, tmp_path, capsys) -> None:
    assert main(["fit", "bert-classifier", f"--output_dir={tmp_path}", *arguments]) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err.replace("\n", " ")), said.err
    assert "[1/1]" not in said.out


def test_a_test_label_that_cannot_be_learned_is_refused(config, tmp_path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": "violet"}\n{"text": "b", "label": "red"}\n')
    with pytest.raises(ValueError, match=r"data.test has the labels violet, which data.train .* has not"):
        fit(config(data__test=tmp_path / "test.jsonl"))


def test_a_leak_of_the_data_is_told(config) -> None:
    assert "rows of the test stand in the training data, too" in TextClassification(config()).facts()["leak"]


def test_few_rows_of_each_label_and_rows_with_given_values(config) -> None:
    parts, names = classified(config(data__rows_per_label=3).data, seed=0)
    assert len(parts["train"]) == 9 and names == sorted(COLOURS)
    parts, _ = classified(config(data__only__score=100.0, data__label_column="text").data, seed=0)
    assert all("red" in example.x for example in parts["train"])


def test_rows_of_tags_are_checked(config, tmp_path) -> None:
    data = config("token-classification", data__text_column="words", data__label_column="tags").data
    _, names = tagged(data, seed=0)
    assert names == ["O", "B-thing", "I-thing"]
    for row, message in (
        ({"words": ["a", "b"], "tags": ["O"]}, "has 2 words and 1 tags"),
        ({"words": ["a"], "tags": ["X-thing"]}, "has the tag 'X-thing'"),
        ({"words": "a", "tags": ["O"]}, "expected a list of words"),
    ):
        path = tmp_path / "bad.jsonl"
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=message):
            tagged(dataclasses.replace(data, train=str(path)), seed=0)


def test_plain_texts_and_dialogues(config, tmp_path) -> None:
    assert isinstance(written(config("language-modeling").data, 0)["train"][0].x, str)
    path = tmp_path / "dialogues.jsonl"
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    path.write_text(
        "".join(json.dumps({"messages": [{**said[0], "content": str(i)}, said[1]]}) + "\n" for i in range(9))
    )
    parts = written(config("language-modeling", data__train=path).data, 0)
    assert parts["train"][0].x[1] == said[1]
    assert {len(parts[part]) for part in ("validation", "test")} == {1}


def test_augmentation(tmp_path) -> None:
    text = "a b c d e f g h"
    assert augmented(text, random.Random(0)) == text
    assert augmented("ab", random.Random(0), drop=0.999) in ("a", "b"), "never empty"
    dropped = [len(augmented(text, random.Random(i), drop=0.25).split()) for i in range(400)]
    assert sum(dropped) / 400 == pytest.approx(6, abs=0.3)
    swapped = augmented(text, random.Random(1), swap=0.5)
    assert swapped != text and sorted(swapped) == sorted(text)
    path = tmp_path / "synonyms.txt"
    path.write_text("big, large, huge\nred,crimson\n")
    synonyms = read_synonyms(str(path))
    assert synonyms["large"] == ["big", "huge"]
    found = {augmented("a big dog", random.Random(i), synonyms=synonyms) for i in range(50)}
    assert found == {"a big dog", "a large dog", "a huge dog"}
    assert sorted(augmented("小明看書", random.Random(3), swap=0.5)) == sorted("小明看書"), "characters, without spaces"
