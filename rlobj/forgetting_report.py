"""What `rlobj continue` shows: what was learned of the new data and forgotten of the old, by λ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlobj.fit_report import MEANINGS, aligned, html_table, with_interval
from rlobj.forgetting import compared
from rlobj.pictures import Picture, Point, html_of
from rlobj.report import definitions, write_page

HEADINGS = ("", "test data", "measure", "before", "after", "change")


def rows_of(before: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each λ, side of the data, and figure: `before`, `after` and `change`, each with its interval.

    Args:
        before: outputs of the stage of the model as it was.
        outputs: of each λ's stage, by title.
    """
    return [
        {"name": title, "data": side, "measure": measure, **values}
        for title, output in outputs.items()
        for side, figures in output["figures"].items()
        for measure, values in compared(before["figures"].get(side, {}), figures).items()
    ]


def _cells(table: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        list(HEADINGS),
        *[
            [row["name"], row["data"], row["measure"], *[with_interval(row.get(h)) for h in HEADINGS[3:]]]
            for row in table
        ],
    ]


def forgetting_table(table: Sequence[Mapping[str, Any]]) -> str:
    """The same for a terminal."""
    return "\n".join([*aligned(_cells(table)), *_dashes(table)])


def _dashes(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a dash means, where there is one."""
    here = any("before" not in row for row in table)
    return ["– : before, the model had not all of these labels; ℓ would be infinite, and has no change"] * here


def write_forgetting_report(
    path: Path,
    name: str,
    before: Mapping[str, Any],
    outputs: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Write the report of a finished run; return its table."""
    table = rows_of(before, outputs)
    measures = list(dict.fromkeys(row["measure"] for row in table))
    parts = [
        html_table(_cells(table), "old and new test data, before and after"),
        "<p class='meaning'>In brackets: 95% intervals over rows of the test data; those of a change are of "
        "differences within rows. A label that the model did not have before is counted as never right.</p>",
        *[f"<p class='meaning'>{line}.</p>" for line in _dashes(table)],
        f"<div class='plots'>{html_of(_curves(outputs, measures), list(outputs), 'curve')}</div>",
        f"<h2>What the words mean</h2>{definitions({m: MEANINGS[m] for m in measures})}",
        f"<h2>The run</h2>{definitions(facts)}",
    ]
    write_page(path, f"{name}: ℓ_new + λℓ_old", parts)
    return table


def _curves(outputs: Mapping[str, Mapping[str, Any]], measures: Sequence[str]) -> list[Picture]:
    """Each measure on the validation data by step, of each λ; and λ where it moves."""
    pictures = []
    sides = list(next(iter(outputs.values()))["figures"])
    keys = {f"eval_{side}_{measure}": f"{measure}, {side} data" for measure in measures for side in sides}
    for key, title in {**keys, "objective/lambda_sup": "λ"}.items():
        curves = {
            name: [Point(log["step"], log[key]) for log in output["history"] if _is_number(log.get(key))]
            for name, output in outputs.items()
        }
        moves = any(len({point.y for point in points}) > 1 for points in curves.values())
        if any(curves.values()) and (moves or title != "λ"):
            pictures.append(Picture(title, "optimiser step", "", {n: points for n, points in curves.items() if points}))
    return pictures


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
