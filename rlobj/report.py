"""What a run shows: a table for the terminal, and one HTML file that needs nothing else."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from rlobj.runs import atomic_write_text

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]
"""Title -> name of a line -> points (step, value)."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """A drawing of one metric against another, a point with its intervals for each policy."""

    title: str
    x: str
    """heading of the horizontal axis"""
    y: str
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    """name -> (x, y), each (value, low, high)"""


METRICS = {
    "success": ("task success", "share of episodes in which the environment says that the task was done; not the "
                "reward model's opinion"),
    "inform": ("inform", "share of dialogues in which an offer fits every wish of the customer"),
    "accuracy": ("accuracy", "of the most probable choices, the share that is right; texts handed over do not count"),
    "missed": ("missed", "share of texts with the critical label whose most probable label is another"),
    "handed_over": ("handed over", "share of texts whose most probable choice is to ask a human"),
    "greedy_return": ("greedy return", "mean reward of an episode when the most probable choice is taken"),
    "return": ("return", "mean reward of an episode: what R is the expectation of"),
    "classic_return": ("classic return", "20 for success and −1 a turn, as the dialogue literature counts"),
    "turns": ("turns", "turns of the policy in an episode"),
    "ell": ("ℓ", "supervised loss: mean −log probability of a token (or label) of held-out labelled data, in nats"),
    "kl": ("KL", "KL divergence from the warm start along an episode, in nats: how far the policy has moved"),
}  # fmt: skip
"""Key of a metric -> heading and meaning, in the order of the table."""
REPORT_ALONE = ("inform", "classic_return")
"""Metrics that a terminal has no room for."""

# by the titles that rlobj.pipeline.CURVES gives
CURVE_MEANINGS = {
    "λ‖∇ℓ‖ / ‖∇R‖": "how strongly the supervised term pulls, beside the reward; near 0, λ does nothing",
    "cosine of the two gradients": "whether reward and supervision pull the same way (1), across (0) or against each "
    "other (−1)",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #64707d; --line: #d9dee4; --paper: #fff; --user: #eef2f7;
  --agent: #dcefe3; --tool: #f6f1e3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #38414b; --paper: #161b21;
  --user: #252d37; --agent: #1f3a2c; --tool: #38331f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.interval, .meaning, .role { color: var(--soft); font-size: .85em; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .2rem 1rem; } dt { font-weight: 600; }
dd { margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.plots svg { width: 100%; height: auto; background: #fff; border-radius: .4rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1.5rem; }
.said { padding: .35rem .7rem; margin: .3rem 0; border-radius: .6rem; background: var(--user); width: fit-content;
  max-width: 90%; overflow-wrap: anywhere; white-space: pre-wrap; }
.said.assistant { background: var(--agent); margin-left: auto; }
.said.tool { background: var(--tool); font: .8em/1.4 ui-monospace, monospace; }
summary { cursor: pointer; margin: .6rem 0; }
"""


def text_table(table: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal: a row per policy, `mean [low, high]` per metric but for REPORT_ALONE.

    Args:
        table: rows with `name` and metrics, each (mean, low, high).
    """
    metrics = [metric for metric in _metrics_in(table) if metric not in REPORT_ALONE]
    rows = [["", *[METRICS[m][0] for m in metrics]]]
    rows += [[str(row["name"]), *[_number(row.get(m)) + _interval(row.get(m)) for m in metrics]] for row in table]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * (sum(widths) + 2 * len(metrics)), *lines[1:]])


def _metrics_in(table: Sequence[Mapping[str, Any]]) -> list[str]:
    return [metric for metric in METRICS if any(row.get(metric) is not None for row in table)]


def _number(value: Sequence[float | None] | None) -> str:
    mean = value[0] if value else None
    return "–" if mean is None or not math.isfinite(mean) else f"{mean:z.2f}"


def _interval(value: Sequence[float | None] | None) -> str:
    if not value or any(end is None or not math.isfinite(end) for end in value):
        return ""
    return f" [{value[1]:z.2f}, {value[2]:z.2f}]"


# HTML -----------------------------------------------------------------------------------------------------------------


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    table: Sequence[Mapping[str, Any]],
    curves: Curves,
    samples: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    scatter: Scatter | None = None,
    intervals: str = "over episodes (ℓ: over held-out rows)",
) -> None:
    """Write one self-contained HTML file.

    Args:
        facts: what the run was, by name.
        table: as in `text_table`.
        samples: dialogues with `title`, `before` and `after` (messages), `before_success` and `after_success`.
        notes: sentences for the reader, above the table.
        scatter: a drawing below the table.
        intervals: what the intervals are over.
    """
    parts = [
        *[f"<p>{escape(note)}</p>" for note in notes],
        f"<h2>Evaluation</h2><div class='wide'>{_html_table(table)}</div>",
        f"<p class='meaning'>In brackets: 95% interval {escape(intervals)}.</p>",
        f"<div class='plots'>{_scatter_plot(scatter)}</div>" if scatter and scatter.points else "",
        f"<h2>Learning curves</h2><div class='plots'>{_plots(curves)}</div>" if curves else "",
        "<h2>The same episodes before and after</h2>" if samples else "",
        *[_sample(sample, opened=number == 0) for number, sample in enumerate(samples)],
        f"<h2>What the words mean</h2>{definitions({**dict(METRICS[m] for m in _metrics_in(table)), **_met(curves)})}",
        f"<h2>The run</h2>{definitions(facts)}",
    ]
    write_page(path, title, parts)


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write one self-contained HTML file of these parts under a heading; return its path."""
    atomic_write_text(
        path,
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + "\n</body></html>\n",
    )
    return path


def _met(curves: Curves) -> dict[str, str]:
    return {title: meaning for title, meaning in CURVE_MEANINGS.items() if title in curves}


def definitions(items: Mapping[str, str]) -> str:
    """Names and what they are, as HTML."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"


def _html_table(table: Sequence[Mapping[str, Any]]) -> str:
    metrics = _metrics_in(table)
    head = "".join(f"<th>{escape(METRICS[m][0])}</th>" for m in metrics)
    rows = []
    for row in table:
        cells = "".join(
            f"<td>{_number(row.get(m))}<span class='interval'>{_interval(row.get(m))}</span></td>" for m in metrics
        )
        rows.append(f"<tr><td>{escape(str(row['name']))}</td>{cells}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _sample(sample: Mapping[str, Any], opened: bool) -> str:
    sides = "".join(
        f"<div><p class='role'>{side}{_outcome(sample.get(f'{side}_success'))}</p>{_bubbles(sample[side])}</div>"
        for side in ("before", "after")
    )
    return (
        f"<details{' open' if opened else ''}><summary>{escape(str(sample['title']))}</summary>"
        f"<div class='pair'>{sides}</div></details>"
    )


def _outcome(success: Any) -> str:
    return "" if success is None else " — task done ✓" if success else " — task not done ✗"


def _bubbles(messages: Sequence[Mapping[str, str]]) -> str:
    said = [(escape(message["role"]), escape(message["content"])) for message in messages]
    return "".join(f"<div class='said {role}'><span class='role'>{role}</span> {text}</div>" for role, text in said)


def _renamed(svg: str, prefix: str) -> str:
    """Put a prefix before the ids of a drawing: matplotlib gives the same ones to each, and a page has them once."""
    ids = re.compile(r'(\bid="|href="#|url\(#)')
    return re.sub(r"<[^>]+>", lambda tag: ids.sub(rf"\g<1>{prefix}", tag.group()), svg)


def _plots(curves: Curves) -> str:
    """One drawing of lines per title."""

    def draw(axes: Any, lines: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        for name, points in lines.items():
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, label=name, linewidth=1.6, marker="o" if len(points) < 15 else None, ms=3)
        axes.set_xlabel("optimiser step")
        if axes.lines:
            axes.legend(frameon=False)

    return "".join(
        drawing(f"plot{number}-", title, partial(draw, lines=lines))
        for number, (title, lines) in enumerate(curves.items())
    )


def _scatter_plot(scatter: Scatter) -> str:
    def draw(axes: Any) -> None:
        for name, (x, y) in scatter.points.items():
            # an interval that is not known has no bar
            bars = [[[_length(v[0], v[1])], [_length(v[2], v[0])]] for v in (x, y)]
            axes.errorbar(x[0], y[0], xerr=bars[0], yerr=bars[1], fmt="o", ms=5, capsize=2, label=name)
        axes.set(xlabel=scatter.x, ylabel=scatter.y)
        axes.legend(frameon=False)

    return drawing("scatter-", scatter.title, draw)


def _length(high: float, low: float) -> float:
    return abs(high - low) if math.isfinite(high - low) else 0.0


def drawing(prefix: str, title: str, draw: Callable[[Any], None]) -> str:
    """What `draw` puts on the axes, as SVG to stand inside the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # a fixed salt: the same run gives the same file; text stays text
    look = {"svg.fonttype": "none", "svg.hashsalt": "rlobj", "font.size": 10, "text.parse_math": False}
    with mpl.rc_context(look):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return _renamed(svg[svg.index("<svg") :], prefix)
