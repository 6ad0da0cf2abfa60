"""The terminal's table and the HTML file: what they show, and that nothing in them is taken for markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from rlobj.pictures import Picture, Point
from rlobj.report import CURVE_MEANINGS, METRICS, SCRIPT, text_table, write_report

NAN = math.nan
TABLE = [
    {"name": "warm start", "success": (0.5, 0.4, 0.6), "return": (-1.25, -2.0, -0.5), "ell": (1.5, NAN, NAN)},
    {"name": "λ = 0", "success": (0.75, 0.6, 0.9), "return": (NAN, NAN, NAN), "ell": None},
    {"name": "λ=0.1 <b>&", "success": (1.0, 1.0, 1.0), "return": (12.0, None, None)},
]
SAID = {"role": "user", "content": "one\ntwo"}
ANSWER = {"role": "assistant", "content": "three"}
FOUND = {"role": "tool", "content": '{"found": 1}'}
PARETO = Picture("return against ℓ", "ℓ", "return", {"λ = 0": [Point(1.5, 2.0, 1.0, 3.0, 1.25, 1.75)]}, joined=False)
VOID = {"meta", "br", "link", "img", "input"}
EVIL = "<script>alert('x')</script> & \"</div>\" $a_b$ --> id=x"


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps the text, the tags and the attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] != ["style"] and self.open[-1:] != ["script"]:
            self.words.append(data)


def report(path, **changes):
    content = {
        "title": "demo & more",
        "facts": {"seed": "3", "environment": "a<b"},
        "table": TABLE,
        "curves": {
            "return": {
                "λ = 0": [Point(1, 0.1), Point(2, 0.3, 0.2, 0.4)],
                "λ=0.1 <b>&": [Point(1, 0.2), Point(2, NAN), Point(3, 0.5)],
            },
            "λ‖∇ℓ‖ / ‖∇R‖": {"λ=0.1 <b>&": [Point(1, 0.2)]},
        },
        "samples": [
            {
                "title": "episode 7",
                "sides": [
                    {
                        "name": "warm start",
                        "messages": [SAID, {"role": "assistant", "content": "three"}],
                        "success": False,
                    },
                    {
                        "name": "λ = 0",
                        "messages": [FOUND],
                        "success": True,
                        "rewards": {"return": 1.25, "polite": None},
                    },
                ],
            },
            {"title": "episode 8", "sides": [{"name": "λ = 0", "messages": []}]},
        ],
        "notes": ["A note."],
        "pictures": [PARETO],
    }
    write_report(path, **{**content, **changes})
    return path.read_text(encoding="utf-8")


# The terminal's table -------------------------------------------------------------------------------------------------


def test_text_table_to_the_letter():
    assert text_table(TABLE).splitlines() == [
        "            task success       return                ℓ",
        "─────────────────────────────────────────────────────────",
        "warm start  0.50 [0.40, 0.60]  -1.25 [-2.00, -0.50]  1.50",
        "λ = 0       0.75 [0.60, 0.90]  –                     –",
        "λ=0.1 <b>&  1.00 [1.00, 1.00]  12.00                 –",
    ]


def test_a_metric_that_no_row_has_is_no_column_and_zero_has_no_sign():
    table = [{"name": "a", "kl": (-0.001, -0.004, 0.004), "return": None}]
    assert text_table(table).splitlines()[0].split() == ["KL"]
    assert text_table(table).splitlines()[2] == "a  0.00 [0.00, 0.00]"


# HTML -----------------------------------------------------------------------------------------------------------------


def test_page_shows_every_policy_metric_curve_and_dialogue(tmp_path):
    page = Page(report(tmp_path / "report.html"))
    for row in TABLE:
        assert row["name"] in page.text
    for metric in ("success", "return", "ell"):
        heading, meaning = METRICS[metric]
        assert heading in page.text and meaning in page.text
    assert METRICS["kl"][1] not in page.text, "nothing is explained that is not shown"
    assert "0.75 [0.60, 0.90]" in page.text
    assert "nan" not in page.text.lower() and "None" not in page.text
    assert page.tags.count("svg") == 3 and page.tags.count("details") == 2 + 3, "dialogues, and numbers of pictures"
    for said in ("λ‖∇ℓ‖ / ‖∇R‖", "λ=0.1 <b>&", "optimiser step", "A note.", "demo & more", "a<b", "three", "episode 8"):
        assert said in page.text
    assert "how strongly the supervised term pulls" in page.text
    assert page.text.index("task not done") < page.text.index("task done ✓; return 1.25")
    assert "kind" not in page.text, "a part that said nothing of this episode"


def test_the_numbers_behind_a_picture_are_there_to_copy(tmp_path):
    html = report(tmp_path / "report.html")
    numbers = re.findall(r"<pre [^>]*>(.*?)</pre>", html, re.DOTALL)
    assert numbers[0].splitlines() == ["policy,ℓ,return,low,high,ℓ low,ℓ high", "λ = 0,1.5,2,1,3,1.25,1.75"]
    assert numbers[1].splitlines()[:3] == [
        "policy,optimiser step,value,low,high",
        "λ = 0,1,0.1,,",
        "λ = 0,2,0.3,0.2,0.4",
    ]
    assert "λ=0.1 &lt;b&gt;&amp;,2,,," in numbers[1]


def test_every_policy_has_a_box_that_names_what_is_drawn_of_it(tmp_path):
    page = Page(report(tmp_path / "report.html"))
    boxes = [value for name, value in page.attributes if name == "data-shows"]
    assert boxes == ["1", "2"], "nothing is drawn of the warm start"
    drawn = [value for name, value in page.attributes if name == "data-series"]
    assert set(drawn) == set(boxes)
    assert drawn.count("1") == 7 + 2, "a mark with its bars and caps, a line with its band"


def test_titles_that_are_explained_are_those_a_run_gives(tmp_path):
    from rlobj.results import CURVES

    assert set(CURVE_MEANINGS) <= set(CURVES.values())
    page = Page(report(tmp_path / "report.html", curves={title: {"λ=0": [Point(1, 0.5)]} for title in CURVES.values()}))
    assert all(meaning in page.text for meaning in CURVE_MEANINGS.values())


def test_cells_without_a_value_hold_a_dash(tmp_path):
    html = report(tmp_path / "report.html")
    row = re.search(r"<tr><th scope='row'>λ = 0</th>(.*?)</tr>", html).group(1)
    assert re.sub("<[^>]*>", "|", row).split("|")[1] == "0.75"
    assert re.findall(r"<td>([^<]*)<span class='interval'>([^<]*)</span></td>", row) == [
        ("0.75", " [0.60, 0.90]"), ("–", ""), ("–", "")
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["title", "facts", "notes", "name", "curve", "line", "sample", "content", "role"])
def test_text_is_never_markup(tmp_path, place):
    message = {"role": EVIL if place == "role" else "user", "content": EVIL if place == "content" else "hi"}
    changes = {
        "title": {"title": EVIL},
        "facts": {"facts": {EVIL: EVIL}},
        "notes": {"notes": [EVIL]},
        "name": {"table": [{**TABLE[0], "name": EVIL}]},
        "curve": {"curves": {EVIL: {"a": [Point(0, 1.0)]}}},
        "line": {"curves": {"c": {EVIL: [Point(0, 1.0)]}}},
        "sample": {"samples": [{"title": EVIL, "sides": [{"name": EVIL, "messages": [], "rewards": {EVIL: 1.0}}]}]},
    }.get(place, {"samples": [{"title": "t", "sides": [{"name": "a", "messages": [message]}]}]})
    html = report(tmp_path / "report.html", **changes)
    page = Page(html)
    assert page.tags.count("script") == html.count("<script") == 1 and f"<script>{SCRIPT}</script>" in html
    assert not re.search(r"&(?!#?\w+;)", html), "every & is an escape"
    assert EVIL in page.text
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert all("script" not in value for name, value in page.attributes if name not in ("aria-label", "class"))


def test_page_needs_nothing_from_elsewhere(tmp_path):
    html = report(tmp_path / "report.html")
    page = Page(html)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), f"{name}={value}"
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", html))
    assert "@import" not in html


def test_drawings_share_no_names(tmp_path):
    page = Page(report(tmp_path / "report.html"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "an id means one thing in a page"
    used = {value.removeprefix("#") for name, value in page.attributes if name == "xlink:href"}
    used |= {name for _, value in page.attributes for name in re.findall(r"url\(#([^)]*)\)", value)}
    assert used and used <= set(ids)


def test_same_input_same_bytes(tmp_path):
    assert report(tmp_path / "a.html") == report(tmp_path / "b.html")


def test_little_to_show_is_still_a_page(tmp_path):
    page = Page(report(tmp_path / "report.html", curves={}, samples=[], notes=[], pictures=[]))
    assert "Learning curves" not in page.text and "by each policy" not in page.text
    page = Page(report(tmp_path / "report.html", curves={"return": {"λ = 0": []}}))
    assert "optimiser step" in page.text


def test_drawings_leave_matplotlibs_settings_alone(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    report(tmp_path / "report.html")
    assert dict(mpl.rcParams) == before
