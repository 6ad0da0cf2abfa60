"""`rlobj explain`: which words made a model say what it says.

Integrated gradients, Shapley values as a second opinion, and a test of both: the words that they name are deleted, and
so are as many others at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlobj.attribution import (
    Deletion,
    Explained,
    Gradients,
    agreement,
    deletions,
    integrated_gradients,
    shapley_values,
)
from rlobj.intervals import Interval, bootstrap_mean
from rlobj.progress import bar
from rlobj.quantising import is_int8
from rlobj.readings import Reading, word_spans
from rlobj.runs import atomic_write_json, rounded
from rlobj.subjects import SCORE, Asked, Subject, reply_logps
from rlobj.try_reward import Text

GRADIENTS, SHAPLEY = "integrated gradients", "Shapley values"
SHARE = 0.2
"""Of the words, in the one deletion that is spoken of."""


@dataclass(frozen=True, slots=True)
class ReplyWord:
    """A word of a policy's reply, and what its log-probability owes to the prompt's words."""

    said: str
    value: float
    """log π of its tokens"""
    gradients: Gradients


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one number of one text owes to its words."""

    what: str
    value: float
    unit: str
    reading: Reading
    word: int | None
    """whose tag it is"""
    gradients: Gradients
    shapley: np.ndarray
    """(W,)"""
    agreement: float | None
    """Spearman's correlation of the two"""
    deletions: dict[str, list[Deletion]]
    """by method"""
    reply: str
    reply_words: list[ReplyWord]


def explain(
    subject: Subject,
    texts: Sequence[Text],
    label: str | None = None,
    steps: int | None = None,
    orders: int | None = None,
    by_word: bool = False,
    word: str | None = None,
) -> list[Explanation]:
    """Explain what a model says of each text; of a classifier of tokens, of each entity in it.

    Args:
        label: of a classifier (default: the most probable one of each text).
        steps, orders: see `integrated_gradients` and `shapley_values`.
        by_word: of a policy: each word of its reply, too.
        word: of a classifier of tokens: this word instead of each entity.

    Raises:
        ValueError: captum is not installed, a text has no word, or there is no such label or word.
    """
    require_captum()
    if is_int8(subject.model):
        raise ValueError("the model is in 8 bits, which no gradient passes through: explain what it was made from")
    found: list[Explanation] = []
    with bar("explaining", len(texts)) as progress:
        for number, text in enumerate(texts, 1):
            asked = subject.ask(text, label, word)
            found += [_explain(subject, each, steps, orders, by_word) for each in asked]
            progress.advance(number)
    return found


def require_captum() -> None:
    """Raise ValueError, with what to install, unless there is what explains."""
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise ValueError(f"rlobj explain needs {error.name}: pip install 'rlobj[explain]'") from error


def _explain(subject: Subject, asked: Asked, steps: int | None, orders: int | None, by_word: bool) -> Explanation:
    explained = asked.explained
    gradients = integrated_gradients(explained, steps)
    shapley = shapley_values(explained, orders)
    return Explanation(
        asked.what,
        asked.value,
        asked.unit,
        explained.reading,
        explained.word,
        gradients,
        shapley,
        agreement(gradients.words, shapley),
        {GRADIENTS: deletions(explained, gradients.words), SHAPLEY: deletions(explained, shapley)},
        asked.reply,
        _reply_words(subject, explained, steps) if by_word and asked.reply else [],
    )


def _reply_words(subject: Subject, explained: Explained, steps: int | None) -> list[ReplyWord]:
    """What each word of the reply owes to the prompt; the end of the reply is its last word."""
    count = len(explained.suffix)
    found = []
    for said, places in _words_of(subject.tokenizer, explained.suffix):

        def score(ids: Any, mask: Any, places: Sequence[int] = places) -> Any:
            return reply_logps(subject.model, count, ids, mask)[:, list(places)].sum(-1)

        one = Explained(subject.model, score, explained.reading, explained.pad_id, explained.suffix)
        found.append(ReplyWord(said, one.value(), integrated_gradients(one, steps)))
    return found


def _words_of(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Words of a reply, and the places of their tokens; the last is its end."""
    words: list[tuple[str, list[int]]] = []
    begin = 0
    for place in range(len(ids) - 1):
        text = tokenizer.decode(ids[begin : place + 2])
        if place == len(ids) - 2 or len(word_spans(text)) > 1:
            words.append((tokenizer.decode(ids[begin : place + 1]).strip(), list(range(begin, place + 1))))
            begin = place + 1
    return [*words, ("(end)", [len(ids) - 1])]


# What they come to ----------------------------------------------------------------------------------------------------


def headline(deleted: Sequence[Deletion], words: int) -> Deletion | None:
    """The deletion of about SHARE of the words; None of a text of a single word."""
    wanted = max(round(SHARE * words), 1)
    return min(deleted, key=lambda each: abs(len(each.words) - wanted), default=None)


def is_unmoved(one: Explanation) -> bool:
    """Whether next to nothing of a number is owed to the words: less than 0.001 to each, of a score less than a
    thousandth of it, or than a millionth where it is near 0."""
    least = 1e-3 * (max(abs(one.value), 1e-3) if one.unit == SCORE else 1.0)
    return bool(max(np.abs(one.gradients.words).max(), np.abs(one.shapley).max()) < least)


def over_texts(found: Sequence[Explanation]) -> dict[str, tuple[Interval, Interval, Interval]]:
    """For each method, over texts: how far the number falls without the fifth of the words that it names, without as
    many at random, and the difference of the two, with bootstrap intervals over texts."""
    said = {}
    for method in found[0].deletions if found else ():
        each = [headline(one.deletions[method], len(one.reading.words)) for one in found]
        pairs = [(one.important, one.random) for one in each if one is not None]
        if not pairs:
            continue
        said[method] = (
            bootstrap_mean([ours for ours, _ in pairs]),
            bootstrap_mean([others for _, others in pairs]),
            bootstrap_mean([ours - others for ours, others in pairs]),
        )
    return said


def as_json(found: Sequence[Explanation]) -> list[dict[str, Any]]:
    """The explanations as JSON values."""
    return [_as_json(one) for one in found]


def _as_json(one: Explanation) -> dict[str, Any]:
    words = range(len(one.reading.words))
    return {
        "text": one.reading.text,
        "what": one.what,
        "value": one.value,
        "reply": one.reply or None,
        "completeness": _completeness(one.gradients),
        "agreement": one.agreement,
        "words": [
            {
                "word": one.reading.said(i),
                "start": one.reading.words[i].start,
                "end": one.reading.words[i].end,
                "integrated_gradients": float(one.gradients.words[i]),
                "shapley": float(one.shapley[i]),
            }
            for i in words
        ],
        "deletions": {
            method: [{**asdict(each), "words": [one.reading.said(i) for i in each.words]} for each in rows]
            for method, rows in one.deletions.items()
        },
        "reply_words": [
            {
                "word": each.said,
                "log_probability": each.value,
                "integrated_gradients": each.gradients.words.tolist(),
                "completeness": _completeness(each.gradients),
            }
            for each in one.reply_words
        ],
    }


def _completeness(gradients: Gradients) -> dict[str, float]:
    return {"difference": gradients.difference, "delta": gradients.delta, "steps": gradients.steps}


def write_explanations(found: Sequence[Explanation], directory: Path, name: str) -> Path:
    """Write explanation.json and explanation.html; return the latter's path."""
    from rlobj.explanation_page import write_explanation_page

    atomic_write_json(directory / "explanation.json", rounded({"model": name, "texts": as_json(found)}))
    return write_explanation_page(directory / "explanation.html", found, name)
