"""Score texts with a reward at once, without training: what a person writing a reward wants first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reward_models import load_reward

ANSWER, PROMPT, MESSAGES = ("completion", "text", "response"), "prompt", "messages"


class Text(NamedTuple):
    """One thing to score: an episode of one or more messages, and what else is known of it."""

    prompt: list[dict[str, str]]
    completion: list[dict[str, str]]
    columns: dict[str, Any]


def try_reward(
    spec: str,
    texts: Sequence[Text],
    kwargs: Mapping[str, Any] | None = None,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
) -> list[Any]:
    """What the reward that `spec` names gives for each text, in one call: a number or None.

    Raises:
        ValueError: no such reward, or it cannot score these; the errors of the reward itself pass through.
    """
    reward = load_reward(spec, kwargs, concurrency=concurrency, timeout=timeout)
    shared = set.intersection(*(set(text.columns) for text in texts)) if texts else set()
    return list(
        reward(
            prompts=[text.prompt for text in texts],
            completions=[text.completion for text in texts],
            **{name: [text.columns[name] for text in texts] for name in sorted(shared)},
        )
    )


def as_text(said: str, prompt: str | None = None, columns: Mapping[str, Any] | None = None) -> Text:
    """A policy's answer to a user's prompt."""
    asked = [] if prompt is None else [{"role": "user", "content": prompt}]
    return Text(asked, [{"role": "assistant", "content": said}], dict(columns or {}))


def read_texts(path: str, prompt: str | None = None, columns: Mapping[str, Any] | None = None) -> list[Text]:
    """The texts of a file, one a line: plain text, or JSON lines (`.jsonl`) with `completion` (or `text`), `prompt`, or
    `messages`, and columns beside them.

    Raises:
        ValueError: a line is not such a row, or there is none.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path!r} is empty: expected a text in each line")
    if Path(path).suffix not in (".jsonl", ".json"):
        return [as_text(line, prompt, columns) for _, line in numbered]
    return [_row(line, f"{path}, line {number}", prompt, columns or {}) for number, line in numbered]


def _row(line: str, where: str, prompt: str | None, columns: Mapping[str, Any]) -> Text:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if isinstance(row, str):
        return as_text(row, prompt, columns)
    if not isinstance(row, dict) or not any(name in row for name in (*ANSWER, MESSAGES)):
        raise ValueError(f"{where} is {line[:80]}: expected text, or an object with {', '.join(ANSWER)} or {MESSAGES}")
    if MESSAGES in row:
        said = row.pop(MESSAGES)
        opening = next((i for i, m in enumerate(said) if m["role"] == "assistant"), len(said))
        return Text(said[:opening], said[opening:], {**columns, **row})
    said = row.pop(next(name for name in ANSWER if name in row))
    asked = row.pop(PROMPT, prompt)
    return Text([] if asked is None else _messages(asked, "user"), _messages(said, "assistant"), {**columns, **row})


def _messages(said: Any, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": said}] if isinstance(said, str) else list(said)


def split_dotted(arguments: Sequence[str], sections: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take `--section.name value` out of the arguments; what is left, and the values of each section, read as JSON, or
    as text.

    Raises:
        ValueError: a name without a value, or a section that is no mapping.
    """
    left: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    waiting = iter(arguments)
    for argument in waiting:
        key, equals, value = argument.removeprefix("--").partition("=")
        section, _, name = key.partition(".")
        if not argument.startswith("--") or section not in values or (name and "." in name):
            left.append(argument)
            continue
        given = value if equals else next(waiting, None)
        if given is None:
            raise ValueError(f"--{key} has no value: expected --{key} VALUE")
        read = _value(given)
        if name:
            values[section][name] = read
        elif isinstance(read, dict):
            values[section] |= read
        else:
            raise ValueError(f"--{key} is {given!r}: expected a JSON object, or --{key}.NAME VALUE")
    return left, values


def _value(given: str) -> Any:
    try:
        return json.loads(given)
    except ValueError:
        return given


def table(texts: Sequence[Text], scores: Sequence[Any], width: int = 100) -> str:
    """A line per text: its score, and the beginning of what the policy said last; then what they come to."""
    lines = []
    for text, score in zip(texts, scores, strict=True):
        said = next((m["content"] for m in reversed(text.completion) if m["role"] == "assistant"), "")
        shown = " ".join(said.split())
        shown = shown if len(shown) <= width else shown[: width - 1] + "…"
        lines.append(f"{_number(score):>10}  {shown}".rstrip())
    known = [float(score) for score in scores if score is not None]
    if len(scores) > 1:
        mean = f"mean {_number(sum(known) / len(known))}, from {_number(min(known))} to {_number(max(known))}; "
        lines.append(f"{mean if known else ''}{len(scores)} texts, {len(scores) - len(known)} without a reward")
    return "\n".join(lines)


def _number(score: Any) -> str:
    return "none" if score is None else f"{float(score):.4g}"
