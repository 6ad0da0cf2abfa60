"""Intervals against values by hand, and against how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlobj.intervals import bootstrap_mean, mean_interval_over_seeds, paired_difference, wilson

Z = 1.959963984540054  # 97.5% quantile of the normal distribution


@pytest.mark.parametrize(("k", "n"), [(8, 10), (0, 20), (20, 20), (1, 1), (37, 200)])
def test_wilson_is_its_formula(k, n):
    p, z2 = k / n, Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    assert wilson(k, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_wilson_by_hand():
    # 8 of 10: centre (0.8 + 0.19207) / 1.38415 = 0.71674; half 1.95996 / 1.38415 * sqrt(0.016 + 0.0096036) = 0.22658
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)


def test_a_paired_difference_by_hand():
    # none of 10: both shares 1/12, half 1.95996 * sqrt((1/6) / 12) = 0.23098
    assert paired_difference(0, 0, 10) == pytest.approx((0, -0.23098, 0.23098), abs=1e-5)
    # 1 and 4 of 20: 2/22 and 5/22, d = -3/22; half 1.95996 * sqrt((7/22 - 9/484) / 22) = 0.22876
    assert paired_difference(1, 4, 20) == pytest.approx((-0.15, -0.36512, 0.09240), abs=1e-4)
    assert paired_difference(0, 3, 3)[:2] == (-1, -1)
    with pytest.raises(ValueError, match="3 gained and 3 lost of 5"):
        paired_difference(3, 3, 5)


@pytest.mark.parametrize(("gains", "loses"), [(0.01, 0.01), (0.05, 0.02), (0.2, 0.05)])
def test_a_paired_difference_is_held(gains, loses):
    """The exact probability that the interval of 40 rows holds the truth, by enumeration."""
    n, held = 40, 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            _, low, high = paired_difference(gained, lost, n)
            if low <= gains - loses <= high:
                ways = math.comb(n, gained) * math.comb(n - gained, lost)
                held += ways * gains**gained * loses**lost * (1 - gains - loses) ** (n - gained - lost)
    assert held > 0.94


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_of_what_is_no_proportion(k, n):
    with pytest.raises(ValueError, match=f"{k} successes of {n}"):
        wilson(k, n)


def held(interval, draw, truth, draws=300):
    """Share of draws whose interval holds the truth."""
    found = []
    for seed in range(draws):
        mean, low, high = interval(draw(np.random.default_rng(seed)))
        assert low <= mean <= high
        found.append(low <= truth <= high)
    return np.mean(found)


def test_bootstrap_holds_the_mean_of_a_skewed_return_about_as_often_as_it_says():
    share = held(bootstrap_mean, lambda rng: rng.exponential(2.0, 60), 2.0, draws=150)
    assert 0.85 < share < 0.99


def test_bootstrap_is_near_the_normal_interval_of_many_values():
    values = np.random.default_rng(0).normal(3.0, 1.0, 1000)
    half = Z * values.std(ddof=1) / math.sqrt(1000)
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.15 * half)


def test_t_interval_of_few_seeds_holds_the_mean_as_often_as_it_says():
    share = held(mean_interval_over_seeds, lambda rng: rng.normal(-1.0, 3.0, 3), -1.0)
    assert 0.91 < share < 0.985  # the normal quantile in place of Student's would hold it in 0.81


def test_t_interval_by_hand():
    # mean 2, standard error 1 / sqrt(3), t quantile of 2 degrees of freedom 4.30265
    assert mean_interval_over_seeds([1, 2, 3]) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)


@pytest.mark.parametrize("interval", [bootstrap_mean, mean_interval_over_seeds])
def test_little_or_constant_data(interval):
    assert all(math.isnan(x) for x in interval([]))
    mean, low, high = interval([0.3])
    assert mean == 0.3 and math.isnan(low) and math.isnan(high), "one value has no spread to tell of"
    assert interval([0.25] * 5) == (0.25, 0.25, 0.25)
    assert interval([1.0, 2.0, 4.0]) == interval([1.0, 2.0, 4.0]), "the same for the same values"


@pytest.mark.parametrize("interval", [bootstrap_mean, mean_interval_over_seeds])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_have_no_interval(interval, bad):
    mean, low, high = interval([1.0, bad, 2.0])
    assert not math.isfinite(mean) and math.isnan(low) and math.isnan(high)
