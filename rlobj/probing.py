"""`rlobj probe`: how good a model is on input that is written otherwise, on parts of its data, and with the words of
other people in it.

Everything is compared row by row with the same row as it stands. Legend: N rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlobj.intervals import Interval, bootstrap_mean, paired_difference, wilson
from rlobj.perturbations import Change, Exchange, languages_of, script_of
from rlobj.probed import Judged, Probed, Row, Writing
from rlobj.progress import bar
from rlobj.runs import atomic_write_json, rounded

NONE = (math.nan, math.nan, math.nan)
LEAST, LEAST_SHARE = 0.01, 0.1
"""A difference that matters: of what has a unit (shares, probabilities, nats); and of a score, in its standard
deviations over the rows."""
FEWEST = 5
"""Rows of a slice that is worth a line."""
MOST_SLICES = 30
"""Of one kind."""
MOST_NUMBERS = 10
"""Different numbers in a column that are slices by themselves; of more, thirds of the rows are."""


@dataclass(frozen=True, slots=True)
class Perturbed:
    """The rows written otherwise."""

    name: str
    rows: int
    """that are written otherwise; the others stay as they are"""
    quality: Interval
    difference: Interval
    """to the quality of the rows as they stand, paired; NONE where no row is written otherwise"""
    changed: Interval
    """share of the rows on which the decision is another"""
    example: str


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows that have something in common."""

    kind: str
    name: str
    rows: int
    quality: Interval


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """The same rows with one side's words, and with the other's."""

    name: str
    sides: tuple[str, str]
    rows: int
    """that have such words, or into which one was put"""
    difference: Interval
    """of the number: with the second side's words less with the first's, paired"""
    size: Interval
    """mean of that difference without its sign"""
    changed: Interval
    """share of the rows on which the decision is another"""
    control_size: Interval = NONE
    """size of the difference between two words of one side"""
    control_changed: Interval = NONE
    example: tuple[str, str] = ("", "")
    """a row with the first side's words, and with the second's"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found."""

    quality: str
    more_is_better: bool
    number: str
    decision: str
    least_quality: float
    least_number: float
    """differences of quality and number that are smaller do not matter"""
    rows: int
    as_it_stands: Interval
    perturbed: list[Perturbed]
    slices: list[Slice]
    counterfactuals: list[Counterfactual]


def probe(model: Probed, changes: dict[str, Change], exchanges: Sequence[Exchange], by: Sequence[str] = ()) -> Probe:
    """Judge a model on its rows as they stand, written otherwise, in slices, and with words exchanged.

    Args:
        by: columns whose values make slices.

    Raises:
        ValueError: a column is missing.
    """
    rows = model.rows
    missing = next((column for column in by if any(column not in row.columns for row in rows)), None)
    if missing is not None:
        raise ValueError(
            f"--by {missing}: not all rows have that column (the first has {', '.join(rows[0].columns) or 'none'}); "
            "give FILE, texts with a label or number, with it"
        )
    with bar("probing", 1 + len(changes) + len(exchanges)) as progress:
        plain = model.judge(rows)
        progress.advance(1)
        perturbed = []
        for name, change in changes.items():
            perturbed.append(_perturbed(model, plain, name, change))
            progress.advance(progress.n + 1)
        counterfactuals: list[Counterfactual] = []
        for exchange in exchanges:
            counterfactuals += _exchanged(model, exchange)
            progress.advance(progress.n + 1)
    least = LEAST if model.has_unit else LEAST_SHARE * float(np.std(plain.number))
    return Probe(
        model.quality,
        model.counts,
        model.number,
        model.decision,
        LEAST if model.counts else least,
        least,
        len(rows),
        _quality(model, plain.quality),
        perturbed,
        _slices(model, plain, by),
        counterfactuals,
    )


def _quality(model: Probed, values: np.ndarray) -> Interval:
    """The mean with its interval: of counts Wilson's, unless ties count half."""
    if model.counts and len(values) and np.isin(values, (0, 1)).all():
        hits = int(values.sum())
        return hits / len(values), *wilson(hits, len(values))
    return bootstrap_mean(values.tolist())


def _difference(now: np.ndarray, before: np.ndarray, are_shares: bool) -> Interval:
    """The mean of a paired difference; of counts, and of shares that nowhere differ, with an interval that has a width
    where no row differs."""
    each = now - before
    if are_shares and len(each) and np.isin(each, (-1, 0, 1)).all():
        return paired_difference(int((each > 0).sum()), int((each < 0).sum()), len(each))
    return bootstrap_mean(each.tolist())


def _share(hits: Sequence[bool]) -> Interval:
    return (sum(hits) / len(hits), *wilson(sum(hits), len(hits))) if hits else NONE


def _changed(one: Judged, other: Judged) -> Interval:
    return _share([a != b for a, b in zip(one.decisions, other.decisions, strict=True)])


def _perturbed(model: Probed, plain: Judged, name: str, change: Change) -> Perturbed:
    rows = [row.written(Writing(change, model.roles)) for row in model.rows]
    other = [i for i, (now, before) in enumerate(zip(rows, model.rows, strict=True)) if now.sides != before.sides]
    found = Judged(plain.quality.copy(), plain.number.copy(), list(plain.decisions))
    if other:
        judged = model.judge([rows[i] for i in other])
        found.quality[other] = judged.quality
        for i, decision in zip(other, judged.decisions, strict=False):
            found.decisions[i] = decision
    return Perturbed(
        name,
        len(other),
        _quality(model, found.quality),
        _difference(found.quality, plain.quality, model.counts) if other else NONE,
        _changed(plain, found) if other else NONE,
        rows[other[0]].text(model.roles) if other else "",
    )


# Slices ---------------------------------------------------------------------------------------------------------------


def _slices(model: Probed, plain: Judged, by: Sequence[str]) -> list[Slice]:
    texts = [model.opening(row) for row in model.rows]
    languages = languages_of(texts)
    kinds: dict[str, list[str]] = {
        "length": _thirds([len(text.split()) if " " in text.strip() else len(text) for text in texts]),
        **({} if languages is None else {"language": languages}),
        "script": [script_of(text) for text in texts],
        **{column: _values([row.columns[column] for row in model.rows]) for column in by},
    }
    if model.decision == "label":
        kinds = {"label": [str(row.right) for row in model.rows], **kinds}
    return [each for kind, names in kinds.items() for each in _slices_of(model, plain, kind, np.array(names))]


def _values(values: Sequence[Any]) -> list[str]:
    """What stands in a column, in words; of many different numbers, the third that each is in."""
    said = [f"{each:.6g}" if isinstance(each, float) else str(each) for each in values]
    try:
        numbers = [float(each) for each in values]
    except (TypeError, ValueError):
        return said
    return _thirds(numbers) if len(set(numbers)) > MOST_NUMBERS and np.isfinite(numbers).all() else said


def _thirds(numbers: Sequence[float]) -> list[str]:
    low, high = np.quantile(numbers, [1 / 3, 2 / 3], method="lower")
    ends = f"{low:.6g}", f"{high:.6g}"
    return [f"≤ {ends[0]}" if n <= low else f"≤ {ends[1]}" if n <= high else f"> {ends[1]}" for n in numbers]


def _slices_of(model: Probed, plain: Judged, kind: str, names: np.ndarray) -> list[Slice]:
    """The slices of one kind, the largest of many; none where no two have enough rows to be compared."""
    found = Counter(names.tolist())
    kept = [(name, names == name) for name, rows in found.most_common(MOST_SLICES) if rows >= FEWEST]
    if len(kept) < 2:
        return []
    return [
        Slice(kind, str(name), int(inside.sum()), _quality(model, plain.quality[inside]))
        for name, inside in sorted(kept, key=_in_order)
    ]


def _in_order(named: tuple[str, np.ndarray]) -> tuple[bool, float, str]:
    """Numbers by their size, all else by name."""
    name = named[0]
    try:
        return name.startswith(">"), float(name.removeprefix("≤ ").removeprefix("> ")), ""
    except ValueError:
        return False, 0.0, name


# Counterfactuals ------------------------------------------------------------------------------------------------------


def _exchanged(model: Probed, exchange: Exchange) -> list[Counterfactual]:
    """Rows that have words of the exchange; and where it has an introduction, the others with one put before them."""
    having: list[Row] = []
    others: list[Row] = []
    for row in model.rows:
        said = [m["content"] for side in row.sides for m in side if m["role"] in model.roles]
        (having if any(map(exchange.versions, said)) else others).append(row)
    found = []
    if having:
        sides = [
            [row.written(Writing(partial(_version, exchange, side), model.roles)) for row in having] for side in (0, 1)
        ]
        found.append(_compared(model, exchange, "", sides[0], sides[1]))
    if exchange.introduction is not None and others:
        introductions = [exchange.introduced(row.text(model.roles)) for row in others]
        first, second, control = (
            [
                row.written(Writing(partial(_before, each[i]), model.roles, first=True))
                for row, each in zip(others, introductions, strict=True)
            ]
            for i in range(3)
        )
        found.append(_compared(model, exchange, ", introduced", first, second, control))
    return found


def _version(exchange: Exchange, side: int, text: str) -> str:
    versions = exchange.versions(text)
    return text if versions is None else versions[side]


def _before(introduction: str, text: str) -> str:
    return introduction + text


def _compared(
    model: Probed, exchange: Exchange, how: str, first: list[Row], second: list[Row], control: list[Row] | None = None
) -> Counterfactual:
    one, other = model.judge(first), model.judge(second)
    sizes = np.abs(other.number - one.number)
    same = model.judge(control) if control is not None else None
    return Counterfactual(
        exchange.name + how,
        exchange.sides,
        len(first),
        _difference(other.number, one.number, model.counts and model.has_unit),
        bootstrap_mean(sizes.tolist()),
        _changed(one, other),
        NONE if same is None else bootstrap_mean(np.abs(same.number - one.number).tolist()),
        NONE if same is None else _changed(one, same),
        (first[0].text(model.roles), second[0].text(model.roles)),
    )


def write_probe(found: Probe, directory: Path, name: str, data: str) -> Path:
    """Write probe.json and probe.html; return the latter's path."""
    from rlobj.probe_report import write_probe_page

    atomic_write_json(directory / "probe.json", rounded({"model": name, "data": data, **asdict(found)}))
    return write_probe_page(directory / "probe.html", found, name, data)
