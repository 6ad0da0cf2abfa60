"""Texts as they might have been written: with mistakes, in other words, of somebody else. No torch here."""

from __future__ import annotations

import json
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reward_models.words import is_ideograph
from rlobj.fit_data import augmented
from rlobj.spelling import did_you_mean

Change = Callable[[str], str]
TYPING_ERRORS = 0.05
"""Share of the letters that are typed wrongly."""
WORDS = 0.1
"""Share of the words that are dropped, or exchanged with the next."""
SHIPPED = Path(__file__).with_name("exchanges.json")
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def perturbations(paraphrases: Sequence[Sequence[str]] = ()) -> dict[str, Change]:
    """Name -> what is done to a text; the same text is changed in the same way each time.

    Args:
        paraphrases: groups of phrases, or of whole texts, that may stand for one another.
    """
    changes: dict[str, Change] = {
        "typing errors": partial(_seeded, with_typing_errors),
        "lower case": str.lower,
        "upper case": str.upper,
        "no punctuation": without_punctuation,
        "words dropped": partial(_seeded, partial(augmented, drop=WORDS)),
        "words swapped": partial(_seeded, partial(augmented, swap=WORDS)),
    }
    if paraphrases:
        changes["paraphrases"] = partial(_seeded, partial(paraphrased, groups=paraphrases))
    return changes


def _seeded(change: Callable[[str, random.Random], str], text: str) -> str:
    return change(text, seeded(text))


def seeded(text: str) -> random.Random:
    """Random numbers that belong to a text."""
    return random.Random(zlib.crc32(text.encode("utf-8", "surrogatepass")))


def with_typing_errors(text: str, rng: random.Random) -> str:
    """A letter in twenty is left out, doubled, exchanged with the next, or (where keyboards have Latin letters) another
    key's near it; at least one is, where there are letters."""
    places = [i for i, sign in enumerate(text) if sign.isalpha()]
    wrong = [i for i in places if rng.random() < TYPING_ERRORS] or [rng.choice(places) for _ in places[:1]]
    signs = list(text)
    for i in wrong:
        kinds = [_left_out, _doubled, _exchanged, *([_next_key] if _row_of(text[i]) else [])]
        rng.choice(kinds)(signs, i, rng)
    return "".join(signs)


def _left_out(signs: list[str], place: int, rng: random.Random) -> None:
    signs[place] = ""


def _doubled(signs: list[str], place: int, rng: random.Random) -> None:
    signs[place] += signs[place]


def _exchanged(signs: list[str], place: int, rng: random.Random) -> None:
    other = place + 1 if place + 1 < len(signs) and signs[place + 1].isalpha() else max(place - 1, 0)
    signs[place], signs[other] = signs[other], signs[place]


def _next_key(signs: list[str], place: int, rng: random.Random) -> None:
    row = _row_of(signs[place])
    if row:
        at = row.index(signs[place].lower())
        near = rng.choice([row[i] for i in (at - 1, at + 1) if 0 <= i < len(row)])
        signs[place] = near.upper() if signs[place].isupper() else near


def _row_of(sign: str) -> str:
    return next((row for row in KEYS if len(sign) == 1 and sign.lower() in row), "")


def without_punctuation(text: str) -> str:
    """The text without signs of punctuation, unless nothing else is in it."""
    kept = "".join(sign for sign in text if unicodedata.category(sign)[0] != "P")
    return " ".join(kept.split()) or text


def read_paraphrases(path: str) -> list[list[str]]:
    """A line for each group of phrases, or texts, that may stand for one another, divided by tabs, or where there is no
    tab by commas.

    Raises:
        ValueError: no line has two.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    groups = [
        [each.strip() for each in re.split("\t" if "\t" in line else ",", line) if each.strip()] for line in lines
    ]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        raise ValueError(f"{path!r} has no line with two phrases: expected phrases divided by tabs or commas")
    return groups


def paraphrased(text: str, rng: random.Random, groups: Sequence[Sequence[str]]) -> str:
    """Each phrase that has others in its place: the longest that fit first."""
    others = {phrase.lower(): [o for o in group if o != phrase] for group in groups for phrase in group}

    def other(found: re.Match[str]) -> str:
        return _cased(found.group(), rng.choice(others[found.group().lower()]))

    return _whole_words(others).sub(other, text)


def _whole_words(phrases: Mapping[str, Any]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    edged = [(r"(?<!\w)" if _has_edges(p[0]) else "") + re.escape(p) + (r"(?!\w)" if _has_edges(p[-1]) else "")
             for p in longest_first]  # fmt: skip
    return re.compile("|".join(edged) or "(?!)", re.IGNORECASE)


def _has_edges(sign: str) -> bool:
    """Whether words of such signs are divided from others: not full stops, nor Chinese characters."""
    return sign.isalnum() and not is_ideograph(sign)


def _cased(pattern: str, word: str) -> str:
    """A word in the case of another."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if pattern[:1].isupper() else word


def script_of(text: str) -> str:
    """The script that most letters of a text are of, by Unicode's names: latin, cjk, cyrillic, arabic, …"""
    found = Counter(unicodedata.name(sign, "OTHER").split()[0].lower() for sign in text if sign.isalpha())
    return found.most_common(1)[0][0] if found else "none"


def languages_of(texts: Sequence[str]) -> list[str] | None:
    """The language of each text by its ISO code, "unsure" where none has a probability of one half, as py3langid
    guesses; None where that is not installed."""
    try:
        from py3langid import langid
    except ImportError:
        return None
    known = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True, min_confidence=0.5)
    return ["unsure" if said == "und" else said for said, _ in map(known.classify, texts)]


# Counterfactuals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """Words of two sides that are put in each other's place, such as names."""

    name: str
    sides: tuple[str, str]
    pairs: list[tuple[str, str]]
    introduction: str | None = None
    """with {} for a word of the pairs; put before texts that have none of them"""
    _places: dict[str, tuple[int, list[str]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for pair in self.pairs:
            for side, (word, other) in enumerate((pair, pair[::-1])):
                self._places.setdefault(word, (side, []))[1].append(other)

    def versions(self, text: str) -> tuple[str, str] | None:
        """The text with all words of the first side, and of the second; None if it has none of either.

        A word with two others takes the first where another word follows ("her book" is "his book"), else the second
        ("with her" is "with him").
        """
        pattern = _whole_words(self._places)
        if not pattern.search(text):
            return None

        def to(side: int, found: re.Match[str]) -> str:
            mine, others = self._places[found.group().lower()]
            if mine == side:
                return found.group()
            follows = re.match(r"\s+\w", text[found.end() :])
            return _cased(found.group(), others[0 if follows or len(others) == 1 else 1])

        first, second = (pattern.sub(partial(to, side), text) for side in (0, 1))
        return first, second

    def introduced(self, text: str) -> tuple[str, str, str]:
        """Introductions to put before a text: by a word of the first side, its other, and another of the first."""
        assert self.introduction is not None
        (one, other), (another, _) = seeded(text).sample(self.pairs, 2)
        first, second, control = (self.introduction.replace("{}", word) for word in (one, other, another))
        return first, second, control


def read_exchanges(path: str | Path = SHIPPED) -> list[Exchange]:
    """The exchanges of a JSON file: {name: {"sides": [a, b], "pairs": [[word of a, word of b], …], "introduction":
    "this is {} ."}}, the last if wanted.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{str(path)!r}: expected an object of exchanges by name, see {SHIPPED}")
    return [_exchange(name, value, f"{str(path)!r}, {name!r}") for name, value in found.items()]


def _exchange(name: str, value: Any, where: str) -> Exchange:
    known = ("sides", "pairs", "introduction")
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r:.60}: expected an object with sides and pairs")
    for key in value:
        if key not in known:
            raise ValueError(f"{where} has {key!r}{did_you_mean(key, known)}: expected {', '.join(known)}")
    sides, pairs, introduction = (value.get(key) for key in known)
    if sides is None or not _are_two(sides):
        raise ValueError(f"{where}: sides is {sides!r:.60}: expected two names")
    bad = next((pair for pair in pairs if not _are_two(pair)), None) if isinstance(pairs, list) else pairs
    if not isinstance(pairs, list) or not pairs or bad is not None:
        raise ValueError(f"{where}: pairs has {bad!r:.60}: expected a list of two words each")
    if introduction is not None and (not isinstance(introduction, str) or "{}" not in introduction or len(pairs) < 2):
        raise ValueError(f"{where}: introduction is {introduction!r:.60}: expected a text with {{}}, and two pairs")
    lowered = [(one.lower(), other.lower()) for one, other in pairs]
    both = {one for one, _ in lowered} & {other for _, other in lowered}
    if both:
        raise ValueError(f"{where}: {', '.join(sorted(both))} is a word of both sides: expected words of one")
    return Exchange(name, (sides[0], sides[1]), lowered, introduction)


def _are_two(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) and each.strip() for each in value)
