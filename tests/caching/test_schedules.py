"""Schedules of full steps: the papers' and the released code's own numbers, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from accel.caching.schedules import Explicit, NonUniform, Squares, Uniform
from accel.errors import ConfigError

# Steps of the released code, and of the signed reading of eq. 7: (T, interval, centre, power, reading).
KNOWN = {
    (50, 5, 10, 1.5, "released"): [0, 4, 7, 10, 14, 19, 24, 30, 36, 43],
    (50, 5, 10, 1.5, "signed"): [0, 5, 9, 10, 12, 16, 21, 27, 34, 41],
    (50, 5, 15, 1.4, "released"): [0, 5, 9, 13, 17, 21, 26, 31, 37, 43],
    (50, 5, 15, 1.4, "signed"): [0, 6, 11, 14, 15, 19, 24, 29, 35, 42],
    (250, 20, 120, 1.4, "released"): [0, 22, 42, 61, 80, 98, 115, 131, 149, 168, 187, 207, 228],
    (250, 20, 120, 1.4, "signed"): [0, 26, 50, 72, 91, 107, 119, 125, 138, 156, 176, 199, 223],
}


@pytest.mark.parametrize(("settings", "steps"), KNOWN.items())
def test_non_uniform_steps_are_those_of_the_paper_and_of_its_code(settings, steps):
    total, *schedule = settings
    assert sorted(NonUniform(*schedule).full(total)) == steps


@pytest.mark.parametrize("reading", ["signed", "released"])
@pytest.mark.parametrize(("total", "interval", "centre"), [(20, 3, 4), (50, 5, 20), (100, 10, 40), (10, 3, 4)])
def test_non_uniform_has_as_many_full_steps_as_uniform(total, interval, centre, reading):
    steps = NonUniform(interval, centre, 1.4, reading).full(total)
    assert len(steps) == math.ceil(total / interval) == len(Uniform(interval).full(total))
    assert min(steps) == 0
    assert max(steps) < total


def test_only_the_signed_reading_is_dense_about_the_centre():
    """The mean gap near the centre against that far from it."""

    def ratio(reading):
        steps = sorted(NonUniform(20, 120, 1.4, reading).full(250))
        gaps = [(abs((a + b) / 2 - 120), b - a) for a, b in pairwise(steps)]
        near, far = ([gap for d, gap in gaps if (d < 40) == side] for side in (True, False))
        return (sum(near) / len(near)) / (sum(far) / len(far))

    assert ratio("signed") < 0.75
    assert ratio("released") > 0.8


def test_a_schedule_without_solution_says_so():
    with pytest.raises(ConfigError, match=r"no 25 different steps of 50 for centre 25 and power 1\.6; use a larger"):
        NonUniform(2, 25, 1.6).full(50)


def test_squares_are_the_key_steps_of_the_code():
    assert sorted(Squares().full(50)) == [0, 2, 5, 9, 14, 20, 27, 35, 44]
    assert Squares().full(1) == {0}


def test_explicit_steps_are_kept():
    assert Explicit([0, 3, 4]).full(5) == {0, 3, 4}


REFUSED = {
    "first step cached": (lambda: Explicit([1, 3]), r"rising step numbers from 0, as the first step has nothing"),
    "none": (lambda: Explicit([]), "rising step numbers from 0"),
    "falling": (lambda: Explicit([0, 4, 2]), "rising step numbers from 0"),
    "twice": (lambda: Explicit([0, 2, 2]), "rising step numbers from 0"),
    "text": (lambda: Explicit(["a"]), "steps"),
    "beyond": (lambda: Explicit([0, 12]).full(10), r"has 12, but the sampler has 10 steps; allowed: 0\.\.9"),
    "interval": (lambda: Uniform(0), "interval is 0"),
    "centre": (lambda: NonUniform(3, 20).full(20), r"centre is 20, but the sampler has 20 steps; allowed: 1\.\.19"),
    "power": (lambda: NonUniform(3, 4, 0.5), "power is 0.5"),
    "reading": (lambda: NonUniform(3, 4, 1.4, "sigend"), "signed"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_schedules_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
