"""What a customer-service domain is: a JSON file of slots, entities and phrases, and the understanding of text in it.

A file in `envs/domains` is named without its ending, any other by its path. `rlobj new-domain NAME` writes one to begin
with. It is checked when it is loaded (envs/domain_files.py). Its keys:

| key | holds |
|---|---|
| `name` | the domain's name |
| `speech` | the file with phrases of customers and agents that all domains of a language share: `english`, `chinese` |
| `article`, `thing` | what is served, as in "i am looking for {article} {thing}" |
| `constraints` | slot -> what a customer may want of it, see below |
| `requests` | slot -> what a customer may want to be told of it, see below |
| `entities` | what is on offer: a list of {"name": ..., slot: value for every slot} |

A constraint has `words` (how the slot is named), `values` (value -> ways to say it), `customer_says` (phrases with
{value} in them) and `agent_asks` (each with one of `words` in it). A request has `words`, `values` (a list),
`customer_asks` (each with one of `words` in it) and `agent_says` (with {value}). A key that begins with _ is
a comment, anywhere. Text is understood by its words alone, so no word may mean two slots, and what is said with the
phrases must be understood as it is meant; both are checked.

A speech file has `customer` and `agent` (kind of utterance -> phrases), `styles` (a way of speaking -> its phrases in
place of those of `customer`, and `inform`, how it says a wish), `words` (signs: what words mean in any domain), `glue`
(what joins two answers, ends a sentence, parts two sentences) and `screen` (the desk screen's lines).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from envs.choice import nearest
from envs.domain_files import File, check_meanings, check_slots, check_speech

Entity = Mapping[str, str]

FOLDER = Path(__file__).parent / "domains"

STARTER = Path(__file__).parent / "starter_domain.json"

# Scripts without spaces between words: kana and Chinese characters. Elsewhere a phrase ends where a word ends.
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")
_SPACED_CHARACTER = rf"[^\W{UNSPACED}]"


@dataclass(slots=True)
class Understood:
    """What was found in a text, in its order."""

    names: list[str] = field(default_factory=list)
    constraints: dict[str, str] = field(default_factory=dict)
    """Slot -> value; the last one said."""
    facts: dict[str, set[str]] = field(default_factory=dict)
    """Request slot -> values said."""
    slots: list[str] = field(default_factory=list)
    """Slots named without a value, of both kinds."""
    signs: set[str] = field(default_factory=set)
    """Keys of the speech's `words`, such as book, any and again."""


@dataclass(frozen=True, eq=False)
class Domain:
    """A validated domain file."""

    name: str
    thing: str
    article: str
    constraints: dict[str, dict[str, Any]]
    requests: dict[str, dict[str, Any]]
    entities: list[dict[str, str]]
    speech: dict[str, Any]

    @cached_property
    def by_name(self) -> dict[str, dict[str, str]]:
        return {entity["name"]: entity for entity in self.entities}

    def matching(self, constraints: Mapping[str, str]) -> list[dict[str, str]]:
        """Entities that have these values, in the order of the file."""
        return [e for e in self.entities if all(e[slot] == value for slot, value in constraints.items())]

    def _phrases(self) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """Every phrase with a meaning: (kind, slot or sign, value)."""
        for entity in self.entities:
            yield entity["name"], ("name", entity["name"], "")
        for slot, spec in self.constraints.items():
            yield from ((word, ("slot", slot, "")) for word in spec["words"])
            yield from ((way, ("constraint", slot, value)) for value, ways in spec["values"].items() for way in ways)
        for slot, spec in self.requests.items():
            yield from ((word, ("slot", slot, "")) for word in spec["words"])
            yield from ((value, ("fact", slot, value)) for value in spec["values"])
        for sign, words in self.speech["words"].items():
            yield from ((word, ("sign", sign, "")) for word in words)

    @cached_property
    def _meanings(self) -> dict[str, list[tuple[str, str, str]]]:
        meanings: dict[str, list[tuple[str, str, str]]] = {}
        for phrase, meaning in self._phrases():
            meanings.setdefault(phrase.lower(), []).append(meaning)
        return meanings

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        phrases: dict[tuple[bool, bool], list[str]] = {}  # by whether they begin, and end, in an unspaced script
        for phrase in sorted(self._meanings, key=len, reverse=True):  # the longest is tried first
            ends = bool(_UNSPACED_CHARACTER.match(phrase[0])), bool(_UNSPACED_CHARACTER.match(phrase[-1]))
            phrases.setdefault(ends, []).append(re.escape(phrase))
        before, after = f"(?<!{_SPACED_CHARACTER})", f"(?!{_SPACED_CHARACTER})"
        return re.compile(
            "|".join(
                ("" if begins else before) + f"(?:{'|'.join(ways)})" + ("" if ends else after)
                for (begins, ends), ways in phrases.items()
            )
        )

    def understand(self, text: str) -> Understood:
        """Find names, slots, values and signs in a text, by their words."""
        found = Understood()
        for match in self._pattern.finditer(text.lower()):
            for kind, name, value in self._meanings[match.group()]:
                if kind == "name" and name not in found.names:
                    found.names.append(name)
                elif kind == "constraint":
                    found.constraints[name] = value
                elif kind == "fact":
                    found.facts.setdefault(name, set()).add(value)
                elif kind == "slot" and name not in found.slots:
                    found.slots.append(name)
                elif kind == "sign":
                    found.signs.add(name)
        return found


@lru_cache
def load_domain(name_or_path: str) -> Domain:
    """A shipped domain by name, or a domain file by path.

    Raises:
        ValueError: there is none, or it is not valid: file, line, field, what was expected.
    """
    path = FOLDER / f"{name_or_path}.json" if os.sep not in name_or_path else Path(name_or_path)
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        shipped = shipped_domains()
        hint = nearest(name_or_path, shipped) or ": expected a shipped domain, or the path of a domain file"
        raise ValueError(f"domain is {name_or_path!r}{hint} (shipped: {', '.join(shipped)})")
    file = File(path)
    check_slots(file)
    speech_path = path.parent / f"{file.data['speech']}.json"
    if not speech_path.is_file():
        speech_path = FOLDER / f"{file.data['speech']}.json"
    if not speech_path.is_file():
        file.refuse(("speech",), f"is {file.data['speech']!r}: there is no {file.data['speech']}.json beside it")
    speech = File(speech_path)
    check_speech(speech)
    fields = ("name", "thing", "article", "constraints", "requests", "entities")
    domain = Domain(**{key: file.data[key] for key in fields}, speech=speech.data)
    check_meanings(domain, file, speech)
    return domain


def shipped_domains() -> list[str]:
    """Names of the domains that come with the package."""
    return sorted(p.stem for p in FOLDER.glob("*.json") if "speech" in json.loads(p.read_text("utf-8")))


def write_starter(name: str, folder: str | os.PathLike[str] = ".") -> Path:
    """Write a commented domain file to begin with, NAME.json, and return its path.

    Raises:
        ValueError: the name is taken, by a shipped domain or a file, or is no plain file name.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"name is {name!r}: expected letters, digits, _ and - only: it becomes a file's name")
    path = Path(folder) / f"{name}.json"
    if (FOLDER / f"{name}.json").exists():
        raise ValueError(f"name is {name!r}, which is the name of a shipped file: expected another")
    text = STARTER.read_text(encoding="utf-8").replace('"NAME"', json.dumps(name, ensure_ascii=False))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path} exists already: choose another name, or remove the file") from None
    return path


def fill(template: str, **values: str) -> str:
    """A phrase with its gaps filled."""
    return template.format_map(values)
