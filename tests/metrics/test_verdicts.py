"""The rule of verdicts, exhaustively: every order of an interval's ends, 0 and the margin; marks by definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import t as student_t

from accel.errors import ConfigError
from accel.metrics.statistics import beaten_by, mean_estimate, paired
from accel.metrics.verdicts import (
    NON_INFERIOR,
    WORDS,
    Margins,
    benjamini_hochberg,
    ceil_to,
    holm,
    needed_n,
    p_value,
    verdict,
    words,
)

ENDS = [-3, -2, -1, 0, 1, 2, 3]  # the margin is 2


@pytest.mark.parametrize(("lo", "hi"), [(lo, hi) for lo, hi in product(ENDS, ENDS) if lo <= hi])
def test_every_interval_has_the_words_of_the_rule(lo, hi):
    """Higher is better here; the words say which of the four statements hold, and nothing more."""
    word = words(lo, hi, 2, higher=True)
    assert word in WORDS
    assert word.startswith("better") == (lo > 0)
    assert word.startswith("worse") == (hi < 0)
    assert (word in NON_INFERIOR) == (lo >= -2)
    equivalent = lo >= -2 and hi <= 2
    assert ("equivalent" in word or word == "worse, non-inferior") == equivalent
    assert (word == "undecided") == (lo < -2 and hi >= 0)
    assert words(-hi, -lo, 2) == word  # lower is better


def test_every_word_occurs():
    found = {words(lo, hi, 2, True) for lo, hi in product(ENDS, ENDS) if lo <= hi}
    assert found == set(WORDS)


@pytest.mark.parametrize(("lo", "hi", "word"), [(1, 2, "better"), (-2, -1, "worse"), (-1, 1, "undecided")])
def test_without_a_margin_nothing_is_non_inferior_but_what_is_better(lo, hi, word):
    assert words(lo, hi, None, higher=True) == word


def test_an_identical_result_is_equivalent_at_a_margin_of_zero():
    assert words(0, 0, 0) == "equivalent"


def test_the_old_tie_is_undecided():
    """The recipe that was called 14.2 times as fast at a tie: +0.28 [-0.12, +0.68] on a FID of 1.0."""
    margin = Margins(fid_least=0.1).of("fid_digits", 1.0)
    assert margin == 0.1
    assert words(-0.12, 0.68, margin) == "undecided"
    assert words(0.28, 0.52, 0.1) == "worse"  # and what 2,048 samples say of it: +0.40 [0.28, 0.52] on 0.35


def test_margins_of_values():
    margins = Margins(fid_least=0.1)
    assert margins.of("fid_digits", 0.35) == 0.1
    assert margins.of("fid_digits", 5.0) == 0.5
    assert Margins().of("fid_shapes", 0.14) == pytest.approx(0.014)
    assert (margins.of("adherence", 0.9), margins.of("clip_score", 76), margins.of("recall", 0.9)) == (0.01, 0.5, 0.02)
    assert margins.of("distance", 0.1) is None
    assert margins.of("to_dict", 0.1) is None
    values = ["recall", "precision", "distance", "fid_digits", "accuracy", "kid_digits"]
    assert margins.gates(values) == ["fid_digits", "accuracy", "recall"]
    assert Margins(recall=None).gates(values) == ["fid_digits", "accuracy"]
    assert Margins.from_dict(margins.to_dict()) == margins
    assert Margins.from_dict(None) == Margins()
    for bad in (-0.1, "much", float("nan"), True):
        with pytest.raises(ConfigError, match=r"evaluation\.margins\.recall is"):
            Margins(recall=bad)
    with pytest.raises(ConfigError, match="allowed: numbers for accuracy, adherence"):
        Margins.from_dict({"speed": 1})


def sample(seed, shift=0.0, n=200):
    return mean_estimate(np.random.default_rng(seed).standard_normal(n) + shift)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.5])
def test_p_is_below_5_per_cent_where_the_interval_excludes_0(shift):
    for seed in range(20):
        delta = sample(seed, shift)
        assert (p_value(delta) < 0.05) == delta.apart
        assert verdict(delta, higher=True).startswith("better") == (delta.apart and delta.value > 0)


def test_p_without_spread():
    own = sample(0)
    assert p_value(paired(own, own)) == 1
    assert p_value(mean_estimate(np.ones(40))) == 0


def test_holm_and_benjamini_hochberg_by_their_definitions():
    p = [0.001, 0.012, 0.014, 0.04, 0.2]
    assert holm(p) == [True, True, True, False, False]  # 0.01, 0.0125, 0.0167, 0.025
    assert benjamini_hochberg(p) == [True, True, True, True, False]  # 0.01, 0.02, 0.03, 0.04, 0.05
    assert benjamini_hochberg([0.04, 0.045, 0.05]) == [True] * 3  # step-up: the last one carries the others
    assert holm([0.04, 0.045, 0.05]) == [False] * 3
    assert holm([]) == benjamini_hochberg([]) == []


def test_what_survives_holm_survives_benjamini_hochberg_whatever_the_order():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.beta(0.4, 2, rng.integers(1, 30))
        first, second = np.array(holm(p)), np.array(benjamini_hochberg(p))
        assert (first <= second).all()
        shuffled = rng.permutation(len(p))
        assert (np.array(holm(p[shuffled])) == first[shuffled]).all()
        assert (np.array(benjamini_hochberg(p[shuffled])) == second[shuffled]).all()


def test_holm_keeps_its_level():
    """No difference anywhere: a false alarm in at most 5 % of 2,000 tables."""
    rng = np.random.default_rng(1)
    assert np.mean([any(holm(rng.uniform(size=20))) for _ in range(2000)]) < 0.065


def test_beaten_by_is_paired_of_every_pair():
    estimates = [sample(seed, shift, 150) for seed, shift in enumerate(np.linspace(0, 1, 12))]
    for higher in (False, True):
        counts = beaten_by(estimates, higher)
        for own, count in zip(estimates, counts, strict=True):
            gaps = [paired(other, own) for other in estimates]
            assert count == sum(gap.lo > 0 if higher else gap.hi < 0 for gap in gaps)
    assert beaten_by([]) == []
    with pytest.raises(ConfigError, match="cannot be paired"):
        beaten_by([sample(0), sample(1, n=100)])


def test_needed_n_has_its_power():
    """At the N that it names, what loses nothing is non-inferior in 80 % of the runs."""
    margin, n = 0.2, 100
    se = 1 / np.sqrt(n)
    found = ceil_to(needed_n(se, n, margin), 20)
    rng = np.random.default_rng(2)
    inside = [mean_estimate(rng.standard_normal(found)).lo >= -margin for _ in range(400)]
    assert np.mean(inside) == pytest.approx(0.8, abs=0.06)
    assert needed_n(0.0, n, margin) == 0
    assert needed_n(se, n, 0.0) == float("inf")
    factor = student_t.ppf(0.975, 19) + student_t.ppf(0.8, 19)
    assert needed_n(0.1, 100, factor * 0.1) == pytest.approx(100)
