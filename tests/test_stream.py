"""The stream behind ℓ: its order, its parts, and its sources."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from rlobj.one_run import Run
from rlobj.policies import make_tokenizer
from rlobj.policy_stage import supervised_rows
from rlobj.recipes import load_recipe
from rlobj.stream import Source, SupervisedStream
from rlobj.supervised import SupervisedRow
from rlobj.tasks import make_task


def rows(n, first=0):
    return [SupervisedRow([1, first + i], [-100, first + i]) for i in range(n)]


def names(batch_rows):
    return [row.input_ids[1] for row in batch_rows]


def test_every_epoch_has_each_row_once_and_in_an_order_of_its_own():
    stream = SupervisedStream(rows(10), 5, seed=0)
    epochs = [[*names(stream.batch(2 * n).rows), *names(stream.batch(2 * n + 1).rows)] for n in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2 and epochs[0] != epochs[1]


@pytest.mark.parametrize("sources", [rows(7), [Source(rows(7), 1), Source(rows(5, 100), 3)]])
def test_parts_share_a_batch_out_without_overlap_wherever_it_is_begun(sources):
    stream = SupervisedStream(sources, 6, seed=2)
    in_order = [names(stream.batch(step).rows) for step in range(400)]
    for step in (399, 170, 171, 0):  # a resume begins anywhere; 400 steps are several blocks of places
        parts = [SupervisedStream(sources, 6, seed=2).batch(step, part, 4) for part in range(4)]
        assert sorted(name for part in parts for name in names(part.rows)) == sorted(in_order[step])
        assert {part.targets for part in parts} == {6}
    assert in_order != [names(SupervisedStream(sources, 6, seed=3).batch(step).rows) for step in range(400)]


def test_sources_are_drawn_as_often_as_their_weights_say_and_each_in_whole_epochs():
    stream = SupervisedStream([Source(rows(10), 1), Source(rows(4, 100), 3)], 50, seed=0)
    drawn = [name for step in range(100) for name in names(stream.batch(step).rows)]
    share = sum(name >= 100 for name in drawn) / len(drawn)
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / len(drawn)))
    for source in ([n for n in drawn if n < 100], [n for n in drawn if n >= 100]):
        counts = Counter(source).values()
        assert max(counts) - min(counts) <= 1, "no row a second time before each had its turn"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "no rows"),
        ([Source([], 1.0)], "source 0 of the supervised stream has 0 rows"),
        ([Source(rows(1), 1.0), Source(rows(1), 0.0)], "source 1 .* the weight 0.0: expected"),
        ([Source(rows(1), 1.0), *rows(1)], "mixed"),
    ],
)
def test_sources_that_are_none(sources, message):
    with pytest.raises(ValueError, match=message):
        SupervisedStream(sources, 4, seed=0)


def test_sources_in_a_recipe(tmp_path):
    dialogues = [
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": said}]
        for said in ("good day", "hello", "good good day")
    ]
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"messages": dialogue}) for dialogue in dialogues))
    file = str(tmp_path / "more.jsonl")
    sources = ["--objective.sources", json.dumps({"train": 3, file: 1}), "--data.demonstrations", "20"]
    config = load_recipe("customer-service", sources)
    tokenizer = make_tokenizer(["hello good day"], vocab_size=300, max_length=128)
    given = supervised_rows(Run(config, make_task(config)), tokenizer)
    assert [(len(source.rows), source.weight) for source in given] == [(18, 3.0), (3, 1.0)]


def test_labels_of_a_source_are_those_of_the_choices(tmp_path):
    for name, label in (("train", "b"), ("more", "b"), ("other", "c")):
        (tmp_path / f"{name}.csv").write_text(f"text,label\nx,a\ny,{label}\nz,a\nu,{label}\n")
    given = ["--data.train", str(tmp_path / "train.csv"), "--data.rows_per_label", "null"]
    config = load_recipe("banking-intents", [*given, "--objective.sources", f'{{"{tmp_path}/more.csv": 1}}'])
    (make,) = make_task(config).rows_of_source.values()
    tokenizer = make_tokenizer(["x y z u"], vocab_size=300, max_length=16)
    assert [row.labels for row in make(tokenizer)] == [[0], [1], [0], [1]]
    config = load_recipe("banking-intents", [*given, "--objective.sources", f'{{"{tmp_path}/other.csv": 1}}'])
    with pytest.raises(ValueError, match=r"with the labels \['c'\], which are no choices"):
        make_task(config)
