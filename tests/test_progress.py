"""What a person sees while a stage runs."""

from __future__ import annotations

import re

import rlobj.progress as progress
from rlobj.progress import bar


def test_without_a_terminal_long_work_says_a_line_now_and_then_and_one_at_its_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with bar("supervised", 3) as each:
        for done in (1, 2, 3):
            each.show(f"ℓ {done}")
            each.advance(done)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s", "0 s", line.strip()) for line in lines] == [
        "supervised: 1 of 3 in 0 s, ℓ 1",
        "supervised: 2 of 3 in 0 s, ℓ 2",
        "supervised: 3 in 0 s, ℓ 3",
    ]


def test_optimiser_steps_are_called_so(capsys):
    with bar("supervised", 3, "steps") as each:
        each.advance(2)
    assert "supervised: 2 of 3 steps in" in capsys.readouterr().out


def test_work_that_was_ended_early_says_how_far_it_came(capsys):
    with bar("supervised", 3) as each:
        each.advance(2)
    assert "supervised: 2 of 3 in" in capsys.readouterr().out
