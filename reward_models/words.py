"""Words of a text in any script."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_IDEOGRAPHS = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
"""Kana and Chinese characters: written without spaces, so each counts as a word."""


def words(text: str) -> list[str]:
    """Runs of letters, their marks and digits, in lower case; each Chinese character and kana by itself. Apostrophes
    within a word belong to it. Signs are none: "Don't, 你好!" has the words don't, 你, 好."""
    found: list[str] = []
    current = ""
    for sign in unicodedata.normalize("NFKC", text).casefold() + " ":
        alone = is_ideograph(sign)
        if not alone and (sign.isalnum() or unicodedata.category(sign)[0] == "M" or (current and sign in "'’")):
            current += sign
            continue
        if current:
            found.append(current.rstrip("'’"))
            current = ""
        if alone:
            found.append(sign)
    return found


def is_ideograph(sign: str) -> bool:
    return any(low <= ord(sign) <= high for low, high in _IDEOGRAPHS)


def contains(text: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the words of a phrase stand in a text one after the other: "ass" is not in "class"."""
    size = len(phrase)
    return any(list(text[i : i + size]) == list(phrase) for i in range(len(text) - size + 1))
