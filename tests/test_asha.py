"""Which settings are given up on the way: by hand, and in a race with a known winner."""

from __future__ import annotations

import numpy as np
import pytest

from rlobj.asha import left_behind, reached, rungs


def test_rungs_are_fractions_of_the_training():
    assert rungs(90, 3) == [10, 30]
    assert rungs(50, 2) == [12, 25]
    assert rungs(2, 3) == [], "too short a training has none"
    with pytest.raises(ValueError, match=r"early_stop is 1: expected a factor above 1; 3 lets the best third go on"):
        rungs(90, 1)


def test_the_best_third_goes_on():
    assert left_behind({"a": 0.9, "b": 0.5, "c": 0.1, "d": 0.4}, 3) == ["c", "d"]  # of four the best ⌈4/3⌉ = 2 go on
    assert left_behind({"a": 0.9, "b": 0.1}, 3) == [], "two are too few to tell a third"
    assert left_behind(dict.fromkeys("abcd", 0.0), 3) == [], "where all are equal, none is behind"


def test_the_best_is_seldom_given_up():
    """Four settings of true success 0.2, 0.4, 0.6, 0.8, judged by 40 episodes: the best must go on."""
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(200):
        behind = left_behind({str(rate): rng.binomial(40, rate) / 40 for rate in (0.2, 0.4, 0.6, 0.8)}, 4)
        lost += "0.8" in behind
        assert "0.2" in behind
    assert lost < 10


def test_what_a_training_had_reached():
    log = [{"step": step, "success": step / 10} for step in range(1, 7)] + [{"step": 6, "other": 1.0}]
    assert reached(log, 6, 3, ["success"]) == pytest.approx((0.4 + 0.5 + 0.6) / 3)
    assert reached(log, 7, 3, ["success"]) is None, "it has not come so far"
    assert reached(log, 6, 5, ["missing", "other"]) == 1.0
    assert reached(log, 6, 3, ["missing"]) is None
    assert reached([], 1, 0, ["success"]) is None
