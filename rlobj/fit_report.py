"""What `rlobj fit` and `rlobj pretrain` show: a table for the terminal, and one HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from rlobj.pictures import Picture, Point, drawing, html_of
from rlobj.report import definitions, write_page

MEANINGS = {
    "accuracy": "share of rows whose most probable label is the right one",
    "macro_f1": "mean over labels of F1, the harmonic mean of precision and recall",
    "weighted_f1": "mean of F1 over labels, each as often as it occurs",
    "auc": "of two labels: the probability that a row of the second scores higher than one of the first",
    "ell": "ℓ: mean −log probability of what is right, in nats",
    "f1": "of whole entities: the kind and both ends are right",
    "precision": "share of the entities that were named which are right",
    "recall": "share of the entities there are which were named",
    "tag_accuracy": "share of words with the right tag",
    "spearman": "rank correlation of the predicted with the true numbers",
    "pearson": "linear correlation of the predicted with the true numbers",
    "rmse": "root of the mean squared error",
    "mae": "mean absolute error",
    "perplexity": "exp(ℓ)",
    "P": "performance term: mean log-probability of the tokens that were masked (or come next), in nats",
    "next_sentence": "share of pairs told rightly: second half of the same text, or of another",
}
CURVES = {"loss": "training loss", "learning_rate": "learning rate", "grad_norm": "norm of the gradient"}
LABELS_IN_A_PICTURE = 30
"""More names than these find no place on an axis."""


def fit_table(outputs: Mapping[str, Any]) -> str:
    """A row for each part of the data, with 95% intervals; behind it the report by label of the last."""
    rows = [["", "rows", *outputs["metrics"]]]
    for part, found in outputs["measured"].items():
        rows.append([part, str(found["rows"]), *[with_interval(found["metrics"].get(m)) for m in outputs["metrics"]]])
    shown = [i for i in range(len(rows[0])) if any(row[i] != "–" for row in rows[1:])]
    lines = aligned([[row[i] for i in shown] for row in rows])
    part, found = list(outputs["measured"].items())[-1]
    if found.get("report"):
        lines += ["", *aligned([[f"by label, {part}", *_HEADINGS], *_report_rows(found["report"])])]
    return "\n".join(lines)


_HEADINGS = ("precision", "recall", "f1-score", "support")


def _report_rows(report: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    return [[name, *[f"{row[h]:.0f}" if h == "support" else f"{row[h]:.2f}" for h in _HEADINGS]]
            for name, row in report.items()]  # fmt: skip


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def with_interval(value: Sequence[float | None] | None) -> str:
    """A value and its interval for a table; a dash for none."""
    if not value or value[0] is None or not math.isfinite(value[0]):
        return "–"
    if any(end is None or not math.isfinite(end) for end in value):
        return f"{value[0]:z.3f}"
    return f"{value[0]:z.3f} [{value[1]:z.3f}, {value[2]:z.3f}]"


def warnings_of(outputs: Mapping[str, Any]) -> list[str]:
    """What the model says of every row of some part of the data, if it says the same."""
    parts: dict[str, list[str]] = {}
    for part, found in outputs["measured"].items():
        if found.get("same"):
            parts.setdefault(found["same"], []).append(part)
    advice = "it tells nothing apart; train longer, at another learning rate, or look at the labels"
    return [f"the model {same} of the {' and '.join(names)} data: {advice}" for same, names in parts.items()]


def write_fit_report(path: Path, name: str, outputs: Mapping[str, Any], command: str) -> Path:
    """Write the report of a finished training, from what its stage says of itself.

    Args:
        command: that makes it again.
    """
    metrics = [m for m in outputs["metrics"] if any(f["metrics"].get(m) for f in outputs["measured"].values())]
    table = [["", "rows", *metrics]]
    for part, found in outputs["measured"].items():
        table.append([part, str(found["rows"]), *[with_interval(found["metrics"].get(m)) for m in metrics]])
    best = outputs["best"]
    which = "the last" if best.get("last") else f"the best by {escape(best['metric'])} on the validation data"
    parts = [
        html_table(table, "each part of the data"),
        f"<p class='meaning'>In brackets: 95% intervals over rows. The model is that of step {best['step']}, {which}."
        "</p>",
        *[f"<p class='meaning'>Warning: {escape(each)}.</p>" for each in warnings_of(outputs)],
        f"<div class='plots'>{html_of(_curves(outputs), ['training', 'validation'], 'curve')}</div>",
    ]
    for part, found in outputs["measured"].items():
        if found.get("report"):
            rows = [["", *_HEADINGS], *_report_rows(found["report"])]
            parts.append(f"<h2>By label: {part}</h2>{html_table(rows, f'by label, {part}')}")
        if found.get("confusion"):
            draw = partial(_draw_confusion, found["confusion"], outputs["names"])
            picture = drawing(f"confusion-{part}-", f"confusion matrix, {part}", draw)
            parts.append(f"<div class='plots'><figure>{picture}</figure></div>")
    parts += [
        f"<h2>What the words mean</h2>{definitions({m: MEANINGS[m] for m in metrics})}",
        f"<h2>The run</h2>{definitions({'task': outputs['task'], **outputs['facts'], 'made by': command})}",
    ]
    return write_page(path, f"{name}: {outputs['task']}", parts)


def html_table(rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first row and column are headings."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[1:]
    )
    return (
        f"<div class='wide' tabindex='0' role='region' aria-label='{escape(caption)}'><table><thead><tr>{head}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _curves(outputs: Mapping[str, Any]) -> list[Picture]:
    """The loss and what else was logged in training, and each metric of the validation data by step."""
    history, pictures = outputs["history"], []
    for key, title in CURVES.items():
        if points := [Point(log["step"], log[key]) for log in history if _is_number(log.get(key))]:
            pictures.append(Picture(title, "optimiser step", "", {"training": points}))
    for metric in outputs["metrics"]:
        if points := [
            Point(log["step"], log[f"eval_{metric}"]) for log in history if _is_number(log.get(f"eval_{metric}"))
        ]:
            pictures.append(Picture(metric, "optimiser step", "", {"validation": points}))
    return pictures


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], axes: Any) -> None:
    """Shares of each true label (down) by the label given (across)."""
    shares = [[cell / max(sum(row), 1) for cell in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set(xlabel="given", ylabel="true")
    if len(names) <= LABELS_IN_A_PICTURE:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= 6:
        for i, row in enumerate(confusion):
            for j, count in enumerate(row):
                axes.text(j, i, str(count), ha="center", va="center", color="#000" if shares[i][j] < 0.5 else "#fff")
