"""What a run shows: a table for the terminal, and one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlobj.pictures import COLOURS, Picture, Point, html_of
from rlobj.runs import atomic_write_text

Curves = Mapping[str, Mapping[str, Sequence[Point]]]
"""Title -> name of a policy -> values by optimiser step."""


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

# by the titles that rlobj.results.CURVES gives
CURVE_MEANINGS = {
    "λ‖∇ℓ‖ / ‖∇R‖": "how strongly the supervised term pulls, beside the reward; near 0, λ does nothing",
    "cosine of the two gradients": "whether reward and supervision pull the same way (1), across (0) or against each "
    "other (−1)",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #55606c; --line: #d9dee4; --paper: #fff; --user: #eef2f7;
  --agent: #dcefe3; --tool: #f6f1e3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #38414b; --paper: #161b21;
  --user: #252d37; --agent: #1f3a2c; --tool: #38331f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  padding-left: 0; }
.interval, .meaning, .role { color: var(--soft); font-size: .85em; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .2rem 1rem; } dt { font-weight: 600; }
dd { margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 36rem; }
figure svg { width: 100%; height: auto; color: var(--ink); } figure svg text { fill: var(--ink); }
figcaption, .numbers { color: var(--soft); font-size: .85em; }
.numbers pre { max-height: 14rem; overflow: auto; color: var(--ink); }
.controls { position: sticky; top: 0; z-index: 1; background: var(--paper); padding: .4rem 0; border: 0;
  border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0;
  max-height: 6.5rem; overflow-y: auto; }
.controls legend { float: left; margin-right: 1rem; padding: 0; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin: 0 .3em; }
[hidden] { display: none; }
button { font: inherit; font-size: .85em; }
:focus-visible { outline: 3px solid #2f9bd6; outline-offset: 2px; }
@media (prefers-color-scheme: dark) { [data-series], .swatch { filter: brightness(1.5); } }
@media print { .controls { position: static; max-height: none; } .controls input, button { display: none; }
  body { margin: 0; max-width: none; }
  figure, .pair, tr { break-inside: avoid; } }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); gap: 1.5rem; }
.said { padding: .35rem .7rem; margin: .3rem 0; border-radius: .6rem; background: var(--user); width: fit-content;
  max-width: 90%; overflow-wrap: anywhere; white-space: pre-wrap; }
.said.assistant { background: var(--agent); margin-left: auto; }
.said.tool { background: var(--tool); font: .8em/1.4 ui-monospace, monospace; }
summary { cursor: pointer; margin: .6rem 0; }
"""


SCRIPT = """
for (const box of document.querySelectorAll('[data-shows]')) {
  box.hidden = false;
  box.addEventListener('change', () => {
    for (const drawn of document.querySelectorAll(`[data-series="${box.dataset.shows}"]`))
      drawn.style.display = box.checked ? '' : 'none';
  });
}
for (const details of document.querySelectorAll('.numbers')) {
  const button = document.createElement('button'), numbers = details.querySelector('pre');
  button.textContent = 'Copy';
  button.addEventListener('click', async () => {
    try { await navigator.clipboard.writeText(numbers.textContent); button.textContent = 'Copied'; }
    catch { getSelection().selectAllChildren(numbers); button.textContent = 'Selected: press Ctrl+C'; }
  });
  details.insertBefore(button, numbers);
}
"""
"""Controls of the page; all else is there without it."""


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
    pictures: Sequence[Picture] = (),
    intervals: str = "over episodes (ℓ: over held-out rows)",
    extra: Sequence[str] = (),
) -> None:
    """Write one self-contained HTML file.

    Args:
        facts: what the run was, by name.
        table: as in `text_table`.
        samples: the same episode of several policies: `title`, and `sides`, each with `name`, `messages`, `success` and
            `rewards` (by name).
        notes: sentences for the reader, above the table.
        pictures: below the table, before the learning curves.
        intervals: what the intervals are over.
        extra: more HTML behind the table.
    """
    learning = [Picture(name, "optimiser step", "", lines) for name, lines in curves.items()]
    drawn = [name for picture in [*pictures, *learning] for name in picture.series]
    names = list(dict.fromkeys([*(str(row["name"]) for row in table), *drawn]))
    parts = [
        *[f"<p>{escape(note)}</p>" for note in notes],
        f"<h2>Evaluation</h2>{html_table(table)}",
        f"<p class='meaning'>In brackets: 95% interval {escape(intervals)}.</p>",
        *extra,
        _controls([name if name in drawn else None for name in names]),
        f"<div class='plots'>{html_of(pictures, names, 'picture')}</div>" if pictures else "",
        f"<h2>Learning curves</h2><div class='plots'>{html_of(learning, names, 'plot')}</div>" if learning else "",
        "<h2>The same episodes by each policy</h2>" if samples else "",
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
        + "\n".join(["<main>", f"<h1>{escape(title)}</h1>", *parts, "</main>"])
        + f"\n<script>{SCRIPT}</script></body></html>\n",
    )
    return path


def _controls(names: Sequence[str | None]) -> str:
    """Which colour a policy has in all pictures, with boxes that show and hide it; without scripts, without boxes."""
    if not any(names):
        return ""
    boxes = "".join(
        f"<label><input type='checkbox' checked hidden data-shows='{number}'>"
        f"<span class='swatch' style='background: {COLOURS[number % len(COLOURS)]}'></span>{escape(name)}</label>"
        for number, name in enumerate(names)
        if name is not None
    )
    return f"<fieldset class='controls'><legend>Policies</legend>{boxes}</fieldset>"


def _met(curves: Curves) -> dict[str, str]:
    return {title: meaning for title, meaning in CURVE_MEANINGS.items() if title in curves}


def definitions(items: Mapping[str, str]) -> str:
    """Names and what they are, as HTML."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"


def html_table(table: Sequence[Mapping[str, Any]], caption: str = "Each policy on the evaluation episodes") -> str:
    """The table of `text_table`, with all metrics."""
    metrics = _metrics_in(table)
    head = "".join(f"<th scope='col'>{escape(METRICS[m][0])}</th>" for m in metrics)
    rows = []
    for row in table:
        cells = "".join(
            f"<td>{_number(row.get(m))}<span class='interval'>{_interval(row.get(m))}</span></td>" for m in metrics
        )
        rows.append(f"<tr><th scope='row'>{escape(str(row['name']))}</th>{cells}</tr>")
    return (
        f"<div class='wide' tabindex='0' role='region' aria-label='{escape(caption)}'><table><thead><tr><td></td>{head}"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sample(sample: Mapping[str, Any], opened: bool) -> str:
    sides = "".join(
        f"<div><p class='role'>{escape(side['name'])}{_outcome(side.get('success'))}{_rewards(side.get('rewards'))}</p>"
        f"{_bubbles(side['messages'])}</div>"
        for side in sample["sides"]
    )
    return (
        f"<details{' open' if opened else ''}><summary>{escape(str(sample['title']))}</summary>"
        f"<div class='pair'>{sides}</div></details>"
    )


def _rewards(rewards: Mapping[str, float | None] | None) -> str:
    said = ", ".join(f"{name} {value:.2f}" for name, value in (rewards or {}).items() if value is not None)
    return f"; {escape(said)}" if said else ""


def _outcome(success: Any) -> str:
    return "" if success is None else " — task done ✓" if success else " — task not done ✗"


def _bubbles(messages: Sequence[Mapping[str, str]]) -> str:
    said = [(escape(message["role"]), escape(message["content"])) for message in messages]
    return "".join(f"<div class='said {role}'><span class='role'>{role}</span> {text}</div>" for role, text in said)
