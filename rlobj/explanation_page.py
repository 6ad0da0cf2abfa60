"""What `rlobj explain` shows: coloured words in the terminal, and one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text as RichText

from rlobj.explaining import Explanation, ReplyWord, headline, over_texts
from rlobj.fit_report import aligned
from rlobj.intervals import Interval
from rlobj.readings import Part, Reading
from rlobj.report import write_page

FOR, AGAINST = (230, 159, 0), (86, 180, 233)
"""Orange and blue, told apart by the colour-blind (Okabe and Ito 2008); words against are underlined, too."""
SHOWN = 10
"""Words in the terminal's list."""

STYLE = f"""<style>
.words {{ line-height: 2.1; white-space: pre-wrap; overflow-wrap: anywhere; }}
.words .role {{ display: block; line-height: 1.2; margin-top: .5rem; }}
.w {{ padding: .1em .12em; border-radius: .25em; }}
.for {{ background: rgb({FOR[0]} {FOR[1]} {FOR[2]} / var(--a)); }}
.against {{ background: rgb({AGAINST[0]} {AGAINST[1]} {AGAINST[2]} / var(--a)); text-decoration: underline dotted; }}
.unread {{ color: var(--soft); }}
@media (prefers-color-scheme: dark) {{ .for {{ background: rgb({FOR[0]} {FOR[1]} {FOR[2]} / calc(var(--a) / 2)); }}
  .against {{ background: rgb({AGAINST[0]} {AGAINST[1]} {AGAINST[2]} / calc(var(--a) / 2)); }} }}
@media print {{ .w {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
</style>"""

LEGEND = (
    "<p class='meaning'>Orange words raise the number, blue and underlined ones lower it; the stronger the colour, the "
    "more. Both methods divide f(text) − f(reference) among the words, where in the reference an average word "
    "stands in the place of each. Integrated gradients add up to it but for the convergence delta.</p>"
)


# The terminal ---------------------------------------------------------------------------------------------------------


def show(found: Sequence[Explanation], console: Console | None = None) -> None:
    """Print the explanations: in colour on a terminal, in plain letters elsewhere."""
    console = console or Console(highlight=False, soft_wrap=True)
    for one in found:
        console.print(RichText(f"\n{one.what}: {one.value:.3f}", Style(bold=True)))
        console.print(coloured(one.reading, one.gradients.words))
        if one.reply:
            console.print(RichText(f"reply     {one.reply}", Style(dim=True)))
        console.print(RichText("\n" + "\n".join(summary(one))))
    for line in conclusion(found) if len(found) > 1 else ():
        console.print(RichText(line))


def coloured(reading: Reading, attribution: np.ndarray) -> RichText:
    """The text with each word on a colour as strong as its attribution."""
    said = RichText()
    most = float(np.abs(attribution).max()) or 1.0
    for number, part in enumerate(reading.parts):
        if part.role:
            said.append(f"{'' if number == 0 else chr(10)}{part.role:<10}", Style(dim=True))
        for text, i in pieces(reading, part):
            unread = Style(dim=True) if text.strip() else None
            said.append(text, unread if i is None else _style(float(attribution[i]) / most))
    return said


def pieces(reading: Reading, part: Part) -> list[tuple[str, int | None]]:
    """What a part says in pieces: words with their number, and without one what stands between them, such as space, or
    words that were cut off and not read."""
    found: list[tuple[str, int | None]] = []
    place = part.start
    for i, word in enumerate(reading.words):
        if part.start <= word.start < part.end:
            found += [(reading.text[place : word.start], None), (reading.said(i), i)]
            place = word.end
    return [(text, i) for text, i in [*found, (reading.text[place : part.end], None)] if text]


def named(reading: Reading, i: int) -> str:
    """A word, in a conversation with who says it."""
    place = reading.words[i].start
    role = next(part.role for part in reading.parts if part.start <= place < part.end)
    return f"{reading.said(i)} ({role})" if len(reading.parts) > 1 else reading.said(i)


def _style(share: float) -> Style:
    """Dark text on the colour, lighter the weaker; words of next to no weight as they are."""
    if abs(share) < 0.05:
        return Style()
    red, green, blue = (round(255 + (c - 255) * abs(share)) for c in (FOR if share > 0 else AGAINST))
    return Style(color="black", bgcolor=f"rgb({red},{green},{blue})", underline=share < 0)


def summary(one: Explanation) -> list[str]:
    """What is said of one text below its words."""
    order = np.argsort(-np.abs(one.gradients.words), kind="stable")[:SHOWN]
    rows = [[named(one.reading, i), f"{one.gradients.words[i]:+.3f}", f"{one.shapley[i]:+.3f}"] for i in order]
    lines = aligned([["word", "gradients", "Shapley"], *rows])
    if len(one.reading.words) > SHOWN:
        lines.append(f"… and {len(one.reading.words) - SHOWN} more")
    if one.reply_words:
        lines += ["", "word of the reply  log π  owed most to"]
        lines += [f"{each.said:<17}  {each.value:>5.2f}  {_owed_to(one.reading, each)}" for each in one.reply_words]
    return [*lines, "", *checks(one)]


def _owed_to(reading: Reading, word: ReplyWord) -> str:
    order = np.argsort(-word.gradients.words, kind="stable")[:3]
    return ", ".join(f"{reading.said(i)} {word.gradients.words[i]:+.2f}" for i in order)


def checks(one: Explanation) -> list[str]:
    """Completeness, agreement and deletion in words."""
    g = one.gradients
    off = f" ({abs(g.delta / g.difference):.1%})" if g.difference else ""
    lines = [
        f"completeness: f(text) − f(reference) = {g.difference:+.3f}, convergence delta {g.delta:+.1g}{off}, "
        f"{g.steps} steps"
    ]
    if one.agreement is not None:
        lines.append(f"agreement of the two methods: rank correlation {one.agreement:.2f}")
    for method, rows in one.deletions.items():
        taken = headline(rows, len(one.reading.words))
        if taken is not None:
            words = "word" if taken.words == 1 else f"{taken.words} words"
            lines.append(
                f"without the {words} named by {method}: {-taken.important:+.2f}; at random {-taken.random:+.2f}, 95% "
                f"between {-taken.high:+.2f} and {-taken.low:+.2f} (falls further than {taken.above:.0%} of them)"
            )
    return lines


def conclusion(found: Sequence[Explanation]) -> list[str]:
    """Of several texts: what their deletions come to."""
    return [
        f"{method}: without a fifth of the words it falls by {_interval(ours)}, at random by {_interval(others)}; "
        f"difference {_interval(both)}, over {len(found)} texts"
        for method, (ours, others, both) in over_texts(found).items()
    ]


def _interval(value: Interval) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


# HTML -----------------------------------------------------------------------------------------------------------------


def write_explanation_page(path: Path, found: Sequence[Explanation], name: str) -> Path:
    """Write one self-contained HTML file; return its path."""
    parts = [STYLE, LEGEND]
    if len(found) > 1:
        parts.append("".join(f"<p>{escape(line)}</p>" for line in conclusion(found)))
    parts += [_section(one, number) for number, one in enumerate(found, 1)]
    return write_page(path, f"What {name} looks at", parts)


def _section(one: Explanation, number: int) -> str:
    reply = f"<p><span class='role'>reply</span> {escape(one.reply)}</p>" if one.reply else ""
    by_word = "".join(
        f"<details><summary>{escape(each.said)} <span class='meaning'>log π {each.value:.2f}</span></summary>"
        f"{_words(one.reading, each.gradients.words)}</details>"
        for each in one.reply_words
    )
    return (
        f"<section><h2>{number}. {escape(one.what)}: {one.value:.3f}</h2>"
        f"<h3>Integrated gradients</h3>{_words(one.reading, one.gradients.words)}{reply}"
        f"<h3>Shapley values</h3>{_words(one.reading, one.shapley)}"
        + (f"<h3>Each word of the reply</h3>{by_word}" if by_word else "")
        + "".join(f"<p>{escape(line)}</p>" for line in checks(one))
        + _deletion_table(one)
        + _word_table(one)
        + "</section>"
    )


def _words(reading: Reading, attribution: np.ndarray) -> str:
    most = float(np.abs(attribution).max()) or 1.0
    said = []
    for part in reading.parts:
        role = f"<span class='role'>{escape(part.role)}</span>" if part.role else ""
        said.append(role + "".join(_piece(text, None if i is None else float(attribution[i]), most) for text, i in
                                   pieces(reading, part)))  # fmt: skip
    return f"<div class='words'>{''.join(said)}</div>"


def _piece(text: str, value: float | None, most: float) -> str:
    if value is None:
        return f"<span class='unread'>{escape(text)}</span>" if text.strip() else escape(text)
    kind, strength = "for" if value >= 0 else "against", abs(value) / most
    return (
        f"<span class='w {kind if strength >= 0.05 else ''}' style='--a: {0.85 * strength:.2f}' "
        f"title='{value:+.4f}'>{escape(text)}</span>"
    )


def _deletion_table(one: Explanation) -> str:
    head = "".join(
        f"<th scope='col'>{name}</th>" for name in ("words deleted", "falls by", "at random", "further than")
    )
    rows = "".join(
        f"<tr><th scope='row'>{method}</th><td>{each.words}</td><td>{each.important:.3f}</td><td>{each.random:.3f} "
        f"<span class='interval'>[{each.low:.3f}, {each.high:.3f}]</span></td><td>{each.above:.0%}</td></tr>"
        for method, deleted in one.deletions.items()
        for each in deleted
    )
    return _folded("Deletion", f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody>") if rows else ""


def _word_table(one: Explanation) -> str:
    head = "<th scope='col'>integrated gradients</th><th scope='col'>Shapley values</th>"
    rows = "".join(
        f"<tr><th scope='row'>{escape(named(one.reading, i))}</th><td>{one.gradients.words[i]:+.4f}</td>"
        f"<td>{one.shapley[i]:+.4f}</td></tr>"
        for i in np.argsort(-np.abs(one.gradients.words), kind="stable")
    )
    return _folded("All words", f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody>")


def _folded(title: str, table: str) -> str:
    return (
        f"<details><summary>{title}</summary><div class='wide' tabindex='0' role='region' aria-label='{title}'>"
        f"<table>{table}</table></div></details>"
    )
