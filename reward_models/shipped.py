"""Rewards that are shipped: of what the policy said last, in any script. Nothing here imports torch.

Those that need no parameter are functions with TRL's signature; `regex_match`, `forbidden_words` and `tag_format` make
one from their parameters, which are checked then.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from reward_models.calling import nearest
from reward_models.protocol import Conversation, Reward
from reward_models.words import contains, words

Said = str | Conversation
"""A completion: messages, or the text alone, as TRL has it for data that are no conversations."""


def label_match(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    column: str = "label",
    ignore_case: bool = False,
    **columns: Any,
) -> list[float]:
    """1 if the policy's last message is the column `label`, else 0."""
    plain = _folded if ignore_case else str
    labels = column_of("label_match", column, columns)
    return [float(plain(said(each)) == plain(str(want))) for each, want in zip(completions, labels, strict=True)]


def exact_match(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    column: str = "reference",
    ignore_case: bool = False,
    **columns: Any,
) -> list[float | None]:
    """1 if the policy's last message is the column `reference`, or one of several there, else 0; none without one."""
    plain = _folded if ignore_case else str.strip
    return best_over_references(
        "exact_match", lambda text, want: float(plain(text) == plain(want)), completions, column, columns
    )


def fuzzy_match(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    column: str = "reference",
    at_least: float = 0.0,
    **columns: Any,
) -> list[float | None]:
    """How alike the policy's last message and the column `reference` are, 0 to 1, letter by letter without case.

    Twice the letters that match in order over the letters of both (Ratcliff and Obershelp); less than `at_least` is 0.
    """

    def alike(text: str, want: str) -> float:
        share = difflib.SequenceMatcher(None, _folded(text), _folded(want), autojunk=False).ratio()
        return share if share >= at_least else 0.0

    return best_over_references("fuzzy_match", alike, completions, column, columns)


def success(prompts: Sequence[Said], completions: Sequence[Said], **columns: Any) -> list[float]:
    """1 if the environment says that the task was done (column `success`), else 0."""
    return [float(done) for done in column_of("success", "success", columns)]


def length_window(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    low: int = 1,
    high: int = 40,
    unit: Literal["words", "characters"] = "words",
    **columns: Any,
) -> list[float]:
    """1 if the policy's last message has 1 to 40 words; less, the farther from there.

    A Chinese character counts as a word; `unit="characters"` counts every character.

    Raises:
        ValueError: low is above high, or negative; or another unit.
    """
    if not 0 <= low <= high:
        raise ValueError(f"low is {low} and high is {high} {unit}: expected 0 <= low <= high")
    return [_in_window(len(_units(said(each), unit)), low, high) for each in completions]


def no_repetition(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    n: int = 3,
    unit: Literal["words", "characters"] = "words",
    **columns: Any,
) -> list[float]:
    """Share of the word triples in the policy's last message that are not said again: 1 where nothing is repeated.

    Raises:
        ValueError: n is below 1, or another unit.
    """
    if n < 1:
        raise ValueError(f"n is {n}: expected at least 1 word")
    return [_distinct(_units(said(each), unit), n) for each in completions]


def regex_match(pattern: str, whole: bool = False, ignore_case: bool = False) -> Reward:
    """1 if the regular expression `pattern` is found in the policy's last message (`whole`: is all of it), else 0.

    Raises:
        ValueError: the pattern is none.
    """
    try:
        compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise ValueError(f"pattern is {pattern!r}: expected a regular expression ({error})") from error
    return functools.partial(_judged, functools.partial(_is_found, compiled, whole))


def forbidden_words(phrases: Sequence[str]) -> Reward:
    """0 if any of `phrases` stands in the policy's last message, by whole words without case, else 1.

    Raises:
        ValueError: no phrases, or one without a word.
    """
    return functools.partial(_judged, functools.partial(_lacks, _phrases(phrases)))


def json_format(
    prompts: Sequence[Said], completions: Sequence[Said], keys: Sequence[str] = (), **columns: Any
) -> list[float]:
    """1 if the policy's last message is JSON (an object with all of `keys`, if given), a code fence aside, else 0."""
    return [float(_is_json(said(each), keys)) for each in completions]


def tag_format(tags: Sequence[str] = ("think", "answer")) -> Reward:
    """1 if the policy's last message is <think>…</think><answer>…</answer>, or so with other `tags`, else 0.

    Raises:
        ValueError: no tags.
    """
    if not tags or isinstance(tags, str):
        raise ValueError(f"tags is {tags!r}: expected a list of names, such as ['think', 'answer']")
    inside = "|".join(f"</?{re.escape(tag)}>" for tag in tags)
    parts = (f"<{re.escape(tag)}>(?:(?!{inside}).)*</{re.escape(tag)}>" for tag in tags)
    return functools.partial(
        _judged, functools.partial(_is_found, re.compile(r"\s*" + r"\s*".join(parts) + r"\s*", re.DOTALL), True)
    )


POLITE = (
    "please", "thank you", "thanks", "sorry", "you're welcome", "happy to", "bitte", "danke", "gern", "entschuldigung",
    "s'il vous plaît", "merci", "désolé", "por favor", "gracias", "perdón", "请", "谢谢", "感谢", "您", "抱歉",
    "不客气", "お願い", "ありがとう", "すみません",
)  # fmt: skip
RUDE = (
    "shut up", "stupid", "idiot", "damn", "dumb", "moron", "halt die klappe", "dumm", "blöd", "ta gueule", "stupide",
    "cállate", "estúpido", "闭嘴", "笨蛋", "白痴", "黙れ", "馬鹿", "ばか",
)  # fmt: skip


def politeness(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    polite: Sequence[str] = POLITE,
    rude: Sequence[str] = RUDE,
    **columns: Any,
) -> list[float]:
    """0 if the policy's last message has a rude phrase, 1 if it has a polite one and none that is rude, else 0.5.

    By lists of a few English, German, French, Spanish, Chinese and Japanese phrases; give your own for more.
    """
    kind, unkind = _phrases(polite), _phrases(rude)
    scores = []
    for each in completions:
        text = words(said(each))
        has_rude = any(contains(text, phrase) for phrase in unkind)
        scores.append(0.0 if has_rude else 1.0 if any(contains(text, phrase) for phrase in kind) else 0.5)
    return scores


def slot_coverage(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    column: str = "slots",
    values: Sequence[str] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Share of the values in the column `slots` (a list, or {slot: value}), or of `values`, that the policy has said.

    Every message of the policy counts; no reward where there are no values.
    """
    wanted = [values] * len(completions) if values is not None else column_of("slot_coverage", column, columns)
    scores: list[float | None] = []
    for each, want in zip(completions, wanted, strict=True):
        phrases = [words(str(v)) for v in (want.values() if isinstance(want, Mapping) else want or ())]
        text = words(each if isinstance(each, str) else "\n".join(_by_the_policy(each)))
        scores.append(sum(contains(text, phrase) for phrase in phrases) / len(phrases) if phrases else None)
    return scores


# What they share ------------------------------------------------------------------------------------------------------


def said(completion: Said) -> str:
    """The policy's last message."""
    if isinstance(completion, str):
        return completion
    return next(reversed(_by_the_policy(completion)), "")


def _by_the_policy(completion: Conversation) -> list[str]:
    return [m["content"] for m in completion if m["role"] == "assistant"]


def column_of(reward: str, name: str, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """The column that a reward reads.

    Raises:
        ValueError: there is none of this name; the nearest is told.
    """
    if name not in columns:
        raise ValueError(
            f"reward {reward!r} reads the column {name!r}, but there are {sorted(columns)}{nearest(name, columns)}: "
            "use an environment or a data set that has it, or another reward"
        )
    return columns[name]


def best_over_references(
    reward: str,
    score: Callable[[str, str], float],
    completions: Sequence[Said],
    column: str,
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """`score` of the policy's last message and the reference, the best of several; None without one."""
    scores: list[float | None] = []
    for each, want in zip(completions, column_of(reward, column, columns), strict=True):
        references = [want] if isinstance(want, str) else list(want or ())
        scores.append(max((score(said(each), reference) for reference in references), default=None))
    return scores


def _judged(judge: Callable[[str], bool], prompts: Sequence[Said], completions: Sequence[Said], **columns: Any) -> Any:
    return [float(judge(said(each))) for each in completions]


def _is_found(pattern: re.Pattern[str], whole: bool, text: str) -> bool:
    return (pattern.fullmatch(text) if whole else pattern.search(text)) is not None


def _lacks(phrases: list[list[str]], text: str) -> bool:
    found = words(text)
    return not any(contains(found, phrase) for phrase in phrases)


def _phrases(phrases: Iterable[str]) -> list[list[str]]:
    if isinstance(phrases, str):
        raise ValueError(f"phrases is {phrases!r}: expected a list of texts")
    split = {phrase: words(phrase) for phrase in phrases}
    if not split or not all(split.values()):
        raise ValueError(f"phrases is {list(split)}: expected texts, each with a word in it")
    return list(split.values())


_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)


def _is_json(text: str, keys: Sequence[str]) -> bool:
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and all(key in value for key in keys))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # NaN and Infinity, which Python would read


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _units(text: str, unit: str) -> Sequence[str]:
    if unit not in ("words", "characters"):
        raise ValueError(f"unit is {unit!r}: expected 'words' or 'characters'")
    return words(text) if unit == "words" else unicodedata.normalize("NFC", text)


def _in_window(length: int, low: int, high: int) -> float:
    if low <= length <= high:
        return 1.0
    return length / low if length < low else high / length


def _distinct(units: Sequence[str], n: int) -> float:
    runs = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0
