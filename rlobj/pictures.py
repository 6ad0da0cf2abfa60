"""Pictures of a report: SVG that stands inside the page, with the numbers behind it to copy.

A picture takes the page's colours, light or dark. What it draws of one policy carries that policy's name, so that the
page's controls can hide it everywhere, and each name has one colour throughout the page.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any, NamedTuple

NAN = math.nan
SERIES = "series:"
"""Begins the id that matplotlib writes around what is drawn of a policy, whose number follows."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#2f9bd6", "#882255", "#5b6770")
"""Told apart by the colour-blind, and of contrast at least 3 on white (after Okabe and Ito 2008)."""


class Point(NamedTuple):
    """A value and, where it is known, its interval; of a scatter, that of x too."""

    x: float
    y: float
    low: float = NAN
    high: float = NAN
    x_low: float = NAN
    x_high: float = NAN


@dataclass(frozen=True, slots=True)
class Picture:
    """One metric against another, for several policies."""

    title: str
    x: str
    """heading of the horizontal axis"""
    y: str
    series: Mapping[str, Sequence[Point]]
    """name of a policy -> its points"""
    joined: bool = True
    """a line through the points, with a band for their intervals; otherwise marks with bars"""
    note: str = ""
    """a sentence below it"""


def html_of(pictures: Iterable[Picture], names: Sequence[str], prefix: str) -> str:
    """Pictures side by side.

    Args:
        names: of all policies of the page, which gives each its colour.
        prefix: no other pictures of the page have it.
    """
    return "".join(_figure(picture, names, f"{prefix}{number}-") for number, picture in enumerate(pictures))


def _figure(picture: Picture, names: Sequence[str], prefix: str) -> str:
    note = f"<figcaption>{escape(picture.note)}</figcaption>" if picture.note else ""
    return f"<figure>{drawing(prefix, picture.title, partial(_draw, picture, names))}{note}{_numbers(picture)}</figure>"


def _numbers(picture: Picture) -> str:
    """The numbers behind a picture as comma-separated values."""
    rows = [(name, point) for name, points in picture.series.items() for point in points]
    headings = (picture.x, picture.y or "value", "low", "high", f"{picture.x} low", f"{picture.x} high")
    known = [i for i in range(len(headings)) if any(math.isfinite(point[i]) for _, point in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["policy", *[headings[i] for i in known]])
    for name, point in rows:
        writer.writerow([name, *[f"{point[i]:.6g}" if math.isfinite(point[i]) else "" for i in known]])
    return (
        f"<details class='numbers'><summary>numbers</summary>"
        f"<pre tabindex='0' aria-label='numbers of {escape(picture.title)}'>{escape(text.getvalue())}</pre></details>"
    )


def _draw(picture: Picture, names: Sequence[str], axes: Any) -> None:
    for number, (name, points) in enumerate(picture.series.items()):
        if not points:
            continue
        place = names.index(name) if name in names else len(names) + number
        drawn = (_line if picture.joined else _marks)(axes, points, COLOURS[place % len(COLOURS)])
        for artist in drawn:
            artist.set_gid(f"{SERIES}{place}")
    axes.set(xlabel=picture.x, ylabel=picture.y)  # the page says which colour is whose


def _line(axes: Any, points: Sequence[Point], colour: str) -> list[Any]:
    x, y, low, high, *_ = zip(*points, strict=True)
    few = len(points) < 15
    drawn = axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if few else None, ms=3)
    if any(map(math.isfinite, low)):
        drawn.append(axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0))
    return list(drawn)


def _marks(axes: Any, points: Sequence[Point], colour: str) -> list[Any]:
    drawn: list[Any] = []
    # many of one kind stand behind the single ones
    look = {"ms": 3, "elinewidth": 0.7, "capsize": 0, "alpha": 0.7} if len(points) > 1 else {"ms": 5, "capsize": 2}
    for point in points:
        # an interval that is not known has no bar
        bars = {
            "xerr": [[_length(point.x, point.x_low)], [_length(point.x_high, point.x)]],
            "yerr": [[_length(point.y, point.low)], [_length(point.high, point.y)]],
        }
        mark, caps, lines = axes.errorbar(point.x, point.y, **bars, fmt="o", color=colour, **look)
        drawn += [mark, *caps, *lines]
    return drawn


def _length(high: float, low: float) -> float:
    return abs(high - low) if math.isfinite(high - low) else 0.0


def drawing(prefix: str, title: str, draw: Callable[[Any], None]) -> str:
    """What `draw` puts on the axes, as SVG to stand inside the page in the page's own colours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # a fixed salt: the same run gives the same file; text stays text
    look = {"svg.fonttype": "none", "svg.hashsalt": "rlobj", "font.size": 10, "text.parse_math": False}
    with mpl.rc_context(look):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return _in_the_pages_colours(_renamed(svg, prefix))


def _renamed(svg: str, prefix: str) -> str:
    """Put a prefix before the ids of a drawing: matplotlib gives the same ones to each, and a page has them once. What
    is drawn of a policy may be several things: its id becomes an attribute."""
    ids = re.compile(r'(\bid="|href="#|url\(#)')

    def rename(tag: re.Match[str]) -> str:
        return ids.sub(rf"\g<1>{prefix}", tag.group().replace(f'id="{SERIES}', 'data-series="'))

    return re.sub(r"<[^>]+>", rename, svg)


def _in_the_pages_colours(svg: str) -> str:
    """Black is the page's ink, in text, too, which says no colour of its own."""
    return re.sub(r"(stroke|fill): ?#000000", r"\1: currentColor", svg)
