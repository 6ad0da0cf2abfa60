"""Splits of rows into training and held-out data, the same for the same seed, and what repeats itself in them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, TypeVar

from rlobj.reading import Row

T = TypeVar("T")


def split_rows(rows: Sequence[T], holdout: float, seed: int) -> tuple[list[T], list[T]]:
    """Shuffle and split into (training, held out), at least one row in each; the same for the same seed.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} row cannot be split into training and held-out data: expected at least 2")
    order = list(range(len(rows)))
    random.Random(f"split {seed}").shuffle(order)
    held_out = min(max(round(holdout * len(rows)), 1), len(rows) - 1)
    return [rows[i] for i in sorted(order[held_out:])], [rows[i] for i in sorted(order[:held_out])]


def split_pairs(pairs: Sequence[Row], holdout: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split preference pairs so that no conversation begins in the same way on both sides: one prompt often has
    several pairs, and a reward model knows again what it has seen.

    Raises:
        ValueError: all pairs begin in the same way.
    """
    openings = list(dict.fromkeys(json.dumps(pair["chosen"][0]) for pair in pairs))
    if len(openings) < 2:
        raise ValueError(f"all {len(pairs)} preference pairs begin in the same way: expected at least two prompts")
    held_out = set(split_rows(openings, holdout, seed)[1])
    sides: tuple[list[Row], list[Row]] = ([], [])
    for pair in pairs:
        sides[json.dumps(pair["chosen"][0]) in held_out].append(pair)
    return sides


def split_rated(rows: Sequence[Row], holdout: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rated conversations so that those of a group, or without one those whose user begins in the same way, are
    on one side: one is often the beginning of another.

    Raises:
        ValueError: all belong together.
    """

    def group(row: Row) -> str:
        first = next((m["content"] for m in row["messages"] if m["role"] == "user"), row["messages"][0]["content"])
        return json.dumps(first if row["group"] is None else row["group"])

    groups = list(dict.fromkeys(map(group, rows)))
    if len(groups) < 2:
        raise ValueError(f"all {len(rows)} rated conversations begin in the same way: expected two beginnings")
    held_out = set(split_rows(groups, holdout, seed)[1])
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[group(row) in held_out].append(row)
    return sides


def few_per_label(labels: Sequence[str], n: int, seed: int) -> list[int]:
    """Indices of n rows of each label, or of all it has where those are fewer, drawn at random; in rising order."""
    rows: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        rows.setdefault(label, []).append(index)
    rng = random.Random(f"few per label {seed}")
    return sorted(index for indices in rows.values() for index in rng.sample(indices, min(n, len(indices))))


def repeats(train: Sequence[Any], held_out: Sequence[Any]) -> dict[str, str]:
    """What a report says of rows that stand in the data more than once; nothing where none does.

    They are no error, as data that people write have some; but held-out rows that were learned from, too, are a leak.
    """
    seen = {repr(row) for row in train}
    again = len(train) + len(held_out) - len(seen | {repr(row) for row in held_out})
    leaked = sum(repr(row) in seen for row in held_out)
    facts = {"rows again": f"{again} of {len(train) + len(held_out)} rows stand there before"} if again else {}
    if leaked:
        facts["leak"] = f"{leaked} of {len(held_out)} held-out rows were learned from, too"
    return facts
