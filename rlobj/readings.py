"""A text as a model reads it, in tokens, and as people read it, in words: which tokens are which word's."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from reward_models.trained import as_plain_text
from reward_models.words import is_ideograph
from rlobj.chat_format import Message
from rlobj.inference import encode_words


class Word(NamedTuple):
    """A word, where it stands in the text, and the places of its tokens."""

    start: int
    end: int
    tokens: tuple[int, ...]


class Part(NamedTuple):
    """What one speaker says, by its place in the text; a plain text is one part of no role."""

    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A text, the ids that a model reads it by, and the words that it can do without. Tokens of no word (special ones,
    a chat template's) are always there."""

    text: str
    parts: list[Part]
    ids: list[int]
    words: list[Word]

    def said(self, word: int) -> str:
        """A word as it stands in the text."""
        return self.text[self.words[word].start : self.words[word].end]

    def without(self, words: Collection[int], filler: int | None = None) -> list[int]:
        """The ids that are left when words are taken out, or with a filler in the place of each of their tokens."""
        gone = {token for word in words for token in self.words[word].tokens}
        left = [filler if place in gone else token for place, token in enumerate(self.ids)]
        return [token for token in left if token is not None]


def read_text(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> Reading:
    """A plain text, as `rlobj.inference.encode` encodes it: what stands behind `limit` tokens is cut, and no word.

    Raises:
        ValueError: the tokenizer does not know where a token stands, or there is no word.
    """
    plain = as_plain_text(tokenizer, text)
    return _reading(tokenizer, plain, [Part("", 0, len(plain))], limit, from_the_end=False)


def read_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], limit: int | None, to_be_answered: bool
) -> Reading:
    """A conversation in the tokenizer's chat template; only what was said is words. One longer than `limit` keeps its
    end, as policies and reward models read it.

    Args:
        to_be_answered: up to where the assistant begins to write.

    Raises:
        ValueError: as `read_text`.
    """
    plain = [{"role": m["role"], "content": as_plain_text(tokenizer, m["content"])} for m in messages]
    text: str = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=to_be_answered)
    parts, place = [], 0
    for message in plain:
        said = message["content"].strip()  # templates may take the space around it away
        found = text.find(said, place)
        if found < 0:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} does not repeat what was said, {said[:40]!r}: "
                "its words cannot be told apart from the template's"
            )
        place = found + len(said)
        parts.append(Part(message["role"], found, place))
    return _reading(tokenizer, text, parts, limit, from_the_end=True)


def _reading(
    tokenizer: PreTrainedTokenizerBase, text: str, parts: list[Part], limit: int | None, from_the_end: bool
) -> Reading:
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r} is not a fast one: it cannot say where a token stands")
    cut = {} if limit is None or from_the_end else {"truncation": True, "max_length": limit}
    encoded = tokenizer(
        text, add_special_tokens=not from_the_end, return_offsets_mapping=True, verbose=False, **cut
    )  # a template has its special tokens already
    ids, places = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    if from_the_end and limit is not None:
        ids, places = ids[-limit:], places[-limit:]
    special = set(tokenizer.all_special_ids)
    spoken = [None if i in special else tuple(place) for i, place in zip(ids, places, strict=True)]
    spans = [span for part in parts for span in word_spans(text, part.start, part.end)]
    words = _with_tokens(spans, spoken)
    if not words:
        raise ValueError(f"the text {text[:60]!r} has no word that the model reads: expected at least one")
    return Reading(text, parts, ids, words)


def read_words(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> Reading:
    """A text whose words spaces divide, as a classifier of tokens reads it; one with a tag for each of them.

    Raises:
        ValueError: as `read_text`.
    """
    said = [as_plain_text(tokenizer, word) for word in text.split()]
    ids, begins = encode_words(tokenizer, said, limit)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    tokens: dict[int, list[int]] = {}
    word = None
    for place, begun in enumerate(begins):
        word = word if begun is None else begun
        if word is not None and (begun is not None or ids[place] not in special):
            tokens.setdefault(word, []).append(place)
    if not tokens:
        raise ValueError(f"the text {text[:60]!r} has no word that the model reads: expected at least one")
    starts = list(accumulate((len(each) + 1 for each in said), initial=0))
    words = [Word(starts[i], starts[i] + len(said[i]), tuple(places)) for i, places in tokens.items()]
    return Reading(" ".join(said), [Part("", 0, starts[-1] - 1)], ids, words)


def word_spans(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Where words begin and end: runs of letters, marks and digits, apostrophes within; each Chinese character, kana
    and sign by itself."""
    spans: list[tuple[int, int]] = []
    joins = False
    for place in range(start, len(text) if end is None else end):
        sign = text[place]
        letter = not is_ideograph(sign) and (sign.isalnum() or unicodedata.category(sign)[0] == "M")
        within = joins and (letter or (sign in "'’" and text[place + 1 : place + 2].isalpha()))
        if within:
            spans[-1] = spans[-1][0], place + 1
        elif not sign.isspace():
            spans.append((place, place + 1))
        joins = within or letter
    return spans


def _with_tokens(spans: Sequence[tuple[int, int]], tokens: Sequence[tuple[int, ...] | None]) -> list[Word]:
    """Words that have tokens; those that share a token are one. A token of space alone is the next word's."""
    words: list[Word] = []
    first = 0
    space: list[tuple[int, int]] = []
    for place, span in enumerate(tokens):
        if span is None or span[0] == span[1]:
            continue
        while first < len(spans) and spans[first][1] <= span[0]:
            first += 1
        last = first
        while last < len(spans) and spans[last][0] < span[1]:
            last += 1
        if first == last:
            space.append((span[1], place))
            continue
        start, end = spans[first][0], spans[last - 1][1]
        mine = (*[token for behind, token in space if behind == start], place)
        space.clear()
        while words and words[-1].end > start:
            start, end, mine = min(words[-1].start, start), max(words[-1].end, end), words.pop().tokens + mine
        words.append(Word(start, end, mine))
    return words
