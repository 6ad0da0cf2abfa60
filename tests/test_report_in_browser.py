"""Reports in a real browser, without network: that they draw, that their controls work, and that all can read them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from browser import CHROMIUM, page
from small import COLOUR_NAMES, TEXTS, small_policy
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


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """What a policy looks at, in a prompt with a word that no phone is wide enough for."""
    pytest.importorskip("captum", reason="needs the extra 'explain'")
    from rlobj.explaining import explain
    from rlobj.explanation_page import write_explanation_page
    from rlobj.subjects import Subject
    from rlobj.try_reward import as_text

    folder = tmp_path_factory.mktemp("explained")
    subject = Subject(small_policy(folder / "policy"))
    texts = [as_text("the blue boat", f"{TEXTS[0]} {'w' * 90}"), as_text(TEXTS[1])]
    found = explain(subject, texts, steps=4, orders=2, by_word=True)
    return write_explanation_page(folder / "explanation.html", found, "runs/a-run-of-a-long-name/policies/lambda=0.3")


@pytest.fixture(scope="module")
def probed_page(tmp_path_factory):
    """What is found of a classifier that has learned nothing, on rows of all its labels."""
    from rlobj.perturbations import perturbations, read_exchanges
    from rlobj.policies import make_encoder, make_encoder_tokenizer, save_policy
    from rlobj.probe_report import write_probe_page
    from rlobj.probed import Labels, Row
    from rlobj.probing import probe
    from rlobj.subjects import Subject

    folder = tmp_path_factory.mktemp("probed")
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=32)
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32, "seed": 0}
    save_policy(make_encoder(tokenizer, COLOUR_NAMES, **size), tokenizer, folder / "model")
    said = [f"{TEXTS[i % 3]} and he is {'w' * 60}" for i in range(24)]
    rows = [Row([[{"role": "user", "content": text}]], COLOUR_NAMES[i % 3]) for i, text in enumerate(said)]
    found = probe(Labels(Subject(folder / "model"), rows, None), perturbations(), read_exchanges())
    return write_probe_page(folder / "probe.html", found, "runs/a-run-of-a-long-name/model", "its own test")


def looks_right(browser, path, width, scheme):
    """Open a page, and all that is folded in it."""
    browser.look(width, scheme)
    browser.requests.clear()
    browser.open(path)
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert browser.errors == []
    assert browser.requests == [path.resolve().as_uri()] * len(browser.requests), "nothing else is asked for"
    # what is wider scrolls in its own frame: the page does not
    assert browser.run("document.documentElement.scrollWidth") <= width
    ink, paper = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert _brightness(ink) < _brightness(paper) if scheme == "light" else _brightness(ink) > _brightness(paper)
    return ink


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_draws_and_fits(shown, width, scheme):
    browser, path = shown
    ink = looks_right(browser, path, width, scheme)
    drawn = browser.run("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)")
    assert len(drawn) == 3 and all(200 < each <= width for each in drawn)
    text = browser.run("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert text == ink, "pictures are in the page's own colours"


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_explained_words_are_coloured(shown, explained, width, scheme):
    browser, _ = shown
    looks_right(browser, explained, width, scheme)
    words = browser.run(
        "[...document.querySelectorAll('.w.for, .w.against')].map(w => [w.textContent, w.title, w.className,"
        " getComputedStyle(w).backgroundColor, getComputedStyle(w).textDecorationLine])"
    )
    assert len(words) > 20
    for text, title, kinds, colour, line in words[2:]:  # behind the legend
        assert float(title) > 0 if "for" in kinds else float(title) < 0, f"{text} says what it is owed"
        assert not colour.endswith(", 0)") and line == ("none" if "for" in kinds else "underline")
    assert browser.run("[...document.querySelectorAll('td.names')].every(e => e.textContent.startsWith('“'))")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tables_of_a_probe_can_be_read(shown, probed_page, width, scheme):
    browser, _ = shown
    looks_right(browser, probed_page, width, scheme)
    named = browser.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert named[:3] == ["Written otherwise", "Parts of the data", "Names, pronouns and other words exchanged"]
    widths = browser.run("[...document.querySelectorAll('th[scope=row]')].map(h => h.getBoundingClientRect().width)")
    assert len(widths) > 10 and max(widths) < width / 2, "figures find a place beside the names of rows"


def test_what_is_folded_in_an_explanation_opens(shown, explained):
    browser, _ = shown
    browser.look(400)
    browser.open(explained)
    table = "[...document.querySelectorAll('summary')].find(s => s.textContent == 'All words')"
    is_seen = f"{table}.parentElement.querySelector('table').checkVisibility()"
    assert not browser.run(is_seen)
    browser.click(table)
    assert browser.run(is_seen)


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
@pytest.mark.parametrize("kind", ["report", "explained", "probed_page"])
def test_an_accessibility_checker_finds_nothing(shown, kind, scheme, request):
    browser, path = shown
    looks_right(browser, path if kind == "report" else request.getfixturevalue(kind), 400, scheme)
    (package,) = importlib.util.find_spec("axe_core_python").submodule_search_locations
    browser.run((Path(package) / "axe.min.js").read_text(encoding="utf-8"))
    found = browser.run("axe.run().then(r => r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html)]))")
    assert found == []
