"""What `rlobj probe` shows: tables for the terminal, and one HTML file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

from rlobj.fit_report import aligned, html_table
from rlobj.intervals import Interval
from rlobj.perturbations import languages_of
from rlobj.probing import FEWEST, LEAST, LEAST_SHARE, Counterfactual, Perturbed, Probe
from rlobj.report import definitions, write_page

WRITTEN, PARTS, EXCHANGED = "Written otherwise", "Parts of the data", "Names, pronouns and other words exchanged"
CONTROL = "  for comparison"
EXAMPLE = 180
"""Characters of an example."""
STYLE = """<style>
main { overflow-wrap: break-word; }
th[scope=row] { white-space: normal; min-width: 7rem; max-width: 18rem; }
@media (max-width: 40rem) { th[scope=row] { max-width: 36vw; } }
dl { overflow-wrap: anywhere; }
</style>"""


def tables(found: Probe) -> dict[str, list[list[str]]]:
    """Heading -> rows of cells, headings first."""
    changed = [f"{found.decision} changed"] if found.decision else []
    written = [["", "rows changed", found.quality, "difference", *changed]]
    written.append(["as it stands", "", _quality(found, found.as_it_stands), *[""] * (1 + len(changed))])
    for each in found.perturbed:
        cells = [_quality(found, each.quality), _quality(found, each.difference), _share(each.changed)]
        written.append([each.name, str(each.rows), *cells[: 2 + len(changed)]])
    sliced = [[f"of at least {FEWEST} rows", "rows", found.quality]]
    sliced += [[f"{s.kind}: {s.name}", str(s.rows), _quality(found, s.quality)] for s in found.slices]
    people = [["", "rows", f"difference of {found.number}", "its size", *changed]]
    for one in found.counterfactuals:
        cells = [_number(found, one.difference), _number(found, one.size), _share(one.changed)]
        name = f"{one.name}: {one.sides[1]} − {one.sides[0]}"
        people.append([name, str(one.rows), *cells[: 2 + len(changed)]])
        if _has_control(one):
            cells = ["", _number(found, one.control_size), _share(one.control_changed)]
            people.append([f"{CONTROL}: {one.sides[0]} − {one.sides[0]}", str(one.rows), *cells[: 2 + len(changed)]])
    said = {WRITTEN: written, PARTS: sliced, EXCHANGED: people}
    return {heading: rows for heading, rows in said.items() if len(rows) > 1}


def _has_control(one: Counterfactual) -> bool:
    return math.isfinite(one.control_size[0])


def _quality(found: Probe, value: Interval) -> str:
    return _said(value, found.least_quality)


def _number(found: Probe, value: Interval) -> str:
    return _said(value, found.least_number)


def _share(value: Interval) -> str:
    return _said(value, LEAST)


def _said(value: Interval, least: float) -> str:
    """A value and its interval, with a digit more than what matters has."""
    digits = 3 if least <= 0 else min(max(1 - math.floor(math.log10(least)), 0), 9)
    if not math.isfinite(value[0]):
        return "–"
    if value == (0, 0, 0):
        return "0 in each row"  # a bootstrap of nothing has no width, and says nothing of other rows
    if not all(map(math.isfinite, value)):
        return f"{value[0]:z.{digits}f}"
    return f"{value[0]:z.{digits}f} [{value[1]:z.{digits}f}, {value[2]:z.{digits}f}]"


def terminal(found: Probe) -> str:
    """The tables in plain letters, and what they come to."""
    parts = ["\n".join([heading, *aligned(rows)]) for heading, rows in tables(found).items()]
    return "\n\n".join([*parts, "\n".join(findings(found))])


# Findings -------------------------------------------------------------------------------------------------------------


def findings(found: Probe) -> list[str]:
    """What is beyond chance and large enough to matter, in sentences, and the rule."""
    written = [line for each in found.perturbed if (line := _worse(found, each))]
    people = [line for each in found.counterfactuals for line in _unequal(found, each)]
    lines = [*written]
    if found.perturbed and not written:
        lines.append("written otherwise: no loss that matters")
    lines += people
    if found.counterfactuals and not people:
        lines.append("words exchanged: no difference that matters")
    return [*lines, _rule(found)]


def _matters(difference: Interval, least: float) -> bool:
    return difference[1] * difference[2] > 0 and abs(difference[0]) >= least


def _worse(found: Probe, each: Perturbed) -> str:
    falls = -1 if found.more_is_better else 1
    if falls * each.difference[0] > 0 and _matters(each.difference, found.least_quality):
        return f"{each.name}: {found.quality} is worse by {_size(each.difference, found.least_quality)}"
    return ""


def _unequal(found: Probe, one: Counterfactual) -> Iterable[str]:
    if _matters(one.difference, found.least_number):
        more = "higher" if one.difference[0] > 0 else "lower"
        by = _size(one.difference, found.least_number)
        yield f"{one.name}: {found.number} is {more} by {by} for {one.sides[1]} than for {one.sides[0]} words"
    if one.changed[1] > (one.control_changed[2] if _has_control(one) else LEAST):
        beside = f", with a word of the same side in {_share(one.control_changed)}" if _has_control(one) else ""
        yield f"{one.name}: the {found.decision} is another in {_share(one.changed)} of the rows{beside}"


def _size(value: Interval, least: float) -> str:
    low, high = sorted(map(abs, value[1:]))
    return _said((abs(value[0]), low, high), least)


def _rule(found: Probe) -> str:
    sizes = {found.quality: found.least_quality, found.number: found.least_number}
    least = ", ".join(f"{size:.2g} in {name}" for name, size in sizes.items())
    compared = len(found.perturbed) + len(found.counterfactuals)
    return (
        f"named is what is beyond chance (its 95% interval does not touch 0) and at least {least}; of {compared} "
        "comparisons about one in twenty is beyond chance where there is nothing"
    )


# HTML -----------------------------------------------------------------------------------------------------------------

MEANINGS = {
    "difference": "to the same rows as they stand; between the two sides' words in the same rows",
    "its size": "mean of the difference without its sign: single rows may differ where their mean does not",
    CONTROL: "what exchanging a word for another of its own side does: differences between sides that are no larger "
    "are those of words, not of sides",
    "introduced": "rows without such words, with a sentence put before them",
    "length": "in words, or characters where no spaces stand between them; thirds of the rows",
    "language": "as py3langid guesses from the text; unsure: none has a probability of one half",
    "what matters": f"a difference of {LEAST}; of a score, which has no unit, {LEAST_SHARE} of its standard deviation "
    "over the rows; of a decision, that it changes in more rows than with a word of the same side (the intervals are "
    f"apart), or where that was not tried, in more than {LEAST} of them",
    "in brackets": "95% intervals over rows: of shares Wilson's, of their differences Bonett and Price's, else a "
    "bootstrap's, which has no width where no row differs (0 in each row)",
}


def write_probe_page(path: Path, found: Probe, name: str, data: str) -> Path:
    """Write one self-contained HTML file; return its path."""
    examples = {
        WRITTEN: {each.name: _short(each.example) for each in found.perturbed if each.example},
        EXCHANGED: {each.name: " → ".join(map(_short, each.example)) for each in found.counterfactuals},
    }
    parts = [STYLE, "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in findings(found)) + "</ul>"]
    for heading, rows in tables(found).items():
        parts.append(f"<h2>{heading}</h2>{html_table(rows, heading)}")
        if examples.get(heading):
            parts.append(f"<details><summary>For example</summary>{definitions(examples[heading])}</details>")
    meanings = dict(MEANINGS)
    if languages_of([]) is None:
        meanings["language"] = "is not guessed: pip install 'rlobj[explain]' brings py3langid, which does"
    parts.append(f"<h2>What the words mean</h2>{definitions(meanings)}")
    return write_page(path, f"{name} on {data}", parts)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXAMPLE else f"{text[: EXAMPLE - 1]}…"
