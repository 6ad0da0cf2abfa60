"""Rows of a file or of a data set on the Hugging Face Hub, whatever its format. No torch here."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from envs.datasets import shipped

Row = dict[str, Any]
FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")


def load_rows(source: str, limit: int | None = None, only: Mapping[str, Any] | None = None) -> list[Row]:
    """The first `limit` rows of a file (JSON lines, JSON, CSV, TSV, Parquet; `.gz` too), of a shipped data set, or of
    one on the Hub.

    Args:
        source: a path; a name in `envs.datasets`; or the id of a data set, with ":split" if that is not "train".
        only: keep rows that have these values in the columns that they have.

    Raises:
        ValueError: no such file, nothing in it, or a line that cannot be read, with its number.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit} rows of {source!r}: expected at least 1, or None for all")
    path = Path(source)
    file = path if path.is_file() else shipped().get(source)
    if file is not None:
        kept = (row for row in _file_rows(file) if _fits(row, only))
        rows = list(kept) if limit is None else _sample(kept, limit)
    elif path.suffix.lower() in FILE_SUFFIXES:
        raise ValueError(f"data file {source!r} does not exist")
    elif path.is_dir():
        raise ValueError(f"data {source!r} is a directory: expected a file in it, or a data set id")
    else:
        rows = [row for row in _hub_rows(source, limit) if _fits(row, only)]
    if not rows:
        raise ValueError(f"data {source!r} has no rows{f' with {dict(only)}' if only else ''}")
    return rows


def _fits(row: Row, only: Mapping[str, Any] | None) -> bool:
    # as text: a CSV file has no other
    return all(
        str(row[column]).lower() == str(value).lower() for column, value in (only or {}).items() if column in row
    )


def _sample(rows: Iterable[Row], limit: int) -> list[Row]:
    """A sample of rows whose number is not known, in their order, with no more than `limit` in memory (reservoir
    sampling, Vitter 1985)."""
    rng = random.Random(f"limit {limit}")
    kept: list[tuple[int, Row]] = []
    for number, row in enumerate(rows):
        place = number if number < limit else rng.randrange(number + 1)
        if place < limit:
            kept[place : place + 1] = [(number, row)]
    return [row for _, row in sorted(kept, key=lambda each: each[0])]


def _file_rows(path: Path) -> Iterator[Row]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if kind == ".parquet":
        yield from _parquet(path)
        return
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _tsv}
    if kind not in readers:
        raise ValueError(
            f"data file {str(path)!r} ends in {kind!r}: expected one of {', '.join([*readers, '.parquet'])}"
        )
    opened: Any = gzip.open if suffixes[-1] == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from readers[kind](file, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"data file {str(path)!r} is not UTF-8: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"data file {str(path)!r} is not a whole gzip file: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(1000):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(f"data file {str(path)!r} cannot be read as Parquet: {error}") from error


def _json_lines(file: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                row = _parsed(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            yield _as_row(row, f"{path}, line {number}")


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _parsed(text: str) -> Any:
    """The value of a JSON text. Half a character ("\\ud83d", an emoji cut in two), which no tokenizer takes, becomes
    U+FFFD, as in any decoder."""
    value = json.loads(text)
    if _SURROGATE.search(text):
        whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        value = json.loads(whole)
    return value


def _json(file: Any, path: Path) -> Iterator[Row]:
    try:
        rows = _parsed(file.read())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error} (one object a line belongs in a .jsonl file)") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {type(rows).__name__}: expected a list of objects")
    for number, row in enumerate(rows):
        yield _as_row(row, f"{path}, entry {number}")


def _as_row(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {type(row).__name__}: expected an object such as {{'text': …, 'label': …}}")
    return row


def _csv(file: Iterable[str], path: Path, delimiter: str = ",") -> Iterator[Row]:
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)  # else a stray quote swallows the lines after it
    try:
        header = list(reader.fieldnames or ())
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise ValueError(f"{path} has the column {twice[0]!r} more than once in its header {header}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num} has another number of fields than the header {header}: "
                    f"put fields that contain {delimiter!r} in quotes"
                )
            yield row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.reader.line_num} cannot be read: {error}; quote fields that contain quotes, "
            "and double those, or use JSON lines"
        ) from error


def _tsv(file: Iterable[str], path: Path) -> Iterator[Row]:
    return _csv(file, path, "\t")


def _hub_rows(source: str, limit: int | None) -> list[Row]:
    from datasets import ClassLabel, load_dataset

    name, _, split = source.partition(":")
    try:
        loaded = load_dataset(name, split=split or "train")
    except Exception as error:  # the library has many kinds, and says in each what is wrong
        raise ValueError(
            f"data {source!r} is neither a file here nor a data set that can be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    labels = {key: kind for key, kind in loaded.features.items() if isinstance(kind, ClassLabel)}
    rows: list[Row] = loaded.select(range(min(len(loaded), limit if limit is not None else len(loaded)))).to_list()
    for row in rows:  # numbers of classes become their names; −1 stands for a label that is not given
        for key, kind in labels.items():
            row[key] = None if row[key] is None or row[key] < 0 else kind.int2str(row[key])
    return rows
