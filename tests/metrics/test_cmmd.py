"""CMMD against its definition, closed forms and the behaviour that tells it from the biased estimator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import accel.metrics.features as module
from accel.errors import ConfigError
from accel.evaluation.statistics import groups
from accel.metrics.cmmd import cmmd, cmmd_estimate
from accel.metrics.distributions import quality
from accel.metrics.features import Reference


def gaussian(n: int, d: int = 12, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    """Jayasumana et al. 2024: every pair by itself."""
    x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))

    def k(a, b):
        return math.exp(-float((a - b).square().sum()) / (2 * 10**2))

    def pairs(z):
        return np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])

    return float(1000 * (pairs(x) + pairs(y) - 2 * np.mean([k(a, b) for a in x for b in y])))


@pytest.mark.parametrize("block", [None, 7])
def test_cmmd_and_its_replicates_are_the_definition(block, monkeypatch):
    if block:
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", block * 30)
    x, y = gaussian(25, seed=1, shift=0.3), gaussian(30, seed=2)
    group = torch.from_numpy(groups(25, 5))
    estimate = cmmd_estimate(x, y, count=5)
    assert cmmd(x, y) == pytest.approx(by_definition(x, y), rel=1e-9)
    assert estimate.value == pytest.approx(by_definition(x, y), rel=1e-9)
    assert estimate.replicates == pytest.approx([by_definition(x[group != g], y) for g in range(5)], rel=1e-9)


def test_two_points_have_a_closed_form():
    """All images alike on either side, at right angles: k = 1 within, exp(-2 / 200) across."""
    x, y = torch.tensor([[3.0, 0.0]]).expand(40, 2), torch.tensor([[0.0, 5.0]]).expand(50, 2)
    assert cmmd(x, y) == pytest.approx(2000 * (1 - math.exp(-0.01)), rel=1e-10)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_only_directions_count():
    x, y = gaussian(60, seed=1, shift=0.3), gaussian(90, seed=2)
    lengths = torch.linspace(0.1, 10, 60, dtype=torch.float64)[:, None]
    assert cmmd(lengths * x, 7 * y) == pytest.approx(cmmd(x, y), rel=1e-9)
    assert cmmd((x / x.norm(dim=1, keepdim=True)).half(), y) == pytest.approx(cmmd(x, y), rel=1e-3)


def test_equal_distributions_average_to_zero_and_fall_below():
    """400 repeats: the mean within 4 of its standard errors of 0, where the estimator with diagonals is not."""
    values, biased = [], []
    for i in range(400):
        x, y = gaussian(12, seed=2 * i + 1000), gaussian(20, seed=2 * i + 1001)
        values.append(cmmd(x, y))
        everything = [z / z.norm(dim=1, keepdim=True) for z in (x, y)]
        means = [torch.cdist(a, b).square().div(-200).exp().mean() for a in everything for b in everything]
        biased.append(float(1000 * (means[0] - means[1] - means[2] + means[3])))
    error = np.std(values) / 20
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(biased) > 12 * error
    assert 0.2 < np.mean(np.array(values) < 0) < 0.8


def test_the_interval_holds_zero_for_equal_distributions_only():
    estimate = cmmd_estimate(gaussian(500, seed=1), gaussian(500, seed=2))
    assert abs(estimate.value) < 3 * estimate.se
    assert cmmd_estimate(gaussian(500, seed=1, shift=0.3), gaussian(500, seed=2)).lo > 0


def test_only_the_space_of_clip_has_a_cmmd():
    x, y = gaussian(60, seed=1), gaussian(90, seed=2)
    scores = quality(x, Reference(y), "clip")
    assert list(scores) == ["fid_clip", "kid_clip", "precision", "recall", "cmmd"]
    assert scores["cmmd"] == cmmd_estimate(x, y)
    assert "cmmd" not in quality(x, y, "inception")


def test_an_embedding_of_zero_is_refused():
    x = gaussian(60, seed=1)
    x[[3, 9]] = 0
    with pytest.raises(ConfigError, match="the features: 2 of 60 are 0, the first is sample 3"):
        cmmd(x, gaussian(60))
    with pytest.raises(ConfigError, match="the reference: 2 of 60 are 0"):
        cmmd(gaussian(60), x)
    with pytest.raises(ConfigError, match="found 5 dimensions, the reference has 12"):
        cmmd_estimate(gaussian(60, d=5), x)
