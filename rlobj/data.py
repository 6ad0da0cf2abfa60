"""The user's data: labelled texts, dialogues and preferences, from files or the Hugging Face Hub. No torch here."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from envs.datasets import shipped
from rlobj.chat_format import Message
from rlobj.spelling import did_you_mean

Row = dict[str, Any]
T = TypeVar("T")

ROLES = ("system", "user", "assistant", "tool")
FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")


class Dialogues(NamedTuple):
    """Dialogues that can be learned from, and how many could not."""

    messages: list[list[Message]]
    dropped: int
    why: str


# Rows -----------------------------------------------------------------------------------------------------------------


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


# Labelled texts -------------------------------------------------------------------------------------------------------


def labelled(source: str, text_column: str, label_column: str, limit: int | None = None) -> tuple[list[str], list[str]]:
    """Texts and the names of their labels; see `labelled_rows`."""
    return flat(labelled_rows(source, text_column, label_column, limit))


def flat(rows: Iterable[Sequence[tuple[str, str]]]) -> tuple[list[str], list[str]]:
    """Texts and labels of rows that may hold several each."""
    pairs = [pair for row in rows for pair in row]
    return [text for text, _ in pairs], [label for _, label in pairs]


def labelled_rows(
    source: str,
    text_column: str,
    label_column: str,
    limit: int | None = None,
    only: Mapping[str, Any] | None = None,
) -> list[list[tuple[str, str]]]:
    """The (text, label) pairs of each row: one; or where the label is a mapping {part of the text: label}, one for each
    part, which is put in brackets where it stands in the text, or before it.

    `{"text": "Acme falls, Zeta holds", "label": {"Acme": "negative", "Zeta": "neutral"}}` is `[Acme] falls, Zeta holds`
    with the label negative and `Acme falls, [Zeta] holds` with the label neutral.

    Raises:
        ValueError: a column is missing, a text is empty, a label is missing, or all labels are the same.
    """
    rows = []
    for number, row in enumerate(load_rows(source, limit, only)):
        where = f"row {number} of {source!r}"
        text = column_of(row, text_column, "text_column", where)
        label = column_of(row, label_column, "label_column", where)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: {text_column} is {text!r}: expected a text that is not empty")
        if isinstance(label, dict) and label:
            given = {part: each for part, each in label.items() if each is not None}  # Parquet fills up with nulls
            rows.append([(_marked(text, part), _label(each, label_column, where)) for part, each in given.items()])
        else:
            rows.append([(text, _label(label, label_column, where))])
    labels = flat(rows)[1]
    if len(set(labels)) < 2:
        cut = f"; data.limit is {limit}: raise it" if len(rows) == limit else ""
        raise ValueError(
            f"all {len(labels)} rows of {source!r} have the label {labels[0]!r}: expected at least two{cut}"
        )
    return rows


def _marked(text: str, part: str) -> str:
    return text.replace(part, f"[{part}]", 1) if part in text else f"[{part}] {text}"


def _label(label: Any, label_column: str, where: str) -> str:
    if label is None or isinstance(label, dict | list | float) or not str(label).strip():
        raise ValueError(f"{where}: {label_column} is {label!r}: expected a label's name")
    return str(label).strip()


def column_of(row: Row, column: str, key: str, where: str) -> Any:
    """What stands in a column that data.`key` names."""
    if column not in row:
        raise ValueError(
            f"data.{key} is {column!r}: {where} has no such column{did_you_mean(column, row)} "
            f"(it has {', '.join(map(str, row))})"
        )
    return row[column]


# Dialogues ------------------------------------------------------------------------------------------------------------


def dialogues(
    source: str, limit: int | None = None, role: str = "assistant", only: Mapping[str, Any] | None = None
) -> Dialogues:
    """Dialogues from a column `messages` in chat format; or `turns` of `speaker` and `text`; or `prompt` and
    `completion`; or the `chosen` of preferences.

    Those that nothing can be learned from are left out and counted.

    Args:
        role: whose side the policy plays: "user" swaps user and assistant, and leaves out what a user does not see.
        only: as in `load_rows`.

    Raises:
        ValueError: no such column, or no dialogue is left.
    """
    kept: list[list[Message]] = []
    reasons: Counter[str] = Counter()
    for number, row in enumerate(load_rows(source, limit, only)):
        messages = _dialogue(row, f"row {number} of {source!r}")
        if role == "user":
            messages = swap_roles(messages)
        reason = _unusable(messages)
        if reason is None:
            kept.append(messages)
        else:
            reasons[reason] += 1
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    if not kept:
        raise ValueError(f"{source!r} has no dialogue that can be learned from: {why}")
    if len(kept) > 1 and all(messages == kept[0] for messages in kept):
        raise ValueError(f"all {len(kept)} rows of {source!r} are the same dialogue: expected at least two")
    return Dialogues(kept, reasons.total(), why)


def _dialogue(row: Row, where: str) -> list[Message]:
    if row.get("messages") is not None:
        return _messages(row["messages"], "user", where)
    if row.get("turns") is not None:
        return _turns(row["turns"], where)
    if row.get("completion") is not None and row.get("prompt") is not None:
        return _with_prompt(row, "completion", where)
    if row.get("chosen") is not None:
        return _with_prompt(row, "chosen", where)
    raise ValueError(
        f"{where} has the columns {', '.join(map(str, row))}: expected messages, or turns, "
        "or prompt and completion, or chosen"
    )


def swap_roles(messages: Iterable[Message]) -> list[Message]:
    """The dialogue as its user sees it: the user is the assistant now, system and tool messages are gone."""
    swapped = {"user": "assistant", "assistant": "user"}
    return [{**m, "role": swapped[m["role"]]} for m in messages if m["role"] in swapped]


def _turns(value: Any, where: str) -> list[Message]:
    """Messages from turns `{"speaker": "user" | "system" | …, "text": …}`: whoever is not the user is the policy."""
    if not isinstance(value, list) or not all(isinstance(t, dict) and {"speaker", "text"} <= t.keys() for t in value):
        raise ValueError(f"{where} has the turns {str(value)[:80]!r}: expected a list of {{'speaker': …, 'text': …}}")
    roles = {"user": "user", "customer": "user", "human": "user"}
    return [
        {"role": roles.get(str(turn["speaker"]).lower(), "assistant"), "content": str(turn["text"] or "")}
        for turn in value
    ]


def _with_prompt(row: Row, column: str, where: str) -> list[Message]:
    """The messages of a column behind those of `prompt`; some sets repeat the prompt there, some do not."""
    prompt = _messages(row["prompt"], "user", where) if row.get("prompt") else []
    if len(prompt) > 1 and prompt[-1] == {"role": "assistant", "content": ""}:
        prompt.pop()  # a text that ends in "Assistant:", for the column to go on
    messages = _messages(row[column], "assistant", where)
    return messages if messages[: len(prompt)] == prompt else [*prompt, *messages]


_SPEAKER = re.compile(r"\s*\n\n(Human|Assistant): ?")


def _messages(value: Any, role: str, where: str) -> list[Message]:
    """Messages from a list of them, from text with "\\n\\nHuman:" and "\\n\\nAssistant:" turns, or from plain text."""
    if isinstance(value, str):
        if value.startswith(("Human:", "Assistant:")) and _SPEAKER.search(value):
            value = f"\n\n{value}"  # the first turn of several; alone, it is a text that begins with this word
        parts = _SPEAKER.split(value)
        turns = [
            ("user" if who == "Human" else "assistant", text)
            for who, text in zip(parts[1::2], parts[2::2], strict=True)
        ]
        if parts[0].strip() or not turns:
            turns.insert(0, (role, parts[0]))
        return [{"role": who, "content": text.strip()} for who, text in turns]
    if not isinstance(value, list) or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value):
        raise ValueError(f"{where} has {str(value)[:80]!r}: expected a list of {{'role': …, 'content': …}}, or text")
    for message in value:
        if not isinstance(message["content"], str | None):
            raise ValueError(
                f"{where} has a message whose content is {type(message['content']).__name__} "
                f"{str(message['content'])[:80]!r}: expected text"
            )
    return [{"role": str(m["role"]), "content": m["content"] or ""} for m in value]


def _unusable(messages: Sequence[Message]) -> str | None:
    """Why a dialogue cannot be learned from; None if it can."""
    unknown = next((m["role"] for m in messages if m["role"] not in ROLES), None)
    if unknown is not None:
        return f"with the unknown role {unknown!r}"
    if any(not message["content"].strip() for message in messages):
        return "with an empty message"
    if not any(message["role"] == "assistant" for message in messages[1:]):
        return "without an assistant's reply to anything"
    return None


def replies(dialogues: Iterable[Sequence[Message]]) -> list[Row]:
    """Every assistant message that answers something, as `prompt` (all before it) and `completion` (it alone)."""
    return [
        {"prompt": list(messages[:i]), "completion": [message]}
        for messages in dialogues
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and i > 0
    ]


# Preferences ----------------------------------------------------------------------------------------------------------


def preference_rows(source: str, limit: int | None = None) -> list[Row]:
    """Pairs of whole dialogues, `chosen` and `rejected`, with the prompt in front of both; equal ones are left out.

    Raises:
        ValueError: a column is missing, or no pair is left.
    """
    pairs = []
    for number, row in enumerate(load_rows(source, limit)):
        where = f"row {number} of {source!r}"
        sides = []
        for side in ("chosen", "rejected"):
            if row.get(side) is None:
                raise ValueError(f"{where} has the columns {', '.join(map(str, row))}: expected {side!r}")
            if not row[side] and not isinstance(row[side], str):
                raise ValueError(f"{where}: {side} is {row[side]!r}: expected messages, or text")
            sides.append(_with_prompt(row, side, where))
            unknown = next((m["role"] for m in sides[-1] if m["role"] not in ROLES), None)
            if unknown is not None:
                raise ValueError(f"{where} has the role {unknown!r} in {side!r}: expected one of {', '.join(ROLES)}")
        if sides[0] != sides[1]:
            pairs.append({"chosen": sides[0], "rejected": sides[1]})
    if not pairs:
        raise ValueError(f"{source!r} has no pair whose two sides differ")
    return pairs


def rated_rows(source: str, limit: int | None = None) -> list[Row]:
    """Conversations that somebody rated: `messages`, and `score` (a number) or `label`; `group`, if it has one, names
    the conversations that belong together.

    Raises:
        ValueError: a column is missing, or a role unknown.
    """
    rows = []
    for number, row in enumerate(load_rows(source, limit)):
        where = f"row {number} of {source!r}"
        rating = next((name for name in ("score", "label") if row.get(name) is not None), None)
        side = next((name for name in ("messages", "completion") if row.get(name) is not None), None)
        if rating is None or side is None:
            raise ValueError(
                f"{where} has the columns {', '.join(map(str, row))}: expected messages, or prompt and completion, "
                "with score or label"
            )
        messages = _with_prompt(row, side, where)
        unknown = next((m["role"] for m in messages if m["role"] not in ROLES), None)
        if unknown is not None:
            raise ValueError(f"{where} has the role {unknown!r}: expected one of {', '.join(ROLES)}")
        rows.append({"messages": messages, rating: row[rating], "group": row.get("group")})
    return rows


def split_rated(rows: Sequence[Row], holdout: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rated conversations so that those of a group, or without one those whose user begins in the same way, are
    on one side: one is often the beginning of another.

    Raises:
        ValueError: all belong together.
    """

    def group(row: Row) -> str:
        first = next((m["content"] for m in row["messages"] if m["role"] == "user"), row["messages"][0]["content"])
        return json.dumps(first if row["group"] is None else row["group"])

    groups = list(dict.fromkeys(map(group, rows)))
    if len(groups) < 2:
        raise ValueError(f"all {len(rows)} rated conversations begin in the same way: expected two beginnings")
    held_out = set(split_rows(groups, holdout, seed)[1])
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[group(row) in held_out].append(row)
    return sides


def mismatched_pairs(replies: Sequence[Row], n: int, seed: int) -> list[Row]:
    """Preference pairs from a corpus alone: the true reply against one from elsewhere in it.

    Args:
        replies: rows of `replies`.
        n: pairs wanted; fewer if there are fewer replies.

    Raises:
        ValueError: all replies are the same text.
    """
    texts = [row["completion"][-1]["content"] for row in replies]
    if len(set(texts)) < 2:
        raise ValueError(
            f"{len(replies)} replies, all the same: expected at least two different ones to oppose to each other; give "
            "a larger corpus, or pairs of your own with --data.preferences"
        )
    rng = random.Random(f"mismatched {seed}")
    pairs = []
    for index in rng.sample(range(len(replies)), min(n, len(replies))):
        other = rng.randrange(len(texts))
        while texts[other] == texts[index]:
            other = rng.randrange(len(texts))
        prompt = replies[index]["prompt"]
        wrong = {"role": "assistant", "content": texts[other]}
        pairs.append({"chosen": [*prompt, *replies[index]["completion"]], "rejected": [*prompt, wrong]})
    return pairs


def split_rows(rows: Sequence[T], holdout: float, seed: int) -> tuple[list[T], list[T]]:
    """Shuffle and split into (training, held out), at least one row in each; the same for the same seed.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} row cannot be split into training and held-out data: expected at least 2")
    order = list(range(len(rows)))
    random.Random(f"split {seed}").shuffle(order)
    held_out = min(max(round(holdout * len(rows)), 1), len(rows) - 1)
    return [rows[i] for i in sorted(order[held_out:])], [rows[i] for i in sorted(order[:held_out])]


def repeats(train: Sequence[Any], held_out: Sequence[Any]) -> dict[str, str]:
    """What a report says of rows that stand in the data more than once; nothing where none does.

    They are no error, as data that people write have some; but held-out rows that were learned from, too, are a leak.
    """
    seen = {repr(row) for row in train}
    again = len(train) + len(held_out) - len(seen | {repr(row) for row in held_out})
    leaked = sum(repr(row) in seen for row in held_out)
    facts = {"rows again": f"{again} of {len(train) + len(held_out)} rows stand there before"} if again else {}
    if leaked:
        facts["leak"] = f"{leaked} of {len(held_out)} held-out rows were learned from, too"
    return facts


def few_per_label(labels: Sequence[str], n: int, seed: int) -> list[int]:
    """Indices of n rows of each label, or of all it has where those are fewer, drawn at random; in rising order."""
    rows: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        rows.setdefault(label, []).append(index)
    rng = random.Random(f"few per label {seed}")
    return sorted(index for indices in rows.values() for index in rng.sample(indices, min(n, len(indices))))


def split_pairs(pairs: Sequence[Row], holdout: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split preference pairs so that no conversation begins in the same way on both sides: one prompt often has
    several pairs, and a reward model knows again what it has seen.

    Raises:
        ValueError: all pairs begin in the same way.
    """
    openings = list(dict.fromkeys(json.dumps(pair["chosen"][0]) for pair in pairs))
    if len(openings) < 2:
        raise ValueError(f"all {len(pairs)} preference pairs begin in the same way: expected at least two prompts")
    held_out = set(split_rows(openings, holdout, seed)[1])
    sides: tuple[list[Row], list[Row]] = ([], [])
    for pair in pairs:
        sides[json.dumps(pair["chosen"][0]) in held_out].append(pair)
    return sides
