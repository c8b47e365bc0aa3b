"""Fake quantisation against its closed forms, against integer arithmetic, and on the digits network."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from snapshots import assert_same, snapshot
from torch import nn

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.precision import FakeQuant
from accel.precision.layers import quantisable
from accel.precision.simulated.calibration import Observer
from accel.precision.simulated.calibration_sets import DrawnTimesteps
from accel.precision.simulated.fake_quant import MODEL, shortcut_slices
from accel.precision.simulated.levels import Range
from accel.precision.simulated.quantised import InputQuantiser, QuantisedLayer, channel_dim, corrected_bias, run_layer
from accel.precision.simulated.rounding import AdaQuant, AdaRound, FlexRound
from accel.precision.simulated.weights import nearest_weight
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.suites.shapes import ShapesSuite

BITS = [2, 3, 4, 8, 12]


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quantise(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return nearest_weight(weight, bits, "channel", Range())


def affine_parameters(low: float, high: float, bits: int) -> tuple[float, int]:
    limits = torch.tensor([low, high], dtype=torch.float64)
    return InputQuantiser(bits, limits.reshape(1, 1, 2)).parameters[0][0]


def quantised(layer: nn.Module, weight_bits: int, activation_bits: int, limits: torch.Tensor) -> QuantisedLayer:
    weight = layer.weight.detach() if weight_bits == 32 else quantise(layer.weight, weight_bits)
    return QuantisedLayer(layer, weight, InputQuantiser(activation_bits, limits.reshape(1, 1, 2)))


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
    found = quantise(weight, bits)
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
    quiet, loud = quantise(weight, 4), quantise(louder, 4)
    assert torch.equal(quiet[[0, 1, 3]], loud[[0, 1, 3]])
    torch.testing.assert_close(loud[2], quiet[2] * 1024, rtol=1e-6, atol=0)
    # One scale for the whole tensor would set every other channel to zero.
    assert (quiet[0] != 0).any()


def test_zero_weights_and_zero_channels_stay_zero():
    weight = normal(3, 10)
    weight[1] = 0
    weight[0, :5] = 0
    for bits in BITS:
        found = quantise(weight, bits)
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
    layer = quantised(nn.Linear(1, 1), 32, bits, torch.tensor([low, high]))
    layer.layer.weight.data.fill_(1.0)
    layer.layer.bias.data.zero_()
    x = torch.linspace(min(low, 0), max(high, 0), 5001)[:, None]
    error, scale = (layer(x) - x).abs().max(), affine_parameters(low, high, bits)[0]
    assert scale / 4 < error <= scale / 2 * 1.0001 + 1e-6
    assert layer(torch.zeros(1, 1)).item() == 0.0
    # Outside the range everything saturates at its ends.
    ends = layer(torch.tensor([[-1e4], [1e4]])).flatten()
    torch.testing.assert_close(ends, torch.tensor([min(low, 0.0), max(high, 0.0)]), atol=scale / 2 * 1.001, rtol=0)


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

    found = quantised(layer, weight_bits, activation_bits, torch.tensor([low, high], dtype=torch.float64))(x)
    tolerance = 1e-14 if dyadic else 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)
    assert (found - layer(x)).abs().max() > 1e3 * tolerance, "the layer is really quantised"


# --- networks


DDIM = DiffusersSampler("DDIMScheduler", 4)
NOISE, LABELS = normal(4, 1, 16, 16), torch.tensor([0, 3, 5, 8])


@pytest.fixture(scope="module")
def ranges(pipe):
    """Activation ranges of the digits network on NOISE (they do not depend on the number of bits)."""
    recipe = Recipe(DDIM, precision=FakeQuant())
    return recipe.precision.calibrate(pipe, recipe, lambda *drawn: pipe(LABELS, latents=NOISE, output_type="pt"))


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
    count = len(ranges["base"]) - 1  # and the model's digest
    fewer = {"base": {k: v for k, v in ranges["base"].items() if k != "conv_in"}}
    foreign = {"base": {f"model.{k}": v for k, v in ranges["base"].items() if k != MODEL}}
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
    changed = copy.deepcopy(pipe)
    changed.unet.conv_in.weight.data += 0.01
    with pytest.raises(ConfigError, match="made for other weights"), accelerate(changed, recipe, artefacts=ranges):
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
    ranges = recipe.precision.calibrate(
        pipe, recipe, lambda *drawn: generate(pipe, digits, recipe, 99, 0, 1, 1), models
    )
    del ranges["small"]["conv_out"]
    before = snapshot(pipe, models.values())
    with (
        pytest.raises(ConfigError, match="layers of 'small'"),
        accelerate(pipe, recipe, models=models, artefacts=ranges),
    ):
        pass
    assert_same(before, snapshot(pipe, models.values()))
    assert type(pipe.unet.conv_in) is nn.Conv2d


# --- what the fields choose


def labels(**settings) -> str:
    return FakeQuant(4, 8, **settings).label


def test_labels_say_what_was_chosen():
    assert FakeQuant().label == "w8a8(sim)"
    assert labels(rounding=AdaRound(unit="block"), split=True) == "w4a8(sim,adaround/block,split)"
    assert labels(keep=(*FakeQuant().keep[1:], "conv_in")) == "w4a8(sim,float conv_in not time_embedding.*)"
    assert labels(attention_bits=8, bias_correction=True, text_encoder=True) == "w4a8(sim,attention8,bias,text)"
    ptq4dm = {"weight_range": Range("lp"), "activation_range": Range("lp"), "calibration": DrawnTimesteps()}
    assert labels(**ptq4dm) == "w4a8(sim,wL2.4,aL2.4,ndtc)"
    assert labels(groups=5, granularity=16, exempt_tokens=1) == "w4a8(sim,per 16,5 groups,-1 tokens)"


@pytest.mark.parametrize("granularity", ["tensor", 9, 12])
def test_finer_scales_err_less(granularity):
    weight = normal(6, 4, 3, 3) * torch.logspace(-1, 1, 6).reshape(-1, 1, 1, 1)
    error = {g: (nearest_weight(weight, 3, g, Range()) - weight).square().mean() for g in ("channel", granularity)}
    assert (error["channel"] < error[granularity]) == (granularity == "tensor")
    # Each group is on levels of its own.
    rows = nearest_weight(weight, 3, granularity, Range()).reshape(
        1 if granularity == "tensor" else -1, *([-1] if granularity == "tensor" else [granularity])
    )
    scale = rows.abs().amax(1, keepdim=True) / 3
    torch.testing.assert_close(rows / scale, (rows / scale).round(), atol=1e-4, rtol=0)


def test_both_parts_of_a_split_input_are_quantised_alone():
    """Decoder features and skip differ in size: with one scale the smaller one is lost."""
    layer = nn.Conv2d(5, 4, 1, bias=False)
    x = torch.cat([normal(2, 3, 4, 4) * 100, normal(2, 2, 4, 4, seed=1)], 1)
    ends = [torch.stack(torch.aminmax(part)) for part in x.split((3, 2), 1)]
    own = InputQuantiser(4, torch.stack(ends)[None], (3, 2))
    one = InputQuantiser(4, torch.stack(torch.aminmax(x)).reshape(1, 1, 2))
    assert (one(x)[:, 3:] == 0).all()
    assert (own(x)[:, 3:] - x[:, 3:]).abs().max() < 0.4
    assert torch.equal(own(x)[:, :3], InputQuantiser(4, ends[0].reshape(1, 1, 2))(x[:, :3]))
    parts = [nearest_weight(layer.weight[:, a:b], 4, "channel", Range()) for a, b in ((0, 3), (3, 5))]
    assert torch.equal(nearest_weight(layer.weight, 4, "channel", Range(), (3, 2)), torch.cat(parts, 1))


def test_slices_are_where_up_blocks_read_skips(pipe):
    found = shortcut_slices(pipe.unet)
    assert found
    for name, (hidden, skip) in found.items():
        assert name.startswith("up_blocks.")
        assert pipe.unet.get_submodule(name).in_channels == hidden + skip
    seen = {}

    def note(i: int):
        def hook(module, args, kwargs):
            seen[i] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        return hook

    with torch.no_grad(), ExitStack() as hooks:
        for i, block in enumerate(pipe.unet.up_blocks):
            hooks.callback(block.register_forward_pre_hook(note(i), with_kwargs=True).remove)
        pipe.unet(NOISE, 5, class_labels=LABELS)
    for i, hidden in seen.items():
        if (name := f"up_blocks.{i}.resnets.0.conv_shortcut") in found:
            assert found[name][0] == hidden.shape[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"rounding": AdaRound(iterations=20)},
        {"rounding": FlexRound(iterations=10, unit="block")},
        {"split": True, "activation_range": Range("percentile")},
        {"groups": 2, "weight_range": Range("lp"), "activation_range": Range("lp", p=2.0)},
        {"calibration": DrawnTimesteps(), "rounding": AdaQuant(iterations=10)},
        {"bias_correction": True},
        {"attention_bits": 6},
    ],
    ids=["adaround", "flexround of blocks", "split", "groups", "replayed", "bias", "attention"],
)
def test_every_choice_runs_and_its_artefact_does_what_it_says(pipe, settings):
    recipe = Recipe(DDIM, precision=FakeQuant(4, 6, **settings))
    sample = lambda *drawn: pipe(LABELS, latents=NOISE, output_type="pt")  # noqa: E731
    made = recipe.precision.calibrate(pipe, recipe, sample)
    plain = Recipe(DDIM, precision=FakeQuant(4, 6))
    nearest = plain.precision.calibrate(pipe, plain, sample)
    images = []
    for own, artefacts in ((recipe, made), (plain, nearest), (Recipe(DDIM), None)):
        with torch.no_grad(), accelerate(pipe, own, artefacts=artefacts):
            images.append(pipe(LABELS, latents=NOISE, output_type="pt").images)
    found, other, full = images
    assert not torch.equal(found, other), "the choice changes something"
    assert (found - full).square().mean().sqrt() < 0.3
    learned = {k.removesuffix("|weight") for k in made["base"] if k.endswith("|weight")}
    layers = quantisable(pipe.unet, FakeQuant().keep)
    assert learned == (set(layers) if "rounding" in settings else set())
    groups, parts = settings.get("groups", 1), 2 if settings.get("split") else 1
    shortcut = next(iter(shortcut_slices(pipe.unet)))
    assert made["base"][shortcut].numel() == groups * parts * 2


def test_groups_of_steps_are_used_at_their_steps(pipe):
    recipe = Recipe(DDIM, precision=FakeQuant(32, 8, groups=4))
    made = recipe.precision.calibrate(pipe, recipe, lambda *drawn: pipe(LABELS, latents=NOISE, output_type="pt"))
    limits, inputs, outputs = made["base"]["conv_in"], [], []
    assert limits.shape == (4, 1, 2)
    with torch.no_grad(), accelerate(pipe, recipe, artefacts=made):
        layer = pipe.unet.conv_in
        kept, layer.inputs = (
            layer.inputs,
            lambda x, dim: outputs.append(kept(x, dim)) or inputs.append(x) or outputs[-1],
        )
        pipe(LABELS, latents=NOISE, output_type="pt")
    for step in range(4):
        own = InputQuantiser(8, limits[step : step + 1])
        assert torch.equal(outputs[step], own(inputs[step]))


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, bias=False), nn.Conv2d(6, 4, 3, groups=2)])
def test_a_corrected_bias_gives_the_plain_mean(layer):
    """Over all inputs seen, and exactly where there is no padding and every place is seen equally often."""
    shape = (5, 7, 6) if isinstance(layer, nn.Linear) else (5, 6, 3, 3)
    x = normal(*shape) + torch.linspace(-3, 3, 6).reshape(-1, *[1] * (0 if isinstance(layer, nn.Linear) else 2))
    x = x if isinstance(layer, nn.Linear) else x.mean((2, 3), keepdim=True).expand(shape)
    observer = Observer(dim=channel_dim(layer), means=True)
    for part in x.split(2):
        observer.note(part, 0, torch.Generator())
    weight = quantise(layer.weight, 2)
    bias = corrected_bias(layer, weight, observer.mean)
    dims = (0, 1) if isinstance(layer, nn.Linear) else (0, 2, 3)
    plain, wrong, right = (run_layer(layer, w, b, x).mean(dims) for w, b in
                           ((layer.weight, layer.bias), (weight, layer.bias), (weight, bias)))  # fmt: skip
    torch.testing.assert_close(right, plain, atol=1e-5, rtol=1e-5)
    assert (wrong - plain).abs().max() > 0.05


def test_exempt_tokens_are_in_floating_point():
    layer = nn.Linear(6, 4)
    x = normal(2, 5, 6)
    x[:, 0] *= 500  # the start token
    inputs = InputQuantiser(8, torch.stack(torch.aminmax(x[:, 1:])).reshape(1, 1, 2))
    weight = quantise(layer.weight, 8)
    found = QuantisedLayer(layer, weight, inputs, exempt_tokens=1)(x)
    torch.testing.assert_close(found[:, :1], layer(x[:, :1]))
    assert torch.equal(found[:, 1:], QuantisedLayer(layer, weight, inputs)(x[:, 1:]))


def test_text_encoders_are_quantised_with_ranges_of_their_own():
    suite = ShapesSuite()
    pipe = suite.pipeline()
    before = snapshot(pipe, [pipe.text_encoder])
    images = {}

    def sample(own, start, stop):
        return generate(pipe, suite, own, 99, start, start + 2, 2)

    for text in (None, False, True):
        recipe = Recipe(DDIM, precision=None if text is None else FakeQuant(6, 8, text_encoder=text))
        made = {} if text is None else recipe.precision.calibrate(pipe, recipe, sample)
        with torch.no_grad(), accelerate(pipe, recipe, artefacts=made):
            inside = [m for m in pipe.text_encoder.modules() if isinstance(m, QuantisedLayer)]
            images[text] = sample(recipe, 0, 2)
        wanted = len(quantisable(pipe.text_encoder, ())) if text else 0
        assert len(inside) == wanted == len([k for k in made.get("text_encoder", ()) if "|" not in k])
    assert not torch.equal(images[False], images[True])
    assert not torch.equal(images[False], images[None])
    assert_same(snapshot(pipe, [pipe.text_encoder]), before)


def test_rounding_of_unquantised_weights_is_refused():
    with pytest.raises(ConfigError, match="rounding is for quantised weights"):
        FakeQuant(32, 8, rounding=AdaRound())
    with pytest.raises(ConfigError, match="bias_correction is for weights that are rounded"):
        FakeQuant(32, 8, bias_correction=True)
    with pytest.raises(ConfigError, match=r"granularity is 'row'; allowed: channel, tensor, or a number"):
        FakeQuant(granularity="row")
