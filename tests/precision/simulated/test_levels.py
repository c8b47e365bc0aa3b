"""Uniform quantisers: levels, closed forms, gradients and how ranges are chosen."""

from __future__ import annotations

import pytest
import torch

from accel.errors import ConfigError
from accel.precision.simulated.levels import Levels, Range

X = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))


def column(limits: torch.Tensor) -> torch.Tensor:
    return limits[:, None]


def nearest(rows: torch.Tensor, levels: Levels, limits) -> torch.Tensor:
    scale, zero = levels.parameters(*limits)
    return levels.nearest(rows, column(scale), column(zero))


@pytest.mark.parametrize(
    ("bits", "symmetric", "low", "high"), [(8, True, -127, 127), (8, False, 0, 255), (2, True, -1, 1)]
)
def test_levels_are_the_integers_of_their_bits(bits, symmetric, low, high):
    levels = Levels(bits, symmetric)
    assert (levels.low, levels.high) == (low, high)
    scale, zero = levels.parameters(torch.tensor([-3.0]), torch.tensor([2.0]))
    found = levels.integers(torch.linspace(-9, 9, 5001), scale, zero).unique()
    assert found.tolist() == list(range(low, high + 1))


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_is_a_level_and_errors_are_half_a_scale(symmetric):
    levels = Levels(5, symmetric)
    limits = torch.aminmax(X, dim=1)
    scale, _ = levels.parameters(*limits)
    found = nearest(X, levels, limits)
    assert ((found - X).abs().amax(1) <= scale / 2 * 1.0001).all()
    assert (nearest(torch.zeros(3, 1), levels, limits) == 0).all()


def test_gradients_are_those_of_lsq():
    """Straight through for x within the range, none beyond; for the scale round(x/s) - x/s, or the end level."""
    levels = Levels(3, symmetric=True)
    x = torch.tensor([0.3, 1.4, -2.2, 9.0, -9.0], requires_grad=True)
    scale = torch.tensor(0.8, requires_grad=True)
    found = levels.learned(x, scale, torch.tensor(0.0))
    assert torch.equal(found.detach(), levels.nearest(x, scale, torch.tensor(0.0)).detach())
    for i, (slope, of_scale) in enumerate(
        [
            (1, round(0.3 / 0.8) - 0.3 / 0.8),
            (1, round(1.4 / 0.8) - 1.4 / 0.8),
            (1, round(-2.2 / 0.8) + 2.2 / 0.8),
            (0, 3),
            (0, -3),
        ]
    ):
        dx, ds = torch.autograd.grad(found[i], (x, scale), retain_graph=True)
        assert dx[i].item() == slope
        assert ds.item() == pytest.approx(of_scale, abs=1e-6)


def error(rows: torch.Tensor, levels: Levels, limits, p: float) -> torch.Tensor:
    return (nearest(rows, levels, limits) - rows).abs().pow(p).sum(1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("p", [1.0, 2.0, 2.4])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_factor_of_the_range_errs_less_than_the_searched_one(bits, p, symmetric):
    levels = Levels(bits, symmetric)
    low, high = torch.aminmax(X, dim=1)
    best = error(X, levels, Range("lp", p=p).limits(X, levels), p)
    for factor in torch.linspace(0.2, 1.0, 37):
        assert (best <= error(X, levels, (low * factor, high * factor), p) * 1.02).all()


def test_few_bits_of_gaussian_numbers_have_the_known_best_range():
    """Symmetric levels -1, 0, 1 of the unit normal: the least squared error is 0.1902 at thresholds of 0.612, so at a
    scale of 1.2240 (Max 1960, "Quantizing for minimum distortion", table II, n = 3)."""
    x = torch.randn(1, 400_000, generator=torch.Generator().manual_seed(1))
    levels = Levels(2, symmetric=True)
    limits = Range("lp", p=2.0).limits(x, levels)
    scale, _ = levels.parameters(*limits)
    assert scale.item() == pytest.approx(1.224, abs=0.04)
    assert (error(x, levels, limits, 2.0) / x.numel()).item() == pytest.approx(0.1902, abs=0.002)


def test_a_higher_power_keeps_more_of_the_outliers():
    levels = Levels(4, symmetric=True)
    x = torch.cat([X[:1], torch.tensor([[12.0]])], 1)
    widths = [Range("lp", p=p).limits(x, levels)[1].item() for p in (1.0, 2.0, 4.0, 8.0)]
    assert widths == sorted(widths)
    assert widths[0] < 0.5 * widths[-1]


def test_percentiles_let_go_of_outliers():
    x = X.clone()
    x[:, 0], x[:, 1] = 100.0, -100.0
    low, high = Range("percentile", quantile=0.999).limits(x, Levels(8, symmetric=False))
    assert ((high > 2) & (high < 5)).all()
    assert ((low < -2) & (low > -5)).all()
    assert torch.equal(Range().limits(x, Levels(8, False))[1], torch.full((3,), 100.0))


def test_bad_ranges_are_refused():
    with pytest.raises(ConfigError, match=r"unknown range 'lP'. Did you mean lp\?"):
        Range("lP")
    with pytest.raises(ConfigError, match=r"range.quantile is 2; allowed: a number in \[0.5, 1.0\]"):
        Range("percentile", quantile=2)
