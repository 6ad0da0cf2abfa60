"""Reading and checking domain files: an error says file, line and field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, NoReturn

from envs.choice import nearest

if TYPE_CHECKING:
    from envs.domain import Domain

Place = tuple[str | int, ...]
"""Keys and list indices from the top of a file to one of its values."""

DOMAIN_KEYS = {
    "name": str, "speech": str, "thing": str, "article": str, "constraints": dict, "requests": dict, "entities": list,
}  # fmt: skip
CONSTRAINT_KEYS = {"words": list, "values": dict, "customer_says": list, "agent_asks": list}
REQUEST_KEYS = {"words": list, "values": list, "customer_asks": list, "agent_says": list}
SPEECH_KEYS = {"customer": dict, "styles": dict, "agent": dict, "words": dict, "glue": dict, "screen": dict}

CUSTOMER_GAPS = {
    "opening": "inform", "join": "first second", "repeat": "inform", "any": "slot", "accept": "name",
    "reject": "inform", "request": "requests", "wrong": "", "early": "", "book": "name", "mishear": "", "confused": "",
    "thanks": "", "leave": "", "unfinished": "", "next": "inform", "correct": "inform", "change": "inform",
    "sold_out": "name", "aside": "", "impatient": "",
}  # fmt: skip
"""Phrases of customers, with the gaps that they may have beside {thing} and {article}."""
AGENT_GAPS = {
    "offer": "name", "book": "name", "answer": "answers", "filler": "", "bye": "", "none": "", "back": "last",
}  # fmt: skip
SCREEN_GAPS = {"missing": "slots count first", "complete": "slots count first", "none": "", "record": "name facts"}
SIGNS = ("book", "wants_booking", "bye", "any", "again", "none", "aside", "next")
GLUE = ("and", "stop", "space")

MUST_HAVE = {"inform", "first", "second", "requests", "answers", "last", "value"}
"""Gaps without which a phrase would say nothing."""
MUST_SIGN = {
    "customer": {"any": "any", "book": "wants_booking", "mishear": "again", "aside": "aside", "next": "next"},
    "agent": {"book": "book", "bye": "bye", "none": "none"},
}
"""Phrases by which the other side must know what is meant, and the sign that says it."""


class File:
    """A JSON object with the line of everything in it. Keys that begin with an underscore are comments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
        except RecursionError as error:
            raise ValueError(f"{path} is nested too deeply: expected a domain") from error
        self._lines: dict[Place, int] = {}
        for place, position in _places(text):
            line = text.count("\n", 0, position) + 1
            if place in self._lines:
                raise ValueError(
                    f"{path}:{line}: {said(place)} stands a second time, after line {self._lines[place]}: remove one"
                )
            self._lines[place] = line
        self.data: dict[str, Any] = without_comments(data) if isinstance(data, dict) else {}
        if not self.data:
            self.refuse((), "expected a JSON object, not empty")

    def refuse(self, place: Place, problem: str) -> NoReturn:
        """Raise ValueError with file, line and field; a field that is missing has the line of what should hold it."""
        known = place
        while known not in self._lines:
            known = known[:-1]
        raise ValueError(f"{self.path}:{self._lines[known]}: {said(place)} {problem}")

    def expect(self, place: Place, value: Any, kind: type) -> None:
        """Refuse a value that is missing, of another kind, or empty."""
        if not isinstance(value, kind) or not value:
            wanted = "text" if kind is str else "a mapping" if kind is dict else "a list"
            self.refuse(place, f"is {'missing' if value is None else repr(value)}: expected {wanted}, not empty")

    def expect_keys(self, place: Place, value: Any, keys: Mapping[str, type]) -> None:
        """Refuse anything but a mapping with these keys, each of its kind."""
        self.expect(place, value, dict)
        for key, kind in keys.items():
            self.expect((*place, key), value.get(key), kind)
        self.expect_no_others(place, value, keys)

    def expect_no_others(self, place: Place, value: Mapping[str, Any], keys: Iterable[str]) -> None:
        known = list(keys)
        for key in value:
            if key not in known:
                hint = nearest(key, known) or f" (known: {', '.join(known)})"
                self.refuse((*place, key), f"is not known here{hint}; a comment's key begins with _")

    def expect_texts(self, place: Place, values: Iterable[Any]) -> None:
        for i, value in enumerate(values):
            self.expect((*place, i), value, str)

    def expect_gaps(self, place: Place, template: str, gaps: Iterable[str], free: Iterable[str] = ()) -> None:
        """Refuse a phrase with other gaps than these, or without one that it must have."""
        try:
            found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        except ValueError as error:
            self.refuse(place, f"is {template!r}: {error}")
        allowed = {*gaps, *free}
        for name in sorted(found - allowed):
            expected = ", ".join(f"{{{gap}}}" for gap in sorted(allowed)) or "none"
            self.refuse(place, f"is {template!r}: there is nothing to put into {{{name}}} (gaps here: {expected})")
        for name in sorted((set(gaps) & MUST_HAVE) - found):
            self.refuse(place, f"is {template!r}: expected the gap {{{name}}} in it")


def said(place: Place) -> str:
    """A place as people write it: entities[2].name."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the whole file"


def without_comments(data: Any) -> Any:
    """The same without keys that begin with an underscore."""
    if isinstance(data, dict):
        return {key: without_comments(value) for key, value in data.items() if not key.startswith("_")}
    return [without_comments(value) for value in data] if isinstance(data, list) else data


_GAP = re.compile(r"[\s,:]*")  # in a valid file, commas and colons say nothing that brackets do not


def _places(text: str) -> list[tuple[Place, int]]:
    """Place and position of every value in a valid JSON text; a mapping's values have the position of their keys."""
    decode = json.JSONDecoder().raw_decode
    found: list[tuple[Place, int]] = []

    def skip(position: int) -> int:
        match = _GAP.match(text, position)
        return match.end() if match else position

    def walk(place: Place, position: int) -> int:
        """Note everything under `place`; return the position after it."""
        if text[position] not in "{[":
            return decode(text, position)[1]
        is_mapping, position, index = text[position] == "{", skip(position + 1), 0
        while text[position] not in "}]":
            key: str | int = index
            start = position
            if is_mapping:
                key, position = scanstring(text, position + 1, True)
            found.append(((*place, key), start))
            position, index = skip(walk((*place, key), skip(position))), index + 1
        return position + 1

    start = skip(0)
    found.append(((), start))
    walk((), start)
    return found


# Checks ---------------------------------------------------------------------------------------------------------------


def check_speech(file: File) -> None:
    """Every phrase is there, with the gaps that can be filled."""
    file.expect_keys((), file.data, SPEECH_KEYS)
    for section, gaps in (("customer", CUSTOMER_GAPS), ("agent", AGENT_GAPS)):
        file.expect_keys((section,), file.data[section], dict.fromkeys(gaps, list))
        _check_phrases(file, (section,), file.data[section], gaps)
    in_styles = {**CUSTOMER_GAPS, "inform": "inform value"}
    for style, phrases in file.data["styles"].items():
        place = ("styles", style)
        file.expect(place, phrases, dict)
        file.expect_no_others(place, phrases, in_styles)
        for key, templates in phrases.items():
            file.expect((*place, key), templates, list)
        _check_phrases(file, place, phrases, in_styles)
    file.expect_keys(("words",), file.data["words"], dict.fromkeys(SIGNS, list))
    for sign, words in file.data["words"].items():
        file.expect_texts(("words", sign), words)
    for key in GLUE:
        if not isinstance(file.data["glue"].get(key), str):
            file.refuse(("glue", key), f"is {file.data['glue'].get(key)!r}: expected text (it may be empty)")
    file.expect_keys(("screen",), file.data["screen"], dict.fromkeys(SCREEN_GAPS, str))
    for key, template in file.data["screen"].items():
        file.expect_gaps(("screen", key), template, SCREEN_GAPS[key].split())


def _check_phrases(file: File, place: Place, phrases: Mapping[str, list[str]], gaps: Mapping[str, str]) -> None:
    free = ("thing", "article") if place[0] != "agent" else ()
    for key, templates in phrases.items():
        file.expect_texts((*place, key), templates)
        for i, template in enumerate(templates):
            names = gaps[key].split()
            if key == "inform":  # a style may say the whole wish or its value alone
                names = ["value"] if "{inform}" not in template else ["inform"]
            file.expect_gaps((*place, key, i), template, names, free)


def check_slots(file: File) -> None:
    """Constraints and requests are whole, and a word means one slot only."""
    data = file.data
    file.expect_keys((), data, DOMAIN_KEYS)
    owners: dict[str, str] = {}
    for part, keys in (("constraints", CONSTRAINT_KEYS), ("requests", REQUEST_KEYS)):
        for slot, spec in data[part].items():
            place = (part, slot)
            file.expect_keys(place, spec, keys)
            for key in keys:
                if key == "values" and part == "constraints":
                    for value, ways in spec["values"].items():
                        file.expect((*place, key, value), ways, list)
                        file.expect_texts((*place, key, value), ways)
                else:
                    file.expect_texts((*place, key), spec[key])
            for key in ("customer_says", "agent_says"):
                for i, template in enumerate(spec.get(key, ())):
                    file.expect_gaps((*place, key, i), template, ["value"])
            if part == "requests" and len(set(spec["values"])) < 2:
                file.refuse((*place, "values"), f"is {spec['values']}: expected two or more: one is no question")
            for where, way in _ways(place, spec):
                if owners.setdefault(way.lower(), slot) != slot:
                    owner = owners[way.lower()]
                    file.refuse(where, f"has {way!r}, which belongs to {owner!r}: a word can mean one slot only")
    for slot in data["constraints"].keys() & data["requests"].keys():
        file.refuse(("requests", slot), "stands in constraints, too: rename one")
    _check_entities(file, owners)


def _ways(place: Place, spec: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """Every way to say a slot or one of its values."""
    yield from (((*place, "words", i), way) for i, way in enumerate(spec["words"]))
    if isinstance(spec["values"], list):
        yield from (((*place, "values", i), way) for i, way in enumerate(spec["values"]))
    else:
        for value, ways in spec["values"].items():
            yield from (((*place, "values", value, i), way) for i, way in enumerate(ways))


def _check_entities(file: File, owners: Mapping[str, str]) -> None:
    names: set[str] = set()
    slots = {**file.data["constraints"], **file.data["requests"]}
    for number, entity in enumerate(file.data["entities"]):
        place: Place = ("entities", number)
        file.expect(place, entity, dict)
        file.expect((*place, "name"), entity.get("name"), str)
        file.expect_no_others(place, entity, ("name", *slots))
        name = entity["name"]
        if name.lower() in names:
            file.refuse((*place, "name"), f"is {name!r} a second time: expected another name")
        if name.lower() in owners:
            file.refuse((*place, "name"), f"is {name!r}, which belongs to {owners[name.lower()]!r}: expected another")
        names.add(name.lower())
        for slot, spec in slots.items():
            if entity.get(slot) not in spec["values"]:
                what = repr(entity[slot]) if slot in entity else "missing"
                file.refuse((*place, slot), f"is {what}: expected one of {', '.join(spec['values'])}")


def check_meanings(domain: Domain, file: File, speech: File) -> None:
    """What is said with these phrases is understood as it is meant."""
    for slot, spec in domain.constraints.items():
        for i, template in enumerate(spec["customer_says"]):
            for value, ways in spec["values"].items():
                for way in ways:
                    text = template.format_map({"value": way})
                    if (found := domain.understand(text).constraints) != {slot: value}:
                        file.refuse(
                            ("constraints", slot, "customer_says", i),
                            f"makes {text!r}, which is understood as {found}: expected { ({slot: value}) }",
                        )
    for part, key in (("constraints", "agent_asks"), ("requests", "customer_asks")):
        for slot, spec in getattr(domain, part).items():
            for i, text in enumerate(spec[key]):
                if slot not in domain.understand(text).slots:
                    words = ", ".join(map(repr, spec["words"]))
                    file.refuse((part, slot, key, i), f"is {text!r}: expected one of the slot's words in it ({words})")
    for slot, spec in domain.requests.items():
        for i, template in enumerate(spec["agent_says"]):
            for value in spec["values"]:
                text = template.format_map({"value": value})
                if domain.understand(text).facts.get(slot) != {value}:
                    file.refuse(
                        ("requests", slot, "agent_says", i), f"makes {text!r}, in which {value!r} is not understood"
                    )
    for i, entity in enumerate(domain.entities):
        if domain.understand(entity["name"]).names != [entity["name"]]:
            file.refuse(("entities", i, "name"), f"is {entity['name']!r}, which is not understood as a name")
    sections: list[tuple[Place, str, Mapping[str, list[str]]]] = [
        (("customer",), "customer", domain.speech["customer"]),
        (("agent",), "agent", domain.speech["agent"]),
        *((("styles", style), "customer", phrases) for style, phrases in domain.speech["styles"].items()),
    ]
    for place, speaker, phrases in sections:
        for key, sign in MUST_SIGN[speaker].items():
            for i, text in enumerate(phrases.get(key, ())):
                if sign not in domain.understand(text).signs:
                    words = ", ".join(map(repr, domain.speech["words"][sign]))
                    speech.refuse((*place, key, i), f"is {text!r}: expected one of words.{sign} in it ({words})")
