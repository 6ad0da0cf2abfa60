"""What `rlobj probe` shows: tables for the terminal, and one HTML file."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from rlobj.fit_report import aligned, html_table, with_interval
from rlobj.probing import Counterfactual, Probe
from rlobj.report import definitions, write_page

CONTROL = "  beside: two of"
EXAMPLE = 90
"""Characters of an example."""


def tables(found: Probe, examples: bool) -> dict[str, list[list[str]]]:
    """Heading -> rows of cells, headings first."""
    decided, quality = bool(found.decision), found.quality
    changed = [f"{found.decision} changed"] if decided else []
    written = [["", "rows changed", quality, "difference", *changed, *(["for example"] if examples else [])]]
    written.append(["as it stands", "", with_interval(found.as_it_stands), *[""] * (len(written[0]) - 3)])
    for each in found.perturbed:
        cells = [each.name, str(each.rows), with_interval(each.quality), with_interval(each.difference)]
        cells += [with_interval(each.changed)] if decided else []
        written.append([*cells, *([_short(each.example)] if examples else [])])
    sliced = [
        ["", "", "rows", quality],
        *[[s.kind, s.name, str(s.rows), with_interval(s.quality)] for s in found.slices],
    ]
    said = {"Written otherwise": written, "In parts": sliced if len(sliced) > 1 else []}
    people = [
        ["", "rows", f"difference of {found.number}", "its size", *changed, *(["for example"] if examples else [])]
    ]
    for one in found.counterfactuals:
        cells = [f"{one.name}: {one.sides[1]} less {one.sides[0]}", str(one.rows), with_interval(one.difference)]
        cells += [with_interval(one.size), *([with_interval(one.changed)] if decided else [])]
        people.append([*cells, *([_short(one.example, 2 * EXAMPLE)] if examples else [])])
        if math.isfinite(one.control_size[0]):
            cells = [f"{CONTROL} {one.sides[0]}", "", "", with_interval(one.control_size)]
            cells += [with_interval(one.control_changed)] if decided else []
            people.append([*cells, *([""] if examples else [])])
    said["Of somebody else"] = people if len(people) > 1 else []
    return {heading: rows for heading, rows in said.items() if rows}


def _short(text: str, width: int = EXAMPLE) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def terminal(found: Probe) -> str:
    """The tables in plain letters, and what they come to."""
    parts = ["\n".join([heading, *aligned(rows)]) for heading, rows in tables(found, examples=False).items()]
    return "\n\n".join([*parts, "\n".join(findings(found))])


def findings(found: Probe) -> list[str]:
    """What is beyond chance, in sentences."""
    worse = 1 if found.more_is_better else -1
    lines = [
        f"{each.name}: {found.quality} is worse by {abs(each.difference[0]):.3f}"
        for each in found.perturbed
        if worse * each.difference[0] < 0 and each.difference[1] * each.difference[2] > 0
    ]
    lines += [line for each in found.counterfactuals if (line := _unequal(found, each))]
    compared = len(found.perturbed) + len(found.counterfactuals)
    return [*lines, f"{compared} comparisons, each by itself beyond chance in one of twenty where there is nothing"]


def _unequal(found: Probe, one: Counterfactual) -> str:
    if not one.difference[1] * one.difference[2] > 0:
        return ""
    more = "higher" if one.difference[0] > 0 else "lower"
    return (
        f"{one.name}: {found.number} is {more} by {abs(one.difference[0]):.3g} for {one.sides[1]} than {one.sides[0]}"
    )


MEANINGS = {
    "difference": "to the same rows as they stand; between the two sides' words in the same rows",
    "its size": "mean of the difference without its sign: single rows may differ where their mean does not",
    f"{CONTROL} …": "what exchanging a word for another of its own side does: differences between sides that are no "
    "larger are those of words, not of sides",
    "introduced": "rows without such words, with a sentence put before them",
    "length": "in words, or characters where no spaces stand between them; thirds of the rows",
}


def write_probe_page(path: Path, found: Probe, name: str, data: str) -> Path:
    """Write one self-contained HTML file; return its path."""
    parts = ["".join(f"<p>{escape(line)}</p>" for line in findings(found))]
    for heading, rows in tables(found, examples=True).items():
        parts.append(f"<h2>{heading}</h2>{html_table(rows, heading)}")
    parts.append("<p class='meaning'>In brackets: 95% intervals over rows, Wilson's of shares, else bootstrap.</p>")
    parts.append(f"<h2>What the words mean</h2>{definitions(MEANINGS)}")
    return write_page(path, f"{name} on {data}", parts)
