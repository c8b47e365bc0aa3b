"""The MMD of class-stratified samples: against double loops, and unbiased where the plain estimator is not."""

import numpy as np
import pytest
import torch

from accel.errors import ConfigError
from accel.metrics.distributions import quality
from accel.metrics.features import Reference
from accel.metrics.kid import kid, kid_estimate
from accel.metrics.statistics import groups


def draws(n: int, classes: int = 3, d: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample i of class i mod K, each class about a place of its own."""
    own = torch.arange(n) % classes
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x + own[:, None], own


def by_definition(x, own, y, other, classes: int = 3) -> float:
    """Every pair by itself."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    def term(a, of_a, b, of_b, same):
        means = [
            np.mean([k(a[i], b[j]) for i in range(len(a)) for j in range(len(b))
                     if of_a[i] == c and of_b[j] == d and not (same and i == j)])
            for c in range(classes) for d in range(classes)
        ]  # fmt: skip
        return np.mean(means)

    return term(x, own, x, own, True) + term(y, other, y, other, True) - 2 * term(x, own, y, other, False)


@pytest.mark.parametrize("block", [None, 7])
def test_stratified_kid_and_its_replicates_are_double_loops(block, monkeypatch):
    if block:
        monkeypatch.setattr("accel.metrics.features.BLOCK_ELEMENTS", block * 19)
    x, own = draws(26, seed=1)
    y, other = draws(19, seed=2)
    shuffled = torch.randperm(19, generator=torch.Generator().manual_seed(0))
    reference, group = Reference(y[shuffled], other[shuffled]), torch.from_numpy(groups(26, 5, 3))
    estimate = kid_estimate(x, reference, 5, 3, own)
    assert kid(x, reference, own) == pytest.approx(by_definition(x, own, y, other), rel=1e-9)
    assert estimate.value == pytest.approx(by_definition(x, own, y, other), rel=1e-9)
    kept = [group != g for g in range(5)]
    assert estimate.replicates == pytest.approx([by_definition(x[m], own[m], y, other) for m in kept], rel=1e-9)
    assert estimate.period == 3


def test_it_is_unbiased_for_stratified_draws_and_the_plain_one_is_not():
    """One dimension, classes N(mean_c, sd): MMD^2 = sum_p C(3, p) (E x^p - E y^p)^2 of the balanced mixtures' moments.

    400 repeats; the references' classes are of unequal sizes. Equal distributions show the plain estimator's error.
    """
    generator, sd = torch.Generator().manual_seed(0), 0.4
    means = torch.tensor([-0.6, 0.0, 0.9], dtype=torch.float64)

    def moments(m):
        return [float(v) for v in (m.mean(), (m**2 + sd**2).mean(), (m**3 + 3 * m * sd**2).mean())]

    own, other = torch.arange(12) % 3, torch.tensor([0] * 4 + [1] * 5 + [2] * 3)
    for shift in (0.0, 0.3):
        stratified, plain = [], []
        for _ in range(400):
            x = means[own] + shift + sd * torch.randn(12, generator=generator, dtype=torch.float64)
            y = means[other] + sd * torch.randn(12, generator=generator, dtype=torch.float64)
            stratified.append(kid(x[:, None], Reference(y[:, None], other), own))
            balanced = means[own] + sd * torch.randn(12, generator=generator, dtype=torch.float64)
            plain.append(kid(x[:, None], balanced[:, None]))
        pairs = zip((3, 3, 1), moments(means + shift), moments(means), strict=True)
        truth = sum(c * (a - b) ** 2 for c, a, b in pairs)
        assert np.mean(stratified) == pytest.approx(truth, abs=4 * np.std(stratified) / 20)
        assert np.mean(plain) < truth - 8 * np.std(plain) / 20


def test_one_class_is_the_plain_estimator():
    x, y = draws(40, 1)[0], draws(30, 1, seed=5)[0]
    one = kid_estimate(x, Reference(y, torch.zeros(30, dtype=torch.long)), strata=[0] * 40)
    assert one.replicates == pytest.approx(kid_estimate(x, y).replicates, rel=1e-12)


def test_quality_takes_kid_by_class_and_the_rest_as_before():
    x, own = draws(120, seed=1)
    y, other = draws(90, seed=2)
    shuffled = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    reference = Reference(y[shuffled], other[shuffled])
    plain, by_class = quality(x, y, "a", period=3), quality(x, reference, "a", 20, 3, own)
    for key in ("fid_a", "precision", "recall"):
        assert by_class[key].replicates == pytest.approx(plain[key].replicates, rel=1e-9)
    assert by_class["kid_a"] == kid_estimate(x, reference, 20, 3, own)
    assert {e.period for e in by_class.values()} == {3}


@pytest.mark.parametrize(
    ("strata", "known", "message"),
    [
        (None, True, "the reference: found classes, but none of the features"),
        ([i % 3 for i in range(40)], False, "the features: found classes, but none of the reference"),
        ([i % 2 for i in range(40)], True, "the features are of 2 classes, the reference of 3"),
        ([0] * 39 + [1], True, "at least two samples of each"),
        ([i % 3 for i in range(39)], True, r"needed: whole numbers \(40,\)"),
        ([0.0] * 40, True, "needed: whole numbers"),
    ],
)
def test_classes_that_do_not_fit_are_refused(strata, known, message):
    y, other = draws(30)
    with pytest.raises(ConfigError, match=message):
        kid_estimate(draws(40)[0], Reference(y, other if known else None), strata=strata)


def test_a_group_that_holds_a_class_alone_is_refused():
    x, own = draws(40)
    own = torch.where(torch.arange(40) < 3, 0, 1 + torch.arange(40) % 2)  # class 0 is in the first two groups alone
    with pytest.raises(ConfigError, match="a class of features without one jackknife group: found 1 samples"):
        kid_estimate(x, Reference(*draws(30)), strata=own)
