"""The user's data: what rows hold, labelled texts, dialogues or preferences. No torch here."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlobj.chat_format import Message
from rlobj.reading import Row, load_rows
from rlobj.spelling import did_you_mean

ROLES = ("system", "user", "assistant", "tool")


class Dialogues(NamedTuple):
    """Dialogues that can be learned from, and how many could not."""

    messages: list[list[Message]]
    dropped: int
    why: str


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
        text = column_of(row, text_column, "data.text_column", where)
        label = column_of(row, label_column, "data.label_column", where)
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
    """What stands in a column that `key` names, such as data.text_column."""
    if column not in row:
        raise ValueError(
            f"{key} is {column!r}: {where} has no such column{did_you_mean(column, row)} "
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
