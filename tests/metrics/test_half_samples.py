"""Balanced half-samples: the splits, what they are for a mean, and the intervals of recall that they are there for."""

import numpy as np
import pytest
import torch

from accel.errors import ConfigError
from accel.metrics.half_samples import ORDERS, halves_estimate, order, splits, widened, widening
from accel.metrics.precision_recall import precision_recall, precision_recall_estimate
from accel.metrics.statistics import groups, mean_estimate


@pytest.mark.parametrize("count", ORDERS)
def test_splits_halve_the_groups_and_are_orthogonal(count):
    found = splits(count)
    assert found.shape == (count - 1, count)
    assert set(found.flatten()) == {-1, 1}
    assert (found.sum(1) == 0).all()
    assert np.array_equal(found @ found.T, count * np.eye(count - 1))


@pytest.mark.parametrize(
    ("n", "count", "period", "expected"),
    [(256, 20, 10, 20), (128, 20, 10, 12), (60, 20, 10, 4), (512, 10, 1, 8), (80, 20, 10, 8)],
)
def test_the_order_is_the_largest_that_the_groups_reach(n, count, period, expected):
    assert order(n, count, period) == expected


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match=r"found 3 groups of 39 samples, period 10, .* at least 4"):
        order(39, 20, 10)
    with pytest.raises(ConfigError, match="of 16 groups; allowed: 20, 12, 8, 4"):
        splits(16)


def of_halves(statistic, n: int, count: int, period: int = 1):
    """`halves_estimate` of a function of the kept samples' indices."""
    group = groups(n, count, period)
    halves = [[statistic(np.flatnonzero(np.isin(group, np.flatnonzero(s == side)))) for side in (1, -1)]
              for s in splits(count)]  # fmt: skip
    return halves_estimate(statistic(np.arange(n)), halves, n, period)


@pytest.mark.parametrize(("n", "count", "period"), [(60, 20, 1), (36, 12, 3), (47, 8, 1), (256, 20, 10), (67, 4, 5)])
def test_of_a_mean_they_are_the_jackknife(n, count, period):
    """With equal groups and with unequal ones: every delete-group value is the mean without the group."""
    x = np.random.default_rng(1).exponential(size=n)
    found = of_halves(lambda kept: x[kept].mean(), n, count, period)
    jackknifed = mean_estimate(x, count, period)
    assert found.replicates == pytest.approx(jackknifed.replicates, rel=1e-12)
    assert (found.se, found.corrected) == (pytest.approx(jackknifed.se, rel=1e-12), pytest.approx(x.mean(), rel=1e-12))
    assert found.design == jackknifed.design


def test_of_equal_groups_the_variance_is_a_quarter_of_the_mean_squared_difference():
    x = np.random.default_rng(2).exponential(size=60)
    found = of_halves(lambda kept: float(np.median(x[kept])), 60, 20)
    group = groups(60, 20)
    halves = [[np.median(x[np.isin(group, np.flatnonzero(s == side))]) for side in (1, -1)] for s in splits(20)]
    differences = [left - right for left, right in halves]
    assert found.se**2 == pytest.approx(np.mean(np.square(differences)) / 4, rel=1e-12)
    assert found.corrected == pytest.approx(found.value, rel=1e-12)


def test_a_bias_in_n_is_no_spread_where_halves_are_unequal():
    """T = 1 - 0.3 log(1000 / n) exactly: halves of 25 periods and a half differ in n, and that must not count."""
    found = of_halves(lambda kept: 1 + 0.3 * np.log(len(kept) / 1000), 256, 20, 10)
    assert found.se == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("block", [None, 31])
def test_recall_of_each_half_is_that_of_its_samples_alone(block, monkeypatch):
    if block:
        monkeypatch.setattr("accel.metrics.features.BLOCK_ELEMENTS", block * 90)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (83, 90))
    group = torch.from_numpy(groups(83, 8, 5))
    halves = [[precision_recall(x[torch.isin(group, torch.from_numpy(np.flatnonzero(s == side)))], y)[1]
               for side in (1, -1)] for s in splits(8)]  # fmt: skip
    recall = precision_recall_estimate(x, y, count=8, period=5)[1]
    assert recall == halves_estimate(precision_recall(x, y)[1], halves, 83, 5, 90)


def test_of_a_share_of_points_the_variance_falls_less_than_as_1_over_n():
    """V(n) / V(n / 2) of V(n) = 1 / n + 3 / M, doubled: 1 of a mean, 2 of what no longer falls."""
    for n, points in ((100, 50), (100, 10**7), (10**7, 100)):
        variance = [1 / m + 3 / points for m in (n, n / 2)]
        assert widening(n, points) ** 2 == pytest.approx(2 * variance[0] / variance[1], rel=1e-12)
    assert widening(100, 10**7) == pytest.approx(1, abs=1e-5)
    assert widening(10**7, 100) == pytest.approx(2**0.5, abs=1e-5)
    x = np.random.default_rng(3).exponential(size=60)
    narrow = of_halves(lambda kept: float(np.median(x[kept])), 60, 20)
    wide = widened(narrow, 120)
    assert (wide.value, wide.n, wide.corrected) == (narrow.value, 60, pytest.approx(narrow.corrected))
    assert wide.se == pytest.approx(narrow.se * widening(60, 120), rel=1e-12)


@pytest.mark.parametrize(("n", "points"), [(400, 60), (120, 400)])
def test_recalls_interval_is_as_wide_as_recall_spreads_whatever_the_reference(n, points):
    """More samples than points of the reference, and fewer; without widening the first is 0.6."""
    generator = torch.Generator().manual_seed(4)
    scale = torch.arange(1, 17, dtype=torch.float64) ** -0.5
    reference = scale * torch.randn(points, 16, generator=generator, dtype=torch.float64)
    drawn = (scale * torch.randn(n, 16, generator=generator, dtype=torch.float64) for _ in range(80))
    found = [precision_recall_estimate(x, reference)[1] for x in drawn]
    ratio = np.sqrt(np.mean([e.se**2 for e in found])) / np.std([e.value for e in found], ddof=1)
    assert 0.75 < ratio < 1.3


def test_recalls_interval_is_as_wide_as_recall_spreads():
    """Gaussian features, 60 seeds: sd over seeds against the mean se; the jackknife's se is twice as large.

    The relative error of an sd of 60 is 9 %, and se itself varies.
    """
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, 17, dtype=torch.float64) ** -0.5
    reference = scale * torch.randn(400, 16, generator=generator, dtype=torch.float64)
    found = [
        precision_recall_estimate(
            0.9 * scale * torch.randn(240, 16, generator=generator, dtype=torch.float64), reference
        )[1]
        for _ in range(60)
    ]
    ratio = np.sqrt(np.mean([e.se**2 for e in found])) / np.std([e.value for e in found], ddof=1)
    assert 0.75 < ratio < 1.35
    mean = np.mean([e.value for e in found])
    assert np.mean([e.lo <= mean <= e.hi for e in found]) >= 0.88
