"""Labelled examples in three parts: to learn from, to choose by, to judge on. No torch here."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlobj import data
from rlobj.fit_config import LabelledConfig
from rlobj.reading import Row, load_rows
from rlobj.splitting import few_per_label, split_rows

T = TypeVar("T")
HELD_OUT = 0.1
"""Share of the training file that each part gets which has no file of its own."""
PARTS = ("train", "validation", "test")


class Example(NamedTuple):
    """One labelled pair (x, y)."""

    x: Any
    """a text; a list of words; or the messages of a dialogue"""
    y: Any
    """the name of a label; BIO tags; a number; or None, where x is its own label"""


Parts = dict[str, list[Example]]


def three_parts(source: LabelledConfig, load: Callable[[str, int | None], list[T]], seed: int) -> dict[str, list[T]]:
    """Rows to train on, for validation and for the test; what has no file of its own is split off the training rows."""
    assert source.train is not None
    parts = {"train": load(source.train, source.limit)}
    for part in ("test", "validation"):
        file = getattr(source, part)
        if file is not None:
            parts[part] = load(file, None)
        else:
            share = HELD_OUT if part == "test" or source.test is not None else HELD_OUT / (1 - HELD_OUT)
            parts["train"], parts[part] = split_rows(parts["train"], share, seed)
    return {part: parts[part] for part in PARTS}


def repeated(parts: Parts) -> int:
    """How many examples of the test have an x that was trained on, too: a leak of the data itself."""
    seen = {repr(example.x) for example in parts["train"]}
    return sum(repr(example.x) in seen for example in parts["test"])


def classified(source: LabelledConfig, seed: int) -> tuple[Parts, list[str]]:
    """Texts with labels, and the names of the labels.

    Raises:
        ValueError: a label of the validation or test file is not among the training file's.
    """
    columns = source.text_column, source.label_column
    rows = three_parts(source, lambda file, limit: data.labelled_rows(file, *columns, limit, source.only), seed)
    parts = {part: [Example(*pair) for pair in _flat(rows[part])] for part in PARTS}
    names = sorted({example.y for example in parts["train"]})
    for part in ("validation", "test"):
        strange = sorted({example.y for example in parts[part]} - set(names))
        if strange and getattr(source, part) is not None:
            raise ValueError(
                f"data.{part} has the labels {', '.join(strange[:5])}, which data.train {source.train!r} has not: "
                "expected labels that can be learned"
            )
        # split off at random: a label's only rows are learned, not judged
        parts["train"] += [example for example in parts[part] if example.y in strange]
        parts[part] = [example for example in parts[part] if example.y not in strange]
    names = sorted({example.y for example in parts["train"]})
    if source.rows_per_label is not None:
        few = few_per_label([example.y for example in parts["train"]], source.rows_per_label, seed)
        parts["train"] = [parts["train"][i] for i in few]
    return parts, names


def _flat(rows: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for row in rows for pair in row]


def tagged(source: LabelledConfig, seed: int) -> tuple[Parts, list[str]]:
    """Lists of words with a BIO tag for each, and the names of the tags, O first.

    Raises:
        ValueError: words and tags differ in number, or a tag is not O, B-… or I-….
    """

    def load(file: str, limit: int | None) -> list[Example]:
        return [_tagged_row(row, source, f"row {n} of {file!r}") for n, row in enumerate(rows_of(file, limit, source))]

    parts = three_parts(source, load, seed)
    kinds = sorted({tag[2:] for example in parts["train"] for tag in example.y if tag != "O"})
    if not kinds:
        raise ValueError(f"data.train {source.train!r} has no tag but O: expected entities in {source.label_column!r}")
    return parts, ["O", *[f"{sign}-{kind}" for kind in kinds for sign in "BI"]]


def _tagged_row(row: Mapping[str, Any], source: LabelledConfig, where: str) -> Example:
    words = data.column_of(dict(row), source.text_column, "data.text_column", where)
    tags = data.column_of(dict(row), source.label_column, "data.label_column", where)
    for column, value in ((source.text_column, words), (source.label_column, tags)):
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
            raise ValueError(f"{where}: {column} is {value!r:.80}: expected a list of words (tags), none of them empty")
    if len(words) != len(tags):
        raise ValueError(f"{where} has {len(words)} words and {len(tags)} tags: expected a tag for each word")
    for tag in tags:
        if tag != "O" and not (tag[:2] in ("B-", "I-") and tag[2:]):
            raise ValueError(f"{where} has the tag {tag!r}: expected O, or B- or I- and a kind, such as B-person")
    return Example(words, tags)


def scored(source: LabelledConfig, seed: int) -> Parts:
    """Texts with a number each.

    Raises:
        ValueError: a label is no finite number, or all are the same.
    """

    def load(file: str, limit: int | None) -> list[Example]:
        return [_scored_row(row, source, f"row {n} of {file!r}") for n, row in enumerate(rows_of(file, limit, source))]

    parts = three_parts(source, load, seed)
    if len({example.y for example in parts["train"]}) < 2:
        raise ValueError(f"all {len(parts['train'])} training rows have the number {parts['train'][0].y}: expected two")
    return parts


def _scored_row(row: Mapping[str, Any], source: LabelledConfig, where: str) -> Example:
    text = data.column_of(dict(row), source.text_column, "data.text_column", where)
    value = data.column_of(dict(row), source.label_column, "data.label_column", where)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: {source.text_column} is {text!r}: expected a text that is not empty")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {source.label_column} is {value!r}: expected a finite number")
    return Example(text, number)


def written(source: LabelledConfig, seed: int) -> Parts:
    """Plain texts of the text column, or dialogues where the first row has no such column."""
    assert source.train is not None
    if source.text_column in rows_of(source.train, 1, source)[0]:
        return three_parts(source, lambda file, limit: plain_texts(file, source.text_column, limit, source.only), seed)
    return three_parts(
        source,
        lambda file, limit: [Example(m, None) for m in data.dialogues(file, limit, only=source.only).messages],
        seed,
    )


def plain_texts(
    file: str, column: str, limit: int | None, only: Mapping[str, Any], key: str = "data.text_column"
) -> list[Example]:
    """The texts of a column; those that are empty are left out.

    Raises:
        ValueError: the column is missing, or every text is empty.
    """
    rows = load_rows(file, limit, only)
    texts = [str(data.column_of(row, column, key, f"row {n} of {file!r}")) for n, row in enumerate(rows)]
    kept = [Example(text, None) for text in texts if text.strip()]
    if not kept:
        raise ValueError(f"column {column!r} of {file!r} has no text in any of its {len(rows)} rows")
    return kept


def rows_of(file: str, limit: int | None, source: LabelledConfig) -> list[Row]:
    """Rows of a file that `data.only` keeps."""
    return load_rows(file, limit, source.only)


# Augmentation ---------------------------------------------------------------------------------------------------------


def read_synonyms(path: str) -> dict[str, list[str]]:
    """Word -> the others of its line; a line holds words that may stand for one another, between commas or tabs."""
    synonyms: dict[str, list[str]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        group = [word.strip() for word in line.replace("\t", ",").split(",") if word.strip()]
        for word in group:
            synonyms.setdefault(word, []).extend(other for other in group if other != word)
    return {word: others for word, others in synonyms.items() if others}


def augmented(
    text: str, rng: random.Random, drop: float = 0.0, swap: float = 0.0, synonyms: Mapping[str, Sequence[str]] = {}
) -> str:
    """A text with words left out, exchanged with the next one, or replaced (Wei and Zou 2019); never empty.

    Where no spaces stand between words, characters take their place.

    Args:
        drop, swap: the probability of each word.
        synonyms: each word that has some is replaced with probability 1/2.
    """
    between = " " if " " in text.strip() else ""
    words = text.split() if between else list(text)
    words = [rng.choice(list(synonyms[w])) if w in synonyms and rng.random() < 0.5 else w for w in words]
    words = [w for w in words if rng.random() >= drop] or words[:1]
    for i in range(len(words) - 1):
        if rng.random() < swap:
            words[i], words[i + 1] = words[i + 1], words[i]
    return between.join(words)
