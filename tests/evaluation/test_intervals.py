"""Intervals of medians: order statistics against the binomial distribution, coverage by simulation, few rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from accel.evaluation.intervals import LEAST, half_width, median_interval, order_statistics


@pytest.mark.parametrize("n", [*range(1, 41), 101, 1000])
def test_order_statistics_are_those_of_the_binomial_distribution(n):
    place, coverage = order_statistics(n)
    assert coverage == pytest.approx(1 - 2 * stats.binom.cdf(place - 1, n, 0.5), abs=1e-9)
    wider = 1 - 2 * stats.binom.cdf(place, n, 0.5)
    if n < LEAST:
        assert (place, coverage < 0.95) == (1, True), "no interval of 95 %"
    else:
        assert coverage >= 0.95 > wider, "the narrowest that covers it"


def test_places_of_a_printed_table():
    """Lower place of the 95 % interval, as sign-test tables print it (Conover, Practical Nonparametric Statistics)."""
    assert [order_statistics(n)[0] for n in (6, 8, 9, 11, 12, 15, 20, 25)] == [1, 1, 2, 2, 3, 4, 6, 8]


@pytest.mark.parametrize("n", [6, 9, 12, 25])
def test_it_covers_the_median_of_a_skewed_distribution_as_often_as_it_says(n):
    """Log-normal samples with median 1: the share of intervals that hold it is the exact coverage, not just 95 %."""
    samples = np.random.default_rng(n).lognormal(0.0, 1.5, (2000, n))
    found = [median_interval(sample) for sample in samples]
    covered = np.mean([x["lo"] <= 1.0 <= x["hi"] for x in found])
    exact = order_statistics(n)[1]
    assert covered == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / len(found)))
    assert all(x["lo"] <= x["value"] <= x["hi"] for x in found)


def test_values_of_one_round_are_not_taken_for_independent():
    once = np.random.default_rng(2).normal(10, 1, 20)
    assert median_interval(np.stack([once] * 3, 1)) == median_interval(once)
    assert median_interval(np.concatenate([once] * 3))["lo"] > median_interval(once)["lo"], "which would be too narrow"
    pairs = np.random.default_rng(3).normal(10, 1, (20, 2))
    assert median_interval(pairs) == median_interval(pairs.mean(1)), "the median of two is their mean"


def test_simple_samples():
    assert median_interval(np.full(9, 2.5)) == {"value": 2.5, "lo": 2.5, "hi": 2.5}
    assert median_interval(np.arange(9.0)[::-1]) == {"value": 4.0, "lo": 1.0, "hi": 7.0}
    assert median_interval(np.array([1.0, 2, 3, 4, 5, 1e9]))["value"] == 3.5
    assert half_width(np.arange(1.0, 10)) == pytest.approx(3 / 5)


def test_below_six_rounds_it_says_how_little_the_range_covers():
    assert median_interval(np.array([3.0, 1, 2, 5, 4])) == {"value": 3, "lo": 1, "hi": 5, "coverage": 0.9375}
    assert median_interval(np.array([3.0]))["coverage"] == 0.0
