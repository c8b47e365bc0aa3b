"""Fake quantisation against its closed forms, against integer arithmetic, and on the digits network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from snapshots import assert_same, snapshot
from torch import nn

from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.precision import FakeQuant
from accel.precision.calibration import calibrate
from accel.precision.fake_quant import QuantisedLayer, affine_parameters, fake_quantise_weight, quantisable
from accel.recipe import Recipe, accelerate
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

BITS = [2, 3, 4, 8, 12]


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weight_levels(weight: torch.Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Integer levels (like `weight`) and scales (channels,) by the paper's formula, in numpy."""
    w = weight.double().numpy()
    top = 2 ** (bits - 1) - 1
    flat = w.reshape(len(w), -1)
    scale = (np.abs(flat).max(1) / top).astype(np.float32).astype(np.float64)
    levels = np.clip(np.round(flat / scale[:, None]), -top, top)
    return levels.astype(np.int64).reshape(w.shape), scale


# --- weights


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(6, 40), (6, 5, 3, 3)], ids=["linear", "conv"])
def test_weights_are_levels_times_scales(bits, shape):
    weight = normal(*shape) * torch.logspace(-3, 2, 6).reshape(-1, *[1] * (len(shape) - 1))
    found = fake_quantise_weight(weight, bits)
    levels, scale = weight_levels(weight, bits)
    expected = levels * scale.reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=3e-7, atol=0)
    # Symmetric: the largest weight of every channel is exact and -2^(b-1) is never used.
    assert np.abs(levels).reshape(6, -1).max(1).tolist() == [2 ** (bits - 1) - 1] * 6
    assert len(np.unique(levels)) <= 2**bits - 1
    error = (found - weight).double().abs().flatten(1).amax(1).numpy()
    assert (error <= scale / 2 * (1 + 1e-5)).all()
    assert (error > scale / 8).all(), "random weights do not all fall on levels"


def test_weight_scales_are_per_channel():
    weight = normal(4, 30)
    louder = weight.clone()
    louder[2] *= 1024
    quiet, loud = fake_quantise_weight(weight, 4), fake_quantise_weight(louder, 4)
    assert torch.equal(quiet[[0, 1, 3]], loud[[0, 1, 3]])
    torch.testing.assert_close(loud[2], quiet[2] * 1024, rtol=1e-6, atol=0)
    # One scale for the whole tensor would set every other channel to zero.
    assert (quiet[0] != 0).any()


def test_zero_weights_and_zero_channels_stay_zero():
    weight = normal(3, 10)
    weight[1] = 0
    weight[0, :5] = 0
    for bits in BITS:
        found = fake_quantise_weight(weight, bits)
        assert torch.isfinite(found).all()
        assert (found[1] == 0).all()
        assert (found[0, :5] == 0).all()


# --- activations


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale", "zero_point"),
    [
        (0.0, 255.0, 8, 1.0, 0),
        (-255.0, 0.0, 8, 1.0, 255),
        (-1.0, 2.0, 2, 1.0, 1),
        (-8.0, 7.0, 4, 1.0, 8),
        (3.0, 7.5, 4, 0.5, 0),  # the range is extended to zero
        (-7.5, -3.0, 4, 0.5, 15),
        (0.0, 0.0, 8, 1e-12, 0),  # a layer that only sees zeros
    ],
)
def test_affine_parameters_in_closed_form(low, high, bits, scale, zero_point):
    assert affine_parameters(low, high, bits) == (pytest.approx(scale, rel=1e-12), zero_point)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.7), (-4.0, 0.3), (0.5, 9.0), (-3.0, -1.0)])
def test_activations_inside_the_range_err_by_half_a_scale_and_zero_is_exact(low, high, bits):
    layer = QuantisedLayer(nn.Linear(1, 1), 32, bits, torch.tensor([low, high]))
    layer.layer.weight.data.fill_(1.0)
    layer.layer.bias.data.zero_()
    x = torch.linspace(min(low, 0), max(high, 0), 5001)[:, None]
    error = (layer(x) - x).abs().max()
    assert layer.scale / 4 < error <= layer.scale / 2 * 1.0001 + 1e-6
    assert layer(torch.zeros(1, 1)).item() == 0.0
    # Outside the range everything saturates at its ends.
    ends = layer(torch.tensor([[-1e4], [1e4]])).flatten()
    torch.testing.assert_close(
        ends, torch.tensor([min(low, 0.0), max(high, 0.0)]), atol=layer.scale / 2 * 1.001, rtol=0
    )


@pytest.mark.parametrize("dyadic", [True, False], ids=["dyadic scales", "any scales"])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 8), (3, 5), (2, 2)])
@pytest.mark.parametrize("kind", ["linear", "conv", "strided conv"])
def test_quantised_layer_equals_integer_arithmetic(kind, weight_bits, activation_bits, dyadic):
    """What an integer kernel computes: int32 sums of (x_q - z) w_q, rescaled once for each output channel.

    torch dequantises in float32, which is exact when the scales are powers of two; with other scales it rounds.
    """
    layer = {
        "linear": nn.Linear(20, 6),
        "conv": nn.Conv2d(3, 6, 3, padding=1),
        "strided conv": nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
    }[kind].double()
    x = normal(4, 20, dtype=torch.float64) if kind == "linear" else normal(2, 3, 8, 8, dtype=torch.float64)
    top, x_top = 2 ** (weight_bits - 1) - 1, 2**activation_bits - 1
    weight = normal(*layer.weight.shape, seed=1, dtype=torch.float64)
    low, high = float(x.min()) / 2, float(x.max()) / 2  # so that some inputs saturate
    if dyadic:
        largest = top * 2.0 ** -torch.arange(4.0, 10.0, dtype=torch.float64)
        weight = weight.clamp(-1, 1).mul(0.99).mul(largest.reshape(-1, *[1] * (weight.dim() - 1)))
        weight.flatten(1)[:, 5] = -largest
        low, high = (-(x_top // 3) * 2.0**-activation_bits * 4, (x_top - x_top // 3) * 2.0**-activation_bits * 4)
    with torch.no_grad():
        layer.weight.copy_(weight)

    scale, zero_point = affine_parameters(low, high, activation_bits)
    scale = float(np.float32(scale))
    x_levels = np.clip(np.round(x.numpy() / scale) + zero_point, 0, x_top).astype(np.int64)
    w_levels, w_scale = weight_levels(weight, weight_bits)
    assert {0, x_top} <= set(x_levels.flatten()), "saturation at both ends is part of the test"
    centred = torch.from_numpy(x_levels - zero_point).int()
    if kind == "linear":
        sums = centred @ torch.from_numpy(w_levels).int().T
        rescale = torch.from_numpy(w_scale) * scale
    else:
        # Padding with the zero point is padding with zero.
        columns = nn.functional.unfold(centred.double(), 3, padding=1, stride=layer.stride).int()
        rows = torch.from_numpy(w_levels).flatten(1).int()
        sums = torch.stack([rows @ c for c in columns]).unflatten(2, (8 // layer.stride[0],) * 2)
        rescale = (torch.from_numpy(w_scale) * scale).reshape(-1, 1, 1)
    assert sums.dtype == torch.int32
    expected = sums.double() * rescale
    if layer.bias is not None:
        expected = expected + layer.bias.detach().reshape(rescale.shape)

    found = QuantisedLayer(layer, weight_bits, activation_bits, torch.tensor([low, high], dtype=torch.float64))(x)
    tolerance = 1e-14 if dyadic else 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)
    assert (found - layer(x)).abs().max() > 1e3 * tolerance, "the layer is really quantised"


# --- networks


DDIM = DiffusersSampler("DDIMScheduler", 4)
NOISE, LABELS = normal(4, 1, 16, 16), torch.tensor([0, 3, 5, 8])


@pytest.fixture(scope="module")
def ranges(pipe):
    """Activation ranges of the digits network on NOISE (they do not depend on the number of bits)."""
    return calibrate(pipe, Recipe(DDIM, precision=FakeQuant()), lambda: pipe(LABELS, latents=NOISE, output_type="pt"))


@pytest.fixture(scope="module")
def sqnr(pipe, ranges):
    """sqnr(weight_bits, activation_bits) -> signal to quantisation noise, dB, of the predictions along a trajectory."""
    latents, timesteps = [], []

    def note(module, args, kwargs):
        latents.append(args[0])
        timesteps.append(args[1].expand(4))

    with torch.no_grad(), accelerate(pipe, Recipe(DDIM)):
        handle = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
        pipe(LABELS, latents=NOISE, output_type="pt")
        handle.remove()
        x, t, labels = torch.cat(latents), torch.cat(timesteps), LABELS.repeat(4)
        pipe.scheduler.set_timesteps(4)
        plain = pipe.unet(x, t, class_labels=labels).sample

    def sqnr(weight_bits: int, activation_bits: int) -> float:
        recipe = Recipe(DDIM, precision=FakeQuant(weight_bits, activation_bits))
        with torch.no_grad(), accelerate(pipe, recipe, artefacts=ranges):
            pipe.scheduler.set_timesteps(4)
            found = pipe.unet(x, t, class_labels=labels).sample
        assert torch.isfinite(found).all()
        noise = (found - plain).square().mean()
        return 10 * math.log10(plain.square().mean() / noise) if noise else math.inf

    return sqnr


def test_more_bits_err_less(sqnr):
    quality = [sqnr(bits, bits) for bits in (2, 4, 8, 16)]
    assert quality == sorted(quality)
    assert quality[3] > quality[2] + 20 > quality[1] + 30
    assert sqnr(32, 32) == math.inf


def test_a_weight_bit_is_worth_six_decibels(sqnr):
    """Uniform quantisation noise is scale^2 / 12 and a bit halves the scale: 20 log10(2) = 6.02 dB."""
    bits = np.arange(5, 12)
    quality = [sqnr(int(b), 32) for b in bits]
    assert quality == sorted(quality)
    slope = np.polyfit(bits, quality, 1)[0]
    assert slope == pytest.approx(6.02, abs=1.5)


def test_model_bytes_by_hand():
    net = nn.ModuleDict({
        "conv": nn.Conv2d(2, 3, 3),  # 54 weights, 3 biases
        "out": nn.Linear(5, 2, bias=False),  # 10 weights
        "norm": nn.GroupNorm(1, 4),  # 8
        "class_embedding": nn.Embedding(7, 2),  # 14
        "time_emb_proj": nn.Linear(3, 3),  # kept: 9 and 3
    })  # fmt: skip
    rest = 4 * (3 + 8 + 14 + 12)
    scales = 4 * (3 + 2)
    assert FakeQuant(32, 8).model_bytes(net) == 4 * (54 + 10) + rest
    assert FakeQuant(8, 8).model_bytes(net) == 54 + 10 + scales + rest
    assert FakeQuant(16, 32).model_bytes(net) == 2 * (54 + 10) + scales + rest
    assert FakeQuant(3, 8).model_bytes(net) == 21 + 4 + scales + rest  # 162 and 30 bits, each up to whole bytes
    assert FakeQuant(8, 8, keep=()).model_bytes(net) == 54 + 10 + 9 + scales + 4 * 3 + rest - 4 * 9
    assert FakeQuant(8, 8, keep=["*"]).model_bytes(net) == 4 * (54 + 10) + rest
    assert FakeQuant(8, 8).model_bytes(net.half()) == 54 + 10 + scales + rest // 2


def test_keep_patterns_leave_layers_in_floating_point(pipe):
    default = quantisable(pipe.unet, FakeQuant().keep)
    every = quantisable(pipe.unet, ())
    kept = set(every) - set(default)
    assert {"time_embedding.linear_1", "time_embedding.linear_2"} < kept
    assert all(n.startswith("time_embedding") or n.endswith("time_emb_proj") for n in kept)
    assert set(every) == {n for n, m in pipe.unet.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}

    ends = FakeQuant(4, 32, keep=(*FakeQuant().keep, "conv_in", "conv_out"))
    with accelerate(pipe, Recipe(DDIM, precision=ends)):
        quantised = {n for n, m in pipe.unet.named_modules() if isinstance(m, QuantisedLayer)}
        assert type(pipe.unet.conv_in) is nn.Conv2d
        assert type(pipe.unet.time_embedding.linear_1) is nn.Linear
    assert quantised == set(default) - {"conv_in", "conv_out"}


@pytest.mark.parametrize("bits", [(1, 8), (17, 8), (8, 1), (8, 31), (8.0, 8), (True, 8)])
def test_bits_out_of_range(bits):
    with pytest.raises(ConfigError, match=r"_bits is .*; allowed: an integer in \[2, 16\]"):
        FakeQuant(*bits)


def test_missing_or_foreign_ranges_name_the_command(pipe, ranges):
    recipe = Recipe(DDIM, precision=FakeQuant())
    count = len(ranges["base"])
    fewer = {"base": {k: v for k, v in ranges["base"].items() if k != "conv_in"}}
    foreign = {"base": {f"model.{k}": v for k, v in ranges["base"].items()}}
    for artefacts, found in (
        (None, "none"),
        ({}, "none"),
        ({"small": ranges["base"]}, "none"),
        (fewer, f"ranges for {count - 1} layers"),
        (foreign, f"ranges for {count} layers"),
    ):
        said = f"W8A8 needs .* for the {count} layers of 'base', found {found}; make"
        with pytest.raises(ConfigError, match=said), accelerate(pipe, recipe, artefacts=artefacts):
            pass
    other = replace(recipe, precision=FakeQuant(keep=()))  # it wants ranges for more layers
    with pytest.raises(ConfigError, match="needs activation ranges"), accelerate(pipe, other, artefacts=ranges):
        pass


def test_a_network_without_layers_is_refused():
    from accel.suites.mixture import MixtureSuite

    with pytest.raises(IncompatibleError, match=r"'base' \(MixtureDenoiser\) has no convolution or linear layer"):
        Recipe(precision=FakeQuant()).check(MixtureSuite().pipeline())


def test_failing_to_attach_to_the_second_network_restores_the_first(pipe, digits, models):
    recipe = Recipe(DDIM, stitch=TStitch(("small",), (0.5,)), precision=FakeQuant())
    ranges = calibrate(pipe, recipe, lambda: generate(pipe, digits, recipe, 99, 0, 1, 1), models)
    del ranges["small"]["conv_out"]
    before = snapshot(pipe, models.values())
    with (
        pytest.raises(ConfigError, match="layers of 'small'"),
        accelerate(pipe, recipe, models=models, artefacts=ranges),
    ):
        pass
    assert_same(before, snapshot(pipe, models.values()))
    assert type(pipe.unet.conv_in) is nn.Conv2d
