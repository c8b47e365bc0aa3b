"""Learned rounding: where it begins, that it ends on levels, and that it beats rounding to the nearest."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from accel.errors import ConfigError
from accel.precision.simulated.levels import Levels, Range
from accel.precision.simulated.reconstruction import Keeper, kept, reconstructed, units_of
from accel.precision.simulated.rounding import AdaQuant, AdaRound, FlexRound
from accel.precision.simulated.weights import nearest_weight, scales_of, to_rows

SCHEMES = [AdaRound(iterations=400), FlexRound(iterations=400), AdaQuant(iterations=400)]
NAMES = [s.name for s in SCHEMES]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_learning_begins_at_the_nearest_levels(scheme):
    levels, rows = Levels(3, symmetric=True), normal(4, 50)
    scale = scales_of(rows, 3, Range())
    start = scheme.start(rows, scale, levels)
    torch.testing.assert_close(start.hard(), levels.nearest(rows, scale, torch.zeros_like(scale)))
    if scheme.name == "adaround":  # its soft weight is the weight itself
        torch.testing.assert_close(start.soft(), rows, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_learned_weights_are_on_levels_and_err_less_than_the_nearest(scheme, kind):
    torch.manual_seed(0)
    layer = nn.Linear(24, 8) if kind == "linear" else nn.Conv2d(6, 8, 3, padding=1)
    mixing = normal(24, 24, seed=3)  # inputs are correlated: that is where rounding together helps
    x = normal(256, 24) @ mixing if kind == "linear" else normal(64, 6, 6, 6).cumsum(2)
    keeper = Keeper(size=200)
    with torch.no_grad(), kept(nn.ModuleDict({"a": layer}), {"a": keeper}):
        layer(x)
    net = nn.ModuleDict({"a": layer})
    (found,) = reconstructed(net, "a", ["a"], keeper, scheme, 3, "channel", Range(), {}).values()
    assert net["a"] is layer
    if scheme.name == "adaround":  # the scales are those of the nearest levels
        ratios = to_rows(found, "channel") / scales_of(to_rows(layer.weight, "channel"), 3, Range())
        torch.testing.assert_close(ratios, ratios.round(), atol=1e-4, rtol=0)
    assert all(len(row.mul(1e4).round().unique()) <= 7 for row in to_rows(found, "channel"))

    def loss(weight: torch.Tensor) -> float:
        run = nn.functional.linear if kind == "linear" else lambda a, w: nn.functional.conv2d(a, w, padding=1)
        return (run(x, weight) - run(x, layer.weight)).square().mean().item()

    nearest = nearest_weight(layer.weight, 3, "channel", Range())
    assert loss(found) < 0.9 * loss(nearest)


def test_adaround_is_between_the_nearest_and_the_best_of_all_roundings():
    """Eight weights may each go up or down: the best of all 256 ways is known by trying."""
    better = 0
    for seed in range(6):
        weight = normal(1, 8, seed=seed)
        layer = nn.Linear(8, 1, bias=False)
        layer.weight.data = weight
        x = normal(400, 8, seed=100 + seed) @ normal(8, 8, seed=200 + seed)
        keeper, net = Keeper(size=400), nn.ModuleDict({"a": layer})
        with torch.no_grad(), kept(net, {"a": keeper}):
            layer(x)
        scale = scales_of(weight, 3, Range())
        ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
        every = ((weight / scale).floor() + ups).clamp(-3, 3) * scale

        def error(candidates: torch.Tensor, weight=weight, x=x) -> torch.Tensor:
            return ((candidates - weight) @ x.T).square().mean(1)

        found = reconstructed(net, "a", ["a"], keeper, AdaRound(), 3, "channel", Range(), {})["a"]
        nearest = nearest_weight(weight, 3, "channel", Range())
        assert error(every).min() <= error(found) * 1.0001
        assert error(found) <= error(nearest) * 1.0001
        better += bool(error(found) < 0.9 * error(nearest))
    assert better >= 1


def test_adarounds_penalty_pushes_to_the_ends():
    levels, rows = Levels(4, symmetric=True), normal(2, 10)
    start = AdaRound(weight=1.0).start(rows, scales_of(rows, 4, Range()), levels)
    assert start.penalty(0.1) == 0, "warm-up"
    with torch.no_grad():
        start.v.fill_(0.0)  # h = 1/2
        assert start.penalty(0.5) == pytest.approx(20)
        start.v.fill_(20.0)
        assert start.penalty(0.5) == pytest.approx(0, abs=1e-5)


def test_a_keeper_keeps_rows_of_all_evaluations_with_equal_chance():
    keeper = Keeper(size=50)
    for i in range(100):
        value = torch.full((4, 2), float(i))
        keeper.note((value,), {"scale": torch.tensor(2.0), "flag": None}, value * 2)
    args, kwargs, output = keeper.batch(range(50))
    assert args[0].shape == (50, 2)
    assert torch.equal(output, 2 * args[0])
    assert kwargs == {"scale": torch.tensor(2.0), "flag": None}
    assert 30 < args[0].mean() < 70
    assert len(args[0][:, 0].unique()) > 30


def test_units_are_layers_or_the_outermost_blocks(pipe):
    names = [n for n, m in pipe.unet.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert units_of(pipe.unet, names, "layer") == {n: [n] for n in names}
    blocks = units_of(pipe.unet, names, "block")
    assert sorted(n for members in blocks.values() for n in members) == sorted(names)
    assert {"conv_in", "conv_out", "mid_block.resnets.0"} <= set(blocks)
    assert len(blocks["mid_block.resnets.0"]) >= 3


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"unknown rounding.unit 'blok'. Did you mean block"):
        AdaRound(unit="blok")
    with pytest.raises(ConfigError, match=r"rounding.iterations is 0; allowed: an integer >= 1"):
        FlexRound(iterations=0)
