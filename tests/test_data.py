"""The user's files: what is read, what is refused, and with which words."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from rlobj import data
from rlobj.reading import load_rows
from rlobj.recipes import load_recipe
from rlobj.splitting import few_per_label, split_pairs, split_rows
from rlobj.tasks import _rows_in_turn, _some

ROWS = [
    {"text": "grüße, «Welt»", "label": "hello"},
    {"text": 'he said "no",\nthen left', "label": "不"},
    {"text": "tab\there\u2028there 🙂", "label": "x"},
]


def write(path: Path, rows=ROWS, *, newline: str = "\n", bom: bool = False) -> str:
    """Write rows in the format of the path's ending; return the path as text."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + newline for row in rows)
        elif kind == "json":
            file.write(json.dumps(rows, ensure_ascii=False))
        else:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="," if kind == "csv" else "\t", lineterminator=newline
            )
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def jsonl(tmp_path: Path, rows) -> str:
    return write(tmp_path / "rows.jsonl", rows)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.jsonl.gz",
        "a.json",
        "a.json.gz",
        "a.csv",
        "a.csv.gz",
        "a.tsv",
        "a.tsv.gz",
        "a.parquet",
        "A.B.JSONL",
    ],
)
def test_each_format_gives_back_what_was_written(tmp_path, name):
    source = tmp_path / name
    if name == "A.B.JSONL":
        write(tmp_path / "a.jsonl")
        (tmp_path / "a.jsonl").rename(source)
    else:
        write(source)
    assert load_rows(str(source)) == ROWS
    assert len(load_rows(str(source), 2)) == 2
    assert load_rows(str(source), 100) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_byte_order_mark_and_windows_line_ends_are_no_data(tmp_path, name):
    assert load_rows(write(tmp_path / name, newline="\r\n", bom=True)) == ROWS


def test_blank_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"a": 2}\n\n{"a": \n')
    with pytest.raises(ValueError, match="line 6 is not JSON"):
        load_rows(str(path))
    table = tmp_path / "a.csv"
    table.write_text("a,b\n\n1,2\n\n")
    assert load_rows(str(table)) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_is_replaced_and_a_whole_one_is_not(tmp_path, name):
    row = {"text": "cut \ud83d", "next": '\udc00"x', "whole": "\U0001f600", "kept": "\\ud83d", "n": [1, None]}
    path = tmp_path / name
    text = json.dumps(row, ensure_ascii=True)
    path.write_text(f"[{text}]" if name == "a.json" else text)
    expected = {**row, "text": "cut \ufffd", "next": '\ufffd"x'}
    assert load_rows(str(path)) == [expected]


def test_a_limit_is_a_sample_of_the_whole_file_in_its_order(tmp_path):
    rows = [{"n": n} for n in range(200)]
    source = jsonl(tmp_path, rows)
    some = load_rows(source, 20)
    assert some == load_rows(source, 20) == sorted(some, key=lambda row: row["n"])
    assert len({row["n"] for row in some}) == 20 and min(some[0]["n"], 199 - some[-1]["n"]) < 50
    assert sum(row["n"] >= 100 for row in some) > 3, "not the first rows alone"
    assert load_rows(source, 200) == load_rows(source, 500) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.jsonl", b"[1]\n", "line 1 is list: expected an object"),
        ("a.json", b'{"rows": []}', "holds dict: expected a list"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', r"is not JSON.*belongs in a \.jsonl file"),
        ("a.json", b"[1]", "entry 0 is int: expected an object"),
        ("a.jsonl", '{"a": "é"}'.encode("latin-1"), "is not UTF-8"),
        ("a.csv", "text\nü\n".encode("utf-16"), "is not UTF-8"),
        ("a.csv", b"text,label\nhello, you,x\n", "line 2 has another number of fields.*in quotes"),
        ("a.csv", b"text,label\nhello\n", "line 2 has another number of fields"),
        ("a.csv", b"text,label,text\na,b,c\n", "'text' more than once"),
        ("a.csv", b'text,label\n"never closed,a\nb,c\n', "line 3 cannot be read.*double"),
        ("a.csv", b"text,label\n" + b"x" * 200_000 + b",y\n", "line 2 cannot be read.*JSON lines"),
        ("a.jsonl.gz", b'{"a": 1}\n', "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": "%s"}\n' % (b"x" * 99), mtime=0)[:-9], "not a whole gzip file"),
        ("a.parquet", b"PAR1 this is none", "cannot be read as Parquet"),
        ("a.txt", b"hello\n", r"ends in '\.txt': expected one of \.jsonl"),
        ("noending", b"hello\n", "ends in ''"),
        ("a.gz", gzip.compress(b"hello\n", mtime=0), r"ends in '\.gz'"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_rows(str(path))
    assert name in str(error.value)


def test_a_source_that_is_no_file_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl' does not exist"):
        load_rows(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ValueError, match="is a directory"):
        load_rows(str(tmp_path))
    with pytest.raises(ValueError, match="limit is 0"):
        load_rows(write(tmp_path / "a.jsonl"), 0)


def test_a_data_set_has_a_split_a_limit_and_names_of_classes(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict({"text": list("abcd"), "label": [1, 0, None, -1]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("somebody/texts", 2) == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
    assert load_rows("somebody/texts:validation")[2:] == [{"text": text, "label": None} for text in "cd"]
    assert asked == [("somebody/texts", "train"), ("somebody/texts", "validation")]

    def fails(name, split):
        raise ConnectionError("no way to the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(ValueError, match=r"neither a file here nor a data set.*ConnectionError: no way to the Hub\)$"):
        load_rows("somebody/texts")


# Labelled texts -------------------------------------------------------------------------------------------------------


def test_labelled_texts(tmp_path):
    source = jsonl(tmp_path, [{"q": " a ", "y": 1}, {"q": "b", "y": " yes "}, {"q": "c", "y": True}])
    assert data.labelled(source, "q", "y") == ([" a ", "b", "c"], ["1", "yes", "True"])
    assert len(data.labelled(source, "q", "y", 2)[1]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"texts": "a", "label": "x"}], "data.text_column is 'text'.*did you mean 'texts'.*it has texts, label"),
        ([{"text": "a", "label": "x"}, {"text": "a"}], "data.label_column is 'label'.*row 1"),
        ([{"text": "a", "label": "x"}, {"text": " ", "label": "y"}], "row 1 .*text is ' '"),
        ([{"text": 3, "label": "x"}], "row 0 .*text is 3"),
        ([{"text": "a", "label": None}], "row 0 .*label is None"),
        ([{"text": "a", "label": ["x"]}], r"label is \['x'\]"),
        ([{"text": "a", "label": 0.5}], r"label is 0\.5"),
        ([{"text": "a", "label": "  "}], "label is '  '"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x "}], "all 2 rows .* have the label 'x'"),
    ],
)
def test_labels_that_nothing_can_be_learned_from(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        data.labelled(jsonl(tmp_path, rows), "text", "label")


def test_a_limit_that_leaves_one_label_is_named(tmp_path):
    source = jsonl(tmp_path, [{"text": "a", "label": label} for label in "xxy"])
    with pytest.raises(ValueError, match=r"all 1 rows .*data\.limit is 1: raise it"):
        data.labelled(source, "text", "label", 1)
    only = jsonl(tmp_path, [{"text": "a", "label": "x"}])
    with pytest.raises(ValueError, match=r"at least two$"):  # here the limit has cut nothing off
        data.labelled(only, "text", "label", 2)


# Dialogues ------------------------------------------------------------------------------------------------------------

HI = [user("hi"), assistant("hello")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": HI}, HI),
        (
            {"messages": [{"role": "system", "content": "be kind"}, *HI]},
            [{"role": "system", "content": "be kind"}, *HI],
        ),
        ({"prompt": "hi", "completion": "hello"}, HI),
        ({"prompt": [user("hi")], "completion": [assistant("hello")]}, HI),
        ({"prompt": [user("hi")], "completion": "hello"}, HI),
        ({"prompt": "hi", "chosen": "hello", "rejected": "go"}, HI),
        ({"prompt": "hi", "chosen": HI, "rejected": [user("hi"), assistant("go")]}, HI),  # the prompt again: once
        ({"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go"}, HI),
        ({"chosen": "Human: hi\n\nAssistant: hello"}, HI),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " hello"}, HI),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": "\n\nHuman: hi\n\nAssistant: hello"}, HI),
        (
            {"chosen": "\n\nHuman: a\n\nb \n\nAssistant: c\n\nHuman: d\n\nAssistant: e: Human: f"},
            [user("a\n\nb"), assistant("c"), user("d"), assistant("e: Human: f")],
        ),
        ({"messages": None, "prompt": "hi", "completion": "hello"}, HI),
        ({"prompt": "hi", "chosen": "Human: be kind"}, [user("hi"), assistant("Human: be kind")]),
    ],
)
def test_dialogues_in_each_shape(tmp_path, row, expected):
    found = data.dialogues(jsonl(tmp_path, [row]))
    assert found == ([expected], 0, "")


def test_dialogues_without_a_lesson_are_left_out_and_counted(tmp_path):
    rows = [
        {"messages": HI},
        {"messages": [user("hi")]},
        {"messages": [assistant("hello")]},
        {"messages": [user("hi"), assistant(None)]},
        {"messages": [user("hi"), {"role": "gpt", "content": "hello"}]},
    ]
    found = data.dialogues(jsonl(tmp_path, rows))
    assert found.messages == [HI] and found.dropped == 4
    assert (
        found.why
        == "2 without an assistant's reply to anything, 1 with an empty message, 1 with the unknown role 'gpt'"
    )
    with pytest.raises(ValueError, match="no dialogue that can be learned from: 2 without an assistant's reply"):
        data.dialogues(jsonl(tmp_path, rows[1:3]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 0 .*has the columns text: expected messages, or turns, or prompt and completion"),
        ({"prompt": "a"}, "has the columns prompt"),
        ({"messages": [{"from": "human", "value": "hi"}]}, r"expected a list of \{'role'"),
        ({"messages": {"role": "user"}}, r"expected a list of \{'role'"),
        ({"messages": [user([{"type": "text", "text": "hi"}])]}, "content is list .*expected text"),
    ],
)
def test_rows_that_are_no_dialogue(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        data.dialogues(jsonl(tmp_path, [row]))


def test_replies_are_what_the_assistant_answered():
    greeting = [assistant("welcome"), user("hi"), assistant("hello"), user("bye"), assistant("bye")]
    assert data.replies([greeting, [user("x")]]) == [
        {"prompt": greeting[:2], "completion": [assistant("hello")]},
        {"prompt": greeting[:4], "completion": [assistant("bye")]},
    ]


# Preferences ----------------------------------------------------------------------------------------------------------


def test_preferences_have_the_prompt_once_in_front_of_both(tmp_path):
    go = [user("hi"), assistant("go")]
    shapes = [
        {"prompt": "hi", "chosen": "hello", "rejected": "go"},
        {"prompt": [user("hi")], "chosen": [assistant("hello")], "rejected": "go"},
        {"prompt": "hi", "chosen": HI, "rejected": go},
        {"chosen": HI, "rejected": go},
        {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go"},
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " hello", "rejected": " go"},
    ]
    same = {"prompt": "hi", "chosen": "hello", "rejected": " hello "}
    assert data.preference_rows(jsonl(tmp_path, [*shapes, same])) == [{"chosen": HI, "rejected": go}] * len(shapes)
    with pytest.raises(ValueError, match="no pair whose two sides differ"):
        data.preference_rows(jsonl(tmp_path, [same]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hi", "chosen": "a"}, "row 0 .*has the columns prompt, chosen: expected 'rejected'"),
        ({"chosen": None, "rejected": "a"}, "expected 'chosen'"),
        ({"prompt": "hi", "chosen": "a", "rejected": []}, r"row 0 .*rejected is \[\]: expected messages"),
        (
            {"chosen": [{"role": "gpt", "content": "a"}], "rejected": "b"},
            "role 'gpt' in 'chosen'.*expected one of system",
        ),
    ],
)
def test_rows_that_are_no_preference(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        data.preference_rows(jsonl(tmp_path, [row]))


def test_mismatched_pairs_never_oppose_equal_texts():
    texts = ["ok", "ok", "ok", "sure", "no", "never"]
    rows = [{"prompt": [user(str(i))], "completion": [assistant(text)]} for i, text in enumerate(texts)]
    for seed in range(30):
        pairs = data.mismatched_pairs(rows, 4, seed)
        assert len(pairs) == 4
        for pair in pairs:
            [prompt, true], [other_prompt, wrong] = pair["chosen"], pair["rejected"]
            assert prompt == other_prompt
            assert true["content"] == texts[int(prompt["content"])], "the true reply is chosen"
            assert wrong["content"] in texts and wrong["content"] != true["content"]
        assert len({pair["chosen"][0]["content"] for pair in pairs}) == 4, "each reply once"
    assert data.mismatched_pairs(rows, 4, 7) == data.mismatched_pairs(rows, 4, 7)
    assert data.mismatched_pairs(rows, 4, 7) != data.mismatched_pairs(rows, 4, 8)
    assert len(data.mismatched_pairs(rows, 100, 0)) == len(rows)
    with pytest.raises(ValueError, match="3 replies, all the same"):
        data.mismatched_pairs(rows[:3], 2, 0)


# Splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "holdout", "expected"),
    [(2, 0.1, 1), (2, 0.9, 1), (10, 0.2, 2), (10, 0.0, 1), (10, 1.0, 9), (101, 0.1, 10), (3, 0.5, 2)],
)
def test_split_is_disjoint_complete_and_repeatable(n, holdout, expected):
    rows = [f"row {i:03d}" for i in range(n)]
    training, held_out = split_rows(rows, holdout, 5)
    assert len(held_out) == expected
    assert sorted(training + held_out) == rows
    assert training == sorted(training) and held_out == sorted(held_out), "the order of the source is kept"
    assert split_rows(rows, holdout, 5) == (training, held_out)
    if n > 50:
        assert split_rows(rows, holdout, 6) != (training, held_out)


def test_one_row_cannot_be_split():
    with pytest.raises(ValueError, match="1 row cannot be split"):
        split_rows(["a"], 0.5, 0)


def test_dialogues_from_turns_of_speakers(tmp_path: Path) -> None:
    turns = [{"speaker": "user", "text": "a table"}, {"speaker": "system", "text": "for how many?"}]
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps({"turns": turns}) + "\n", encoding="utf-8")
    assert data.dialogues(str(path)).messages == [
        [{"role": "user", "content": "a table"}, {"role": "assistant", "content": "for how many?"}]
    ]
    path.write_text(json.dumps({"turns": ["a table"]}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 0 .* has the turns .*speaker"):
        data.dialogues(str(path))


def test_pairs_with_the_same_opening_stay_on_one_side() -> None:
    def side(prompt: int, reply: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"q{prompt}"}, {"role": "assistant", "content": f"a{reply}"}]

    pairs = [{"chosen": side(p, r), "rejected": side(p, r + 1)} for p in range(20) for r in range(5)]
    train, held_out = split_pairs(pairs, 0.1, seed=3)
    assert len(train) == 90
    assert len(held_out) == 10
    assert not {p["chosen"][0]["content"] for p in train} & {p["chosen"][0]["content"] for p in held_out}
    with pytest.raises(ValueError, match="all 5 preference pairs begin in the same way"):
        split_pairs(pairs[:5], 0.1, seed=3)


def test_few_rows_of_each_label_are_drawn_the_same_way_each_time():
    labels = ["a"] * 20 + ["b"] * 3 + ["c"] * 7
    few = few_per_label(labels, 5, seed=1)
    assert [labels[i] for i in few] == ["a"] * 5 + ["b"] * 3 + ["c"] * 5 and few == sorted(set(few))
    assert few == few_per_label(labels, 5, seed=1) != few_per_label(labels, 5, seed=2)


def test_rows_are_used_in_an_order_of_their_own():
    rows = _rows_in_turn(25, 10, seed=1)
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10)) != rows[:10] != rows[10:20]
    assert rows == _rows_in_turn(25, 10, seed=1) != _rows_in_turn(25, 10, seed=2)
    config = load_recipe("customer-service", ["--env.eval_episodes", "20"])
    some, others = _some(1000, config)
    assert len(set(some)) == 20 and some == sorted(some) and some[0] < 300 and some[-1] >= 700
    assert len(set(others)) == 20 and others == sorted(others) and not set(some) & set(others)
    assert _some(5, config) == (list(range(5)), [])
