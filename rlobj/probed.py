"""What a probe asks of a model: how good it is on rows, the number that it gives each, and what it decides.

A classifier is judged by labels, a regression by numbers, a reward model by pairs of which people said which is better,
a policy by replies of the data. Legend: N rows.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy.special import log_softmax

from reward_models.trained import NORMALISATION, encode_conversations
from rlobj import data
from rlobj.chat import reply
from rlobj.chat_format import IGNORED_LABEL, ChatFormat, Message
from rlobj.fit_config import FitConfig
from rlobj.fit_data import classified, scored
from rlobj.inference import encode, logits_of
from rlobj.perturbations import seeded
from rlobj.reading import load_rows
from rlobj.recipes import read_recipe
from rlobj.spelling import did_you_mean
from rlobj.subjects import MAX_REPLY_TOKENS, Subject
from rlobj.supervised import SupervisedRow, supervised_losses

Change = Callable[[str], str]
ROWS, REPLIES = 500, 100


@dataclass(frozen=True, slots=True)
class Writing:
    """A change of what some roles say, or only of what was said first."""

    change: Change
    roles: tuple[str, ...]
    first: bool = False

    def __call__(self, messages: Sequence[Message]) -> list[Message]:
        mine = [i for i, message in enumerate(messages) if message["role"] in self.roles]
        changing = set(mine[:1] if self.first else mine)
        return [{**m, "content": self.change(m["content"])} if i in changing else m for i, m in enumerate(messages)]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the data."""

    sides: list[list[Message]]
    """one conversation, or the chosen and the rejected one"""
    right: Any = None
    """the right label or number"""
    columns: dict[str, Any] = field(default_factory=dict)
    writing: Writing | None = None
    """what was done to its sides"""

    def written(self, writing: Writing) -> Row:
        """The row written otherwise."""
        return Row([writing(side) for side in self.sides], self.right, self.columns, writing)

    def text(self, roles: Sequence[str]) -> str:
        """What these roles said."""
        return "\n".join(message["content"] for message in self.sides[0] if message["role"] in roles)


class Judged(NamedTuple):
    """What a model did on rows."""

    quality: np.ndarray
    """how good it was, (N,)"""
    number: np.ndarray
    """(N,)"""
    decisions: list[Any]
    """(N,); empty where there are none"""


class Probed(ABC):
    """A model, its rows, and what they are judged by."""

    quality: str
    """what the quality is called"""
    number: str
    """what the number is"""
    decision: str = ""
    """what is decided; empty: nothing"""
    counts: bool = True
    """quality is 0 or 1, and more is better; otherwise less is"""
    has_unit: bool = True
    """the number is a share, a probability or in nats; a score is not, and is seen beside how it varies over rows"""
    roles: tuple[str, ...] = ("user",)
    """whose words are changed"""
    rows: list[Row]

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def opening(self, row: Row) -> str:
        """The text that a row is put in a slice by."""
        return row.text(self.roles)

    @abstractmethod
    def judge(self, rows: Sequence[Row]) -> Judged:
        """What the model does on rows."""


class Labels(Probed):
    """A classifier of texts."""

    quality, decision = "accuracy", "label"

    def __init__(self, subject: Subject, rows: list[Row], label: str | None) -> None:
        super().__init__(subject)
        strange = next((row.right for row in rows if row.right not in subject.names), None)
        if strange is not None:
            raise ValueError(
                f"the data has the label {strange!r}, which {subject.directory} has not"
                f"{did_you_mean(strange, subject.names)}: expected {', '.join(subject.names[:10])}"
            )
        if label is not None:
            subject.index_of(label)
        self.rows, self.label = rows, label
        self.number = f"p({'the right label' if label is None else label})"

    def judge(self, rows: Sequence[Row]) -> Judged:
        ids = [encode(self.subject.tokenizer, row.text(self.roles), self.subject.limit) for row in rows]
        p = np.exp(log_softmax(np.stack(logits_of(self.subject.model, self.subject.tokenizer, ids)), axis=1))
        names, right = self.subject.names, [self.subject.names.index(row.right) for row in rows]
        asked = right if self.label is None else [names.index(self.label)] * len(rows)
        said = p.argmax(1)
        return Judged((said == np.array(right)).astype(float), p[np.arange(len(rows)), asked], [names[i] for i in said])


class Numbers(Probed):
    """A regression."""

    quality, number, counts, has_unit = "absolute error", "score", False, False

    def __init__(self, subject: Subject, rows: list[Row]) -> None:
        super().__init__(subject)
        self.rows = rows

    def judge(self, rows: Sequence[Row]) -> Judged:
        ids = [encode(self.subject.tokenizer, row.text(self.roles), self.subject.limit) for row in rows]
        scores = np.array([each[0] for each in logits_of(self.subject.model, self.subject.tokenizer, ids)], dtype=float)
        return Judged(np.abs(scores - np.array([row.right for row in rows])), scores, [])


class Pairs(Probed):
    """A reward model."""

    quality, number, decision, roles = "accuracy", "score of the chosen", "order", ("user", "assistant")
    has_unit = False

    def __init__(self, subject: Subject, rows: list[Row]) -> None:
        super().__init__(subject)
        self.rows = rows

    def judge(self, rows: Sequence[Row]) -> Judged:
        subject, said = self.subject, [side for row in rows for side in row.sides]
        ids = encode_conversations(subject.tokenizer, [[] for _ in said], said, subject.limit)
        fitted = getattr(subject.model.config, NORMALISATION, {})
        scores = np.array([float(each[0]) for each in logits_of(subject.model, subject.tokenizer, ids)])
        scores = ((scores - fitted.get("mean", 0.0)) / fitted.get("std", 1.0)).reshape(len(rows), 2)
        margins = scores[:, 0] - scores[:, 1]
        return Judged((np.sign(margins) + 1) / 2, scores[:, 0], np.sign(margins).tolist())


class Replies(Probed):
    """A policy: the probability that it gives a reply of the data, and what it replies itself."""

    quality, number, decision, counts = "ℓ", "log π per token of the reply", "reply", False

    def __init__(self, subject: Subject, rows: list[Row]) -> None:
        super().__init__(subject)
        self.chat = ChatFormat(subject.tokenizer)
        self.rows = rows

    def judge(self, rows: Sequence[Row]) -> Judged:
        losses = np.array(supervised_losses(self.subject.model, [self._encoded(row) for row in rows]))
        said = [reply(self.subject.model, self.chat, row.sides[0][:-1], MAX_REPLY_TOKENS, sample=False) for row in rows]
        return Judged(losses, -losses, said)

    def _encoded(self, row: Row) -> SupervisedRow:
        opening = self.chat.prompt_ids(row.sides[0][:-1])
        said = self.chat.reply_ids(row.sides[0][-1]["content"])
        ids, labels = [*opening, *said], [*[IGNORED_LABEL] * len(opening), *said]
        if self.subject.limit is not None:
            ids, labels = ids[-self.subject.limit :], labels[-self.subject.limit :]
        labels[0] = IGNORED_LABEL
        return SupervisedRow(ids, labels)


# Rows -----------------------------------------------------------------------------------------------------------------


def probed(
    subject: Subject,
    file: str | None,
    run: Path,
    limit: int | None = None,
    label: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
) -> Probed:
    """A model with the rows of a file; or without one with what its own run kept to judge it by: the test data of
    `rlobj fit`, of `rlobj run` the evaluation's episodes, or the reward model's pairs.

    Args:
        limit: rows at most; None: ROWS, of a policy, which replies to each, REPLIES.

    Raises:
        ValueError: the rows cannot be judged on, or there are none.
    """
    if subject.kind == "tag":
        raise ValueError(
            f"{subject.directory} gives each word a tag, which stays with its word however the text is written "
            "otherwise: expected a classifier of texts, a regression, a reward model or a policy (or rlobj explain)"
        )
    if label is not None and subject.kind != "label":
        raise ValueError(f"--label is {label!r}, but {subject.directory} chooses no label: leave it out")
    limit = limit or (REPLIES if subject.kind == "policy" else ROWS)
    if subject.kind == "label" and subject.reads_conversations:
        raise ValueError(f"{subject.directory} names conversations: expected a reward model with one score to probe")
    if file is None and (run / "policies").is_dir():
        from rlobj.probed_episodes import probed_in_run  # which derives from what is here

        return probed_in_run(subject, run, limit, label)
    if file is None:
        return _own_test(subject, run, limit, label)
    if subject.kind == "policy":
        return Replies(subject, [Row([_up_to_a_reply(messages)]) for messages in data.dialogues(file, limit).messages])
    if subject.kind == "score" and subject.reads_conversations:
        return Pairs(subject, [Row([p["chosen"], p["rejected"]]) for p in data.preference_rows(file, limit)])
    found = load_rows(file, limit)
    rows = [_labelled(row, text_column, label_column, f"row {n} of {file!r}") for n, row in enumerate(found)]
    if subject.kind == "label":
        return Labels(subject, [Row(row.sides, str(row.right).strip(), row.columns) for row in rows], label)
    return Numbers(subject, [_numbered(row, label_column) for row in rows])


def _labelled(row: dict[str, Any], text_column: str, label_column: str, where: str) -> Row:
    text, right = (
        data.column_of(row, column, name, where)
        for column, name in ((text_column, "text_column"), (label_column, "label_column"))
    )
    if not isinstance(text, str) or not text.strip() or right is None:
        raise ValueError(
            f"{where}: {text_column} is {text!r:.40}, {label_column} {right!r:.40}: expected text and label"
        )
    return Row([[{"role": "user", "content": text}]], right, row)


def _numbered(row: Row, label_column: str) -> Row:
    try:
        return Row(row.sides, float(row.right), row.columns)
    except (TypeError, ValueError):
        raise ValueError(f"{label_column} is {row.right!r}: expected a number") from None


def _up_to_a_reply(messages: Sequence[Message]) -> list[Message]:
    """The dialogue up to one of its replies, drawn at random: rows are to be independent of one another."""
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
    return list(messages[: seeded(messages[0]["content"]).choice(replies) + 1])


def _own_test(subject: Subject, run: Path, limit: int, label: str | None) -> Probed:
    """The test rows that a run of `rlobj fit` kept apart."""
    config = run / "config.yaml"
    if task_of(config) not in ("text-classification", "regression"):
        raise ValueError(
            f"{run} has no test data of its own for this: give FILE, with text and label for a classifier, chosen "
            "and rejected for a reward model, messages for a policy"
        )
    settings = read_recipe(FitConfig, str(config))
    parts = (
        classified(settings.data, settings.seed)[0] if subject.kind == "label" else scored(settings.data, settings.seed)
    )
    some = random.Random(0).sample(parts["test"], min(limit, len(parts["test"])))
    rows = [Row([[{"role": "user", "content": example.x}]], example.y) for example in some]
    return Labels(subject, rows, label) if subject.kind == "label" else Numbers(subject, rows)


def task_of(config: Path) -> str | None:
    """The task of a run of `rlobj fit`; None of another's."""
    if not config.is_file():
        return None
    found = yaml.safe_load(config.read_text(encoding="utf-8"))
    return found.get("task") if isinstance(found, dict) else None
