"""The report in a real browser, without network: that it draws, that its controls work, and that all can read it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from browser import CHROMIUM, page
from test_report import TABLE, report

from rlobj.pictures import Picture, Point

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
SOUP = "soup of λ = 0 and λ = 1"
LONG = {"role": "assistant", "content": "a sentence that is long enough to be broken into several lines " * 4}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The report of a small comparison in a page."""
    folder = tmp_path_factory.mktemp("browser")
    ends = {row["name"]: [Point(x, x / 2, x / 2 - 1, x / 2 + 1, x - 0.1, x + 0.1)] for x, row in enumerate(TABLE)}
    ends[SOUP] = [Point(x / 5, x / 9) for x in range(9)]
    side = {"name": "warm start", "success": False, "messages": [LONG, {"role": "user", "content": "w" * 300}]}
    report(
        folder / "report.html",
        pictures=[Picture("return against ℓ", "ℓ", "return", ends, joined=False, note="A note.")],
        samples=[{"title": "episode 1", "sides": [side, {**side, "name": "λ = 0"}]}],
    )
    with page(folder / "profile") as opened:
        yield opened, folder / "report.html"


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_draws_and_fits(shown, width, scheme):
    browser, path = shown
    browser.look(width, scheme)
    browser.open(path)
    assert browser.errors == []
    assert browser.requests == [path.resolve().as_uri()] * len(browser.requests), "nothing else is asked for"
    # what is wider scrolls in its own frame: the page does not
    assert browser.run("document.documentElement.scrollWidth") <= width
    drawn = browser.run("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)")
    assert len(drawn) == 3 and all(200 < each <= width for each in drawn)
    ink, paper = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert _brightness(ink) < _brightness(paper) if scheme == "light" else _brightness(ink) > _brightness(paper)
    text = browser.run("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert text == ink, "pictures are in the page's own colours"


def _brightness(rgb: str) -> int:
    return sum(int(part) for part in rgb[4:-1].split(","))


def test_boxes_show_and_hide_a_policy_in_all_pictures(shown):
    browser, path = shown
    browser.look(1280)
    browser.open(path)
    labels = browser.run("[...document.querySelectorAll('.controls label')].map(l => l.textContent)")
    assert labels == [*(row["name"] for row in TABLE), SOUP]
    is_shown = "e => getComputedStyle(e).display != 'none'"
    visible = f"[...document.querySelectorAll('[data-series]')].filter({is_shown}).map(e => e.dataset.series)"
    before = browser.run(visible)
    assert set(before) == {"0", "1", "2", "3"}
    browser.click("document.querySelector('[data-shows=\"1\"]')")
    assert set(browser.run(visible)) == {"0", "2", "3"}
    browser.click("document.querySelector('[data-shows=\"1\"]')")
    assert browser.run(visible) == before


def test_the_numbers_behind_a_picture_are_copied(shown):
    browser, path = shown
    browser.look(1280)
    browser.open(path)
    browser.click("document.querySelector('.numbers summary')")
    assert browser.run("document.querySelector('.numbers').open")
    browser.click("document.querySelector('.numbers button')")
    said = "new Promise(said => setTimeout(() => said(document.querySelector('.numbers button').textContent), 200))"
    assert browser.run(said) in ("Copied", "Selected: press Ctrl+C")
    numbers = browser.run("document.querySelector('.numbers pre').textContent")
    assert numbers.startswith("policy,ℓ,return,low,high")
    if browser.run("document.querySelector('.numbers button').textContent") != "Copied":
        assert browser.run("getSelection().toString()").strip() == numbers.strip()


def test_a_sample_opens_and_closes(shown):
    browser, path = shown
    browser.look(400)
    browser.open(path)
    assert browser.run("document.querySelector('.said').checkVisibility()")
    browser.click("document.querySelector('.pair').closest('details').querySelector('summary')")
    assert not browser.run("document.querySelector('.said').checkVisibility()")


def test_what_cannot_be_used_on_paper_is_not_printed(shown):
    browser, path = shown
    browser.look(800, media="print")
    browser.open(path)
    for control in (".controls input", ".numbers button"):
        assert browser.run(f"getComputedStyle(document.querySelector('{control}')).display") == "none"
    assert browser.run("getComputedStyle(document.querySelector('.controls')).display") != "none", (
        "it names the colours"
    )


@pytest.mark.skipif(importlib.util.find_spec("axe_core_python") is None, reason="pip install axe-core-python")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_checker_finds_nothing(shown, scheme):
    browser, path = shown
    browser.look(400, scheme)
    browser.open(path)
    (package,) = importlib.util.find_spec("axe_core_python").submodule_search_locations
    browser.run((Path(package) / "axe.min.js").read_text(encoding="utf-8"))
    found = browser.run("axe.run().then(r => r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html)]))")
    assert found == []
