"""What a customer-service domain is: a JSON file of slots, entities and phrases, and the understanding of text in it.

A file in `envs/domains` is named without its ending, any other by its path. Its keys:

- `name`, `thing`, `article`: what is served ("an" "internet plan");
- `speech`: the file with phrases of customers and agents that all domains of a language share;
- `constraints`: slot -> `words` (how it is named), `values` (value -> ways to say it), `customer_says`, `agent_asks`;
- `requests`: slot -> `words`, `values` (a list), `customer_asks`, `agent_says`;
- `entities`: what is on offer, each with a `name` and a value for every slot.
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

Entity = Mapping[str, str]

FOLDER = Path(__file__).parent / "domains"

CONSTRAINT_KEYS = {"words": list, "values": dict, "customer_says": list, "agent_asks": list}
REQUEST_KEYS = {"words": list, "values": list, "customer_asks": list, "agent_says": list}
SPEECH_KEYS = {
    "customer": (
        "opening", "join", "repeat", "any", "accept", "reject", "request", "wrong", "early", "book", "mishear",
        "confused", "thanks", "leave", "unfinished",
    ),
    "agent": ("offer", "book", "answer", "filler", "bye"),
    "words": ("book", "wants_booking", "bye", "any", "again"),
    "screen": ("missing", "complete", "none", "record"),
}  # fmt: skip


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
    """Keys of the speech's `words`: book, wants_booking, bye, any, again."""


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
        longest_first = sorted(self._meanings, key=len, reverse=True)
        return re.compile(r"(?<!\w)(" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")

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
        ValueError: there is none, or it is not valid: file, field, what was expected.
    """
    path = FOLDER / f"{name_or_path}.json" if os.sep not in name_or_path else Path(name_or_path)
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        shipped = sorted(p.stem for p in FOLDER.glob("*.json") if "speech" in json.loads(p.read_text("utf-8")))
        raise ValueError(f"domain is {name_or_path!r}: expected one of {', '.join(shipped)}, or a domain file's path")
    data = _read(path)
    for key, kind in {"name": str, "thing": str, "article": str, "speech": str, "constraints": dict,
                      "requests": dict, "entities": list}.items():  # fmt: skip
        _expect(path, key, data.get(key), kind)
    speech_path = path.parent / f"{data['speech']}.json"
    if not speech_path.is_file():
        speech_path = FOLDER / f"{data['speech']}.json"
    if not speech_path.is_file():
        raise ValueError(f"{path}: speech is {data['speech']!r}: there is no {data['speech']}.json beside it")
    speech = _read(speech_path)
    _check_speech(speech_path, speech)
    _check_slots(path, data)
    _check_entities(path, data)
    fields = ("name", "thing", "article", "constraints", "requests", "entities")
    return Domain(**{key: data[key] for key in fields}, speech=speech)


# Validation -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return data if isinstance(data, dict) else _expect(path, "the whole file", data, dict)


def _expect(path: Path, key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or not value:
        said = "text" if kind is str else "a mapping" if kind is dict else "a list"
        raise ValueError(f"{path}: {key} is {'missing' if value is None else repr(value)}: expected {said}, not empty")
    return value


def _check_speech(path: Path, speech: dict[str, Any]) -> None:
    for section, keys in SPEECH_KEYS.items():
        _expect(path, section, speech.get(section), dict)
        for key in keys:
            _expect(path, f"{section}.{key}", speech[section].get(key), str if section == "screen" else list)


def _check_slots(path: Path, data: dict[str, Any]) -> None:
    owners: dict[str, str] = {}
    for part, keys in (("constraints", CONSTRAINT_KEYS), ("requests", REQUEST_KEYS)):
        for slot, spec in data[part].items():
            _expect(path, f"{part}.{slot}", spec, dict)
            for key, kind in keys.items():
                _expect(path, f"{part}.{slot}.{key}", spec.get(key), kind)
            ways = spec["values"] if part == "requests" else [w for ws in spec["values"].values() for w in ws]
            for way in [*ways, *spec["words"]]:
                if owners.setdefault(way.lower(), slot) != slot:
                    raise ValueError(
                        f"{path}: {part}.{slot} has {way!r}, which belongs to {owners[way.lower()]!r}: "
                        "a word can mean one slot only"
                    )
    both = data["constraints"].keys() & data["requests"].keys()
    if both:
        raise ValueError(f"{path}: {sorted(both)[0]!r} stands in constraints and in requests: rename one")


def _check_entities(path: Path, data: dict[str, Any]) -> None:
    names: set[str] = set()
    slots = {**data["constraints"], **data["requests"]}
    for number, entity in enumerate(data["entities"]):
        where = f"entities[{number}]"
        _expect(path, where, entity, dict)
        _expect(path, f"{where}.name", entity.get("name"), str)
        if entity["name"] in names:
            raise ValueError(f"{path}: {where}.name is {entity['name']!r} a second time: expected another name")
        names.add(entity["name"])
        for slot, spec in slots.items():
            if entity.get(slot) not in spec["values"]:
                raise ValueError(
                    f"{path}: {where}.{slot} is {entity.get(slot)!r}: expected one of {', '.join(spec['values'])}"
                )


def fill(template: str, **values: str) -> str:
    """A phrase with its gaps filled."""
    return template.format_map(values)
