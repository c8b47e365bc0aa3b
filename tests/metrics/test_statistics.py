"""The jackknife against closed forms, and the coverage of its intervals."""

import json
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from accel.errors import ConfigError
from accel.metrics.statistics import (
    Estimate,
    beaten_by,
    group_sizes,
    groups,
    jackknife,
    mean_estimate,
    paired,
    usable_period,
)


def sample(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=n)


@pytest.mark.parametrize(("n", "count"), [(20, 20), (512, 20), (59, 20), (7, 3), (40, 2)])
def test_groups_are_contiguous_complete_and_near_equal(n, count):
    group = groups(n, count)
    sizes = np.bincount(group, minlength=count)
    assert group.shape == (n,)
    assert np.issubdtype(group.dtype, np.integer)
    assert (np.diff(group) >= 0).all()
    assert len(sizes) == count
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("n", "count", "period"), [(256, 20, 10), (512, 20, 10), (60, 20, 10), (47, 4, 3), (12, 20, 1)]
)
def test_groups_never_cut_a_period_and_hold_as_equal_numbers_of_them_as_they_can(n, count, period):
    group, blocks = groups(n, count, period), n // period
    sizes = group_sizes(n, count, period)
    assert (np.diff(group) >= 0).all()
    assert {i % period for i in range(1, n) if group[i] != group[i - 1]} == {0}
    assert len(sizes) == group[-1] + 1 == min(count, blocks)
    periods = sizes // period  # the partial last period is in the last group
    assert periods.max() - periods.min() <= 1
    assert sizes.sum() == n
    assert (sizes[:-1] % period == 0).all()


@pytest.mark.parametrize(
    ("n", "count", "period"),
    [
        (1, 20, 1),
        (0, 20, 1),
        (20, 1, 1),
        (20, 0, 1),
        (20.0, 20, 1),
        (20, 2.5, 1),
        (True, 2, 1),
        (19, 20, 10),
        (40, 20, 0),
    ],
)
def test_groups_refuses_what_it_cannot_split(n, count, period):
    with pytest.raises(ConfigError):
        groups(n, count, period)


def test_too_few_samples_says_found_and_needed():
    with pytest.raises(ConfigError, match=r"found 12 samples, 1 whole periods of 10, .* needed: at least 20"):
        mean_estimate(sample(12), period=10)


def test_a_period_is_used_where_there_are_enough_of_them():
    assert [usable_period(n, 10) for n in (59, 60, 512)] == [1, 10, 10]
    assert usable_period(512, 1000) == 1


def test_a_stratified_mean_spreads_as_it_is_drawn_again():
    """Classes i mod 10 with far means, noise of sd 1 within: the sd of the mean is 1 / sqrt(n) whatever the classes do.

    Groups of whole periods say so on average (300 repeats; 25 periods in 20 groups); those that cut periods take the
    classes for spread.
    """
    rng, n = np.random.default_rng(0), 250
    far = 3 * np.resize(np.arange(10.0), n)
    squared = {p: [mean_estimate(far + rng.normal(size=n), period=p).se ** 2 for _ in range(300)] for p in (1, 10)}
    assert np.mean(squared[10]) * n == pytest.approx(1, abs=0.08)
    assert np.mean(squared[1]) * n > 2


def test_statistic_sees_each_sample_in_all_but_one_replicate():
    seen = []
    jackknife(lambda kept: float(seen.append(kept) or 0), 47, 5)
    assert np.array_equal(seen[0], np.arange(47))
    assert len(seen) == 6
    for g, kept in enumerate(seen[1:]):
        assert np.array_equal(kept, np.flatnonzero(groups(47, 5) != g))


def test_single_sample_groups_give_the_classical_standard_error_and_t_interval():
    x = sample(37)
    estimate = mean_estimate(x, count=37)
    classical = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert estimate.se == pytest.approx(x.std(ddof=1) / sqrt(37), rel=1e-12)
    assert (estimate.lo, estimate.hi) == pytest.approx((classical.low, classical.high), rel=1e-12)


def test_equal_groups_of_a_mean_give_the_t_interval_of_the_group_means():
    x = sample(60)
    classical = stats.ttest_1samp(x.reshape(20, 3).mean(1), 0).confidence_interval(0.95)
    estimate = mean_estimate(x)
    assert (estimate.lo, estimate.hi) == pytest.approx((classical.low, classical.high), rel=1e-12)
    assert estimate.value == pytest.approx(x.mean(), rel=1e-14)


def test_single_sample_groups_correct_the_plug_in_variance_to_the_unbiased_one():
    x = sample(29)
    estimate = jackknife(lambda kept: float(x[kept].var()), 29, 29)
    assert estimate.value == pytest.approx(x.var(), rel=1e-14)
    assert estimate.corrected == pytest.approx(x.var(ddof=1), rel=1e-10)


@pytest.mark.parametrize("n", [40, 47, 59])
def test_bias_of_order_1_over_n_is_removed_for_unequal_groups_too(n):
    estimate = jackknife(lambda kept: 3.0 + 7.0 / len(kept), n)
    # T_(g) has bias 7 / (n - m): what is left is second order, 7 (G / n - sum_g 1 / n) = 0 exactly.
    assert estimate.corrected == pytest.approx(3.0, abs=1e-12)
    assert estimate.value == 3.0 + 7.0 / n


def test_a_mean_has_no_bias_to_correct_whatever_the_group_sizes():
    x = sample(53)
    estimate = mean_estimate(x)
    assert estimate.corrected == pytest.approx(x.mean(), rel=1e-13)
    assert estimate.corrected_interval == pytest.approx((estimate.lo, estimate.hi), rel=1e-12)


def test_unequal_groups_of_a_mean_give_the_weighted_spread_of_the_group_means():
    x, sizes = sample(11), np.array([4, 4, 3])
    means = np.array([x[:4].mean(), x[4:8].mean(), x[8:].mean()])
    squared = np.mean((means - x.mean()) ** 2 / (11 / sizes - 1))  # Busing et al. 1999, with pseudo-values = means
    assert mean_estimate(x, 3).se == pytest.approx(squared**0.5, rel=1e-12)


def test_interval_is_centred_on_the_value_and_the_corrected_one_on_the_corrected_value():
    x = sample(200)
    estimate = jackknife(lambda kept: float(x[kept].mean() ** 2 + 50 / len(kept)), 200)
    low, high = estimate.corrected_interval
    assert (estimate.lo + estimate.hi) / 2 == pytest.approx(estimate.value)
    assert (low + high) / 2 == pytest.approx(estimate.corrected)
    assert high - low == pytest.approx(estimate.hi - estimate.lo)
    assert estimate.corrected < estimate.value - 0.2


def test_a_constant_has_a_zero_interval():
    estimate = mean_estimate(np.full(45, 0.1))
    assert estimate.se == pytest.approx(0, abs=1e-16)
    assert estimate.lo <= estimate.value <= estimate.hi


def test_paired_difference_of_means_is_the_mean_of_the_differences():
    a, b = sample(50, 1), sample(50, 2)
    difference, direct = paired(mean_estimate(a), mean_estimate(b)), mean_estimate(a - b)
    for name in ("value", "lo", "hi", "se", "corrected"):
        assert getattr(difference, name) == pytest.approx(getattr(direct, name), abs=1e-13)
    assert difference.replicates == pytest.approx(direct.replicates, abs=1e-13)
    assert difference.n == 50


def test_paired_is_antisymmetric_and_exactly_zero_against_itself():
    a, b = mean_estimate(sample(50, 1)), mean_estimate(sample(50, 2))
    forth, back = paired(a, b), paired(b, a)
    assert (forth.value, forth.lo, forth.hi) == (-back.value, -back.hi, -back.lo)
    same = paired(a, a)
    assert (same.value, same.lo, same.hi, same.apart) == (0, 0, 0, False)


def test_apart_is_whether_the_interval_excludes_zero():
    noise = sample(100) - sample(100).mean()
    assert not mean_estimate(noise).apart
    assert mean_estimate(noise + 1).apart
    assert mean_estimate(noise - 1).apart


def test_common_seeds_narrow_the_difference():
    shared, own = sample(400, 1), sample(400, 2)
    a, b = mean_estimate(shared), mean_estimate(shared + 0.1 * own)
    unpaired = sqrt(a.se**2 + b.se**2)
    assert paired(a, b).se < 0.25 * unpaired
    assert paired(b, a).apart
    assert paired(b, a).value < 1.96 * unpaired  # told apart only because it is paired


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (mean_estimate(sample(51)), "n = 50"),
        (mean_estimate(sample(50), 10), "groups = 20"),
        (mean_estimate(sample(50), 20, 2), "period = 1"),
    ],
)
def test_paired_refuses_different_n_groups_or_period(other, word):
    with pytest.raises(ConfigError, match=word):
        paired(mean_estimate(sample(50)), other)
    with pytest.raises(ConfigError, match="cannot be paired"):
        beaten_by([mean_estimate(sample(50)), other])


def test_whole_periods_survive_pairing_and_storage():
    a, b = mean_estimate(sample(57, 1), period=5), mean_estimate(sample(57, 2) + 0.1, period=5)
    difference, direct = paired(a, b), mean_estimate(sample(57, 1) - sample(57, 2) - 0.1, period=5)
    assert (difference.se, difference.period) == (pytest.approx(direct.se, rel=1e-12), 5)
    assert Estimate.from_dict(a.to_dict()) == a
    assert beaten_by([a, b]) == [int(difference.lo > 0), int(difference.hi < 0)]
    old = {k: v for k, v in mean_estimate(sample(50)).to_dict().items() if k != "period"}
    assert Estimate.from_dict(old) == mean_estimate(sample(50))
    with pytest.raises(ConfigError, match="found 20 delete-group values of 57 samples, period 5; needed: 11"):
        Estimate.from_replicates(0.0, [0.0] * 20, 57, 5)


def test_json_round_trip_is_exact_and_plain():
    estimate = jackknife(lambda kept: np.float64(sample(64)[kept].std()), 64)
    data = estimate.to_dict()
    assert Estimate.from_dict(json.loads(json.dumps(data))) == estimate
    assert {type(v) for v in data.values()} == {float, int, list}
    assert {type(v) for v in data["replicates"]} == {float}


@pytest.mark.parametrize("change", [{"value": None}, {"extra": 1.0}])
def test_from_dict_refuses_missing_and_unknown_keys(change):
    data = mean_estimate(sample(40)).to_dict()
    data = {k: v for k, v in {**data, **change}.items() if v is not None}
    with pytest.raises(ConfigError, match="needed: exactly"):
        Estimate.from_dict(data)


def test_mean_estimate_names_the_first_non_finite_sample():
    x = sample(40)
    x[[17, 30]] = np.nan, np.inf
    with pytest.raises(ConfigError, match="2 of 40 values are not finite, the first at sample 17"):
        mean_estimate(x)


def test_mean_estimate_refuses_a_matrix():
    with pytest.raises(ConfigError, match=r"shape \(40, 1\)"):
        mean_estimate(sample(40)[:, None])


def test_a_non_finite_statistic_is_refused_with_the_group_that_makes_it():
    with pytest.raises(ConfigError, match=r"not finite without groups \[3\]"):
        jackknife(lambda kept: np.nan if 6 not in kept else 1.0, 40)


@pytest.mark.parametrize("n", [40, 53])
def test_coverage_of_a_mean_is_95_percent(n):
    """2000 repeats: the binomial sd is 0.5 %, 3 sd are 1.5 %; at equal groups the interval is exact."""
    rng = np.random.default_rng(3)
    intervals = [mean_estimate(rng.normal(size=n)) for _ in range(2000)]
    assert np.mean([e.lo <= 0 <= e.hi for e in intervals]) == pytest.approx(0.95, abs=0.015)
