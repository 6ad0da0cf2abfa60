"""What `rlobj explain` shows: coloured words in the terminal, and one HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text as RichText

from rlobj.attribution import Deletion
from rlobj.explaining import Explanation, ReplyWord, headline, is_unmoved, over_texts
from rlobj.fit_report import aligned
from rlobj.intervals import Interval
from rlobj.readings import Part, Reading
from rlobj.report import definitions, write_page
from rlobj.subjects import LOG_ODDS

FOR, AGAINST = (230, 159, 0), (86, 180, 233)
"""Orange and blue, told apart by the colour-blind (Okabe and Ito 2008); words against are underlined, too."""
SHOWN = 10
"""Words in the terminal's list."""
LEAST = 0.05
"""Of the strongest word's attribution: what is coloured."""
PASSED, FAILED, OPEN = "✓", "✗", "?"

STYLE = f"""<style>
main {{ overflow-wrap: break-word; }} h3 {{ font-size: 1rem; margin: 1rem 0 .3rem; }}
.words {{ line-height: 2.1; white-space: pre-wrap; overflow-wrap: anywhere; }}
.words .role {{ display: block; line-height: 1.2; margin-top: .5rem; }}
.w {{ padding: .1em .12em; border-radius: .25em; }}
.for {{ background: rgb({FOR[0]} {FOR[1]} {FOR[2]} / var(--a)); }}
.against {{ background: rgb({AGAINST[0]} {AGAINST[1]} {AGAINST[2]} / var(--a)); text-decoration: underline dotted; }}
.asked {{ outline: 2px solid currentColor; }}
.unread {{ color: var(--soft); }}
.checks {{ list-style: none; padding: 0; }} .checks li {{ margin: .3rem 0; }}
section th[scope=row] {{ white-space: normal; min-width: 7rem; max-width: 40vw; }}
section td:nth-child(2).names {{ white-space: normal; text-align: left; min-width: 9rem; }}
@media (prefers-color-scheme: dark) {{ .for {{ background: rgb({FOR[0]} {FOR[1]} {FOR[2]} / calc(var(--a) / 2)); }}
  .against {{ background: rgb({AGAINST[0]} {AGAINST[1]} {AGAINST[2]} / calc(var(--a) / 2)); }} }}
@media print {{ .w {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
</style>"""

LEGEND = (
    "<p><span class='w for' style='--a: .6'>Orange</span> words raise the number, <span class='w against' style='--a: "
    ".6'>blue and underlined</span> ones lower it; the stronger the colour, the more.</p>"
)
MEANINGS = {
    "log-odds": "log p − log (1 − p) of a label or tag, p its probability: 0 at one half, 2.2 at 0.9, −2.2 at 0.1",
    "integrated gradients, Shapley values": "two ways to divide f(text) − f(reference) among the words, where f is the "
    "number, and in the reference an average word stands in the place of each; they need not agree",
    "completeness": "what integrated gradients come to is f(text) − f(reference), but for the convergence delta",
    "deletion": "a fifth of the words, those that raise the number most by a method, are taken out of the text (or "
    "masked, where the tag of a word is explained); then, 200 times, as many at random. A fall below 0 is a rise. "
    f"{PASSED}: without the former the number falls beyond where 95% of the random falls lie. {FAILED}: less far "
    f"than these: the method is not to be believed here. Else {OPEN}: words at random do as well, as in texts of few "
    "words, where they are often the same ones, or where a single word decides, which is among them one time in five. "
    f"Of several texts: {PASSED} or {FAILED} where the interval of the difference is above or below 0, else {OPEN}",
}


LEGEND = f"{PASSED} further than 95% of what random words do, {FAILED} less far than these, {OPEN} among them"


# The terminal ---------------------------------------------------------------------------------------------------------


def show(found: Sequence[Explanation], console: Console | None = None) -> None:
    """Print the explanations: in colour on a terminal, in plain letters elsewhere."""
    console = console or Console(highlight=False, soft_wrap=True)
    for one in found:
        console.print(RichText(f"\n{heading(one)}", Style(bold=True)))
        console.print(coloured(one.reading, one.gradients.words, one.word))
        if one.reply:
            console.print(RichText(f"reply     {one.reply}", Style(dim=True)))
        console.print(RichText("\n" + "\n".join(summary(one))))
    if lines := conclusion(found):
        console.print(RichText("\n" + "\n".join(lines)))
    if any(one.deletions for one in found):
        console.print(RichText(f"\n{LEGEND}", Style(dim=True)))


def heading(one: Explanation) -> str:
    """The number that is explained; of log-odds with their probability."""
    p = f" (p = {1 / (1 + math.exp(-one.value)):.3f})" if one.unit == LOG_ODDS else ""
    return f"{one.what}: {one.value:.3f}{p}"


def coloured(reading: Reading, attribution: np.ndarray, asked: int | None = None) -> RichText:
    """The text with each word on a colour as strong as its attribution; in bold, the word that is asked about."""
    said = RichText()
    most = float(np.abs(attribution).max()) or 1.0
    for number, part in enumerate(reading.parts):
        if part.role:
            said.append(f"{'' if number == 0 else chr(10)}{part.role:<10}", Style(dim=True))
        for text, i in pieces(reading, part):
            if i is None:
                said.append(text, Style(dim=True) if text.strip() else None)
            else:
                said.append(text, _style(float(attribution[i]) / most) + Style(bold=True if i == asked else None))
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
    if abs(share) < LEAST:
        return Style()
    red, green, blue = (round(255 + (c - 255) * abs(share)) for c in (FOR if share > 0 else AGAINST))
    return Style(color="black", bgcolor=f"rgb({red},{green},{blue})", underline=share < 0)


def summary(one: Explanation) -> list[str]:
    """What is said of one text below its words."""
    order = np.argsort(-np.abs(one.gradients.words), kind="stable")[:SHOWN]
    rows = [[named(one.reading, i), _signed(one, one.gradients.words[i]), _signed(one, one.shapley[i])] for i in order]
    lines = aligned([["word", "gradients", "Shapley"], *rows])
    if len(one.reading.words) > SHOWN:
        lines.append(f"… and {len(one.reading.words) - SHOWN} more")
    if one.reply_words:
        lines += ["", "word of the reply  log π  owed most to"]
        lines += [f"{each.said:<17}  {each.value:>z5.2f}  {_owed_to(one.reading, each)}" for each in one.reply_words]
    return [*lines, "", *checks(one)]


def _owed_to(reading: Reading, word: ReplyWord) -> str:
    order = np.argsort(-word.gradients.words, kind="stable")[:3]
    return ", ".join(f"{reading.said(i)} {word.gradients.words[i]:+z.2f}" for i in order)


def checks(one: Explanation) -> list[str]:
    """Deletion, agreement and completeness in words."""
    g = one.gradients
    lines = []
    if is_unmoved(one):
        lines.append(
            f"{FAILED} next to nothing of this number is owed to the words: the model says the same of other texts. "
            "Has it been trained?"
        )
    else:
        lines += [
            deletion_in_words(one, method, taken)
            for method, rows in one.deletions.items()
            if (taken := headline(rows, len(one.reading.words))) is not None
        ]
    if one.agreement is not None:
        lines.append(f"agreement of the two methods: rank correlation {one.agreement:.2f}")
    off = f" ({abs(g.delta / g.difference):.1%})" if g.difference else ""
    return [
        *lines,
        f"completeness: f(text) − f(reference) = {_signed(one, g.difference)}, convergence delta {g.delta:+.1g}{off}, "
        f"{g.steps} steps",
    ]


def deletion_in_words(one: Explanation, method: str, taken: Deletion) -> str:
    """What one deletion came to."""
    count = len(taken.words)
    falls = _falls(one, taken)
    others = "one word" if count == 1 else f"{count} words"
    return (
        f"{_sign(taken)} {method}: without {_list(one, taken)} the number falls by {falls[0]}, without "
        f"{others} at random by {falls[1]} [{falls[2]}, {falls[3]}]; {taken.above:.0%} of these fall less"
    )


def _sign(taken: Deletion) -> str:
    """Whether the number falls further than 95% of the random falls, less far, or neither."""
    slack = 1e-4 * max(abs(taken.low), abs(taken.high))  # the same words score alike but for rounding
    if taken.important > taken.high + slack:
        return PASSED
    return FAILED if taken.important < taken.low - slack else OPEN


def _falls(one: Explanation, taken: Deletion) -> list[str]:
    """By how much the number falls without the words, and at random: the mean, and where 95% lie."""
    falls = (taken.important, taken.random, taken.low, taken.high)
    return [_number(each, one.gradients.words) for each in falls]


def _list(one: Explanation, taken: Deletion) -> str:
    """The words of a deletion, as they follow one another in the text."""
    said = [f"“{one.reading.said(i)}”" for i in sorted(taken.words)[:SHOWN]]
    return ", ".join([*said, *([f"… ({len(taken.words)} words)"] if len(taken.words) > SHOWN else [])])


def _number(value: float, beside: np.ndarray, sign: str = "") -> str:
    """A number with as many digits as tell these attributions apart."""
    most = float(np.abs(beside).max())
    digits = 3 if most == 0 else min(max(3 - math.floor(math.log10(most)), 0), 9)
    return f"{value:{sign}z.{digits}f}"


def _signed(one: Explanation, value: float) -> str:
    return _number(value, one.gradients.words, "+")


def conclusion(found: Sequence[Explanation]) -> list[str]:
    """Of several texts: what their deletions come to."""
    if len(found) < 2:
        return []
    lines = []
    for method, (ours, others, both) in over_texts(found).items():
        sign = PASSED if both[1] > 0 else FAILED if both[2] < 0 else OPEN
        lines.append(
            f"{sign} {method}, over {len(found)}: without the fifth of the words that it names the number falls by "
            f"{_interval(ours)}, without as many at random by {_interval(others)}; difference {_interval(both)}"
        )
    return lines


def _interval(value: Interval) -> str:
    return f"{value[0]:z.2f} [{value[1]:z.2f}, {value[2]:z.2f}]"


# HTML -----------------------------------------------------------------------------------------------------------------


def write_explanation_page(path: Path, found: Sequence[Explanation], name: str) -> Path:
    """Write one self-contained HTML file; return its path."""
    parts = [STYLE, LEGEND, _list_of(conclusion(found))]
    parts += [_section(one, number) for number, one in enumerate(found, 1)]
    parts.append(f"<h2>What the words mean</h2>{definitions(MEANINGS)}")
    return write_page(path, f"What {name} looks at", parts)


def _list_of(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul class='checks'>{items}</ul>" if items else ""


def _section(one: Explanation, number: int) -> str:
    reply = f"<p><span class='role'>reply</span> {escape(one.reply)}</p>" if one.reply else ""
    by_word = "".join(
        f"<details><summary>{escape(each.said)} <span class='meaning'>log π {each.value:z.2f}</span></summary>"
        f"{_words(one, each.gradients.words)}</details>"
        for each in one.reply_words
    )
    return (
        f"<section><h2>{number}. {escape(heading(one))}</h2>"
        f"<h3>Integrated gradients</h3>{_words(one, one.gradients.words)}{reply}"
        f"<h3>Shapley values</h3>{_words(one, one.shapley)}"
        + (f"<h3>Each word of the reply</h3>{by_word}" if by_word else "")
        + _list_of(checks(one))
        + _deletion_table(one, number)
        + _word_table(one, number)
        + "</section>"
    )


def _words(one: Explanation, attribution: np.ndarray) -> str:
    reading, most = one.reading, float(np.abs(attribution).max()) or 1.0
    said = []
    for part in reading.parts:
        said.append(f"<span class='role'>{escape(part.role)}</span>" if part.role else "")
        for text, i in pieces(reading, part):
            if i is None:
                said.append(f"<span class='unread'>{escape(text)}</span>" if text.strip() else escape(text))
                continue
            share = float(attribution[i]) / most
            kinds = ["w", *(["for" if share > 0 else "against"] if abs(share) >= LEAST else [])]
            kinds += ["asked"] if i == one.word else []
            said.append(
                f"<span class='{' '.join(kinds)}' style='--a: {0.85 * abs(share):.2f}' "
                f"title='{_number(attribution[i], attribution, '+')}'>{escape(text)}</span>"
            )
    return f"<div class='words'>{''.join(said)}</div>"


def _deletion_table(one: Explanation, number: int) -> str:
    names = ("words deleted", "falls by", "at random", "of these fall less")
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    rows = "".join(
        f"<tr><th scope='row'>{method}</th><td class='names'>{escape(_list(one, each))}</td>"
        f"<td>{_falls(one, each)[0]}</td><td>{_falls(one, each)[1]} "
        f"<span class='interval'>[{_falls(one, each)[2]}, {_falls(one, each)[3]}]</span></td>"
        f"<td>{each.above:.0%}</td></tr>"
        for method, deleted in one.deletions.items()
        for each in deleted
    )
    return _folded("Deletion", number, head, rows) if rows else ""


def _word_table(one: Explanation, number: int) -> str:
    head = "<th scope='col'>integrated gradients</th><th scope='col'>Shapley values</th>"
    rows = "".join(
        f"<tr><th scope='row'>{escape(named(one.reading, i))}</th><td>{_signed(one, one.gradients.words[i])}</td>"
        f"<td>{_signed(one, one.shapley[i])}</td></tr>"
        for i in np.argsort(-np.abs(one.gradients.words), kind="stable")
    )
    return _folded("All words", number, head, rows)


def _folded(title: str, number: int, head: str, rows: str) -> str:
    return (
        f"<details><summary>{title}</summary><div class='wide' tabindex='0' role='region' "
        f"aria-label='{title}, {number}'><table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
        "</div></details>"
    )
