"""MixDQ: sensitivities by hand, the bits that follow, and that they do better than the same bits everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import run_stable_diffusion, stable_diffusion

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.precision import FakeQuant, MixDQ
from accel.precision.layers import quantisable
from accel.precision.simulated.allocation import mean_bits
from accel.precision.simulated.bits import bit_operations, layer_macs
from accel.precision.simulated.mixdq import similarity
from accel.precision.simulated.quantised import QuantisedLayer
from accel.precision.simulated.weights import nearest_weight
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 3)
FEW = (
    "time_embedding.*",
    "*time_emb_proj",
    "down_blocks.*",
    "up_blocks.*",
)  # what is left: conv_in, mid block, conv_out


@pytest.fixture(scope="module")
def made(pipe, digits):
    recipe = Recipe(DDIM, precision=MixDQ(activation_bits=32, budget=5.0, samples=2, keep=FEW))

    def sample(own, start, stop):
        return generate(pipe, digits, own, 99, start, stop, 2)

    return recipe, recipe.precision.calibrate(pipe, recipe, sample)["base"]


def split(artefact):
    return {
        ending: {k.removesuffix(ending): v for k, v in artefact.items() if k.endswith(ending)}
        for ending in ("|bits", "|scores")
    }


def test_scores_are_the_signal_to_noise_of_the_output(made, pipe, digits):
    recipe, artefact = made
    layer, x = "conv_out", {}

    def note(module, args, kwargs):
        x.setdefault("first", (args, kwargs))

    handle = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    with accelerate(pipe, Recipe(DDIM)):
        generate(pipe, digits, Recipe(DDIM), 99, 0, 2, 2)
    handle.remove()
    scores = split(artefact)["|scores"]
    assert set(scores) == set(quantisable(pipe.unet, FEW))
    assert all(len(own) == 3 and own.tolist() == sorted(own.tolist()) for own in scores.values()), (
        "more bits, less noise"
    )
    # By hand, for one layer: the mean relative noise of three evaluations.
    weight = pipe.unet.conv_out.weight.data
    noise = []
    from accel.precision.simulated.calibration import evaluate, record

    calls = record(pipe, recipe, lambda: generate(pipe, digits, recipe, 99, 0, 2, 2))["base"][0]
    full = [evaluate("base", pipe.unet, c) for c in calls]
    try:
        pipe.unet.conv_out.weight.data = nearest_weight(weight, 4, "channel", recipe.precision.weight_range)
        for call, wanted in zip(calls, full, strict=True):
            found = evaluate("base", pipe.unet, call)
            noise.append(((found - wanted).square().mean() / wanted.square().mean()).item())
    finally:
        pipe.unet.conv_out.weight.data = weight
    expected = -10 * torch.tensor(sum(noise) / 3).log10().item()
    assert scores[layer][1].item() == pytest.approx(expected, abs=0.01)


def test_bits_keep_the_budget_and_bytes_count_them(made, pipe):
    recipe, artefact = made
    bits = {k: int(v) for k, v in split(artefact)["|bits"].items()}
    layers = quantisable(pipe.unet, FEW)
    sizes = {k: m.weight.numel() for k, m in layers.items()}
    assert set(bits) == set(layers)
    assert set(bits.values()) <= {2, 4, 8}
    assert len(set(bits.values())) > 1
    assert 4.0 < mean_bits(bits, sizes) <= 5.0
    own = recipe.precision.model_bytes(pipe.unet, artefact)
    eight = FakeQuant(8, 32, keep=FEW).model_bytes(pipe.unet)
    assert eight - own == sum(sizes[k] - (sizes[k] * b + 7) // 8 for k, b in bits.items())


def test_a_budget_of_bit_operations_weighs_layers_with_their_products(made, pipe, digits):
    """The same scores, other costs; the saved operations are those that execution counts."""
    recipe, artefact = made
    own = replace(recipe, precision=replace(recipe.precision, budget_of="operations"))

    def sample(own, start, stop):
        return generate(pipe, digits, own, 99, start, stop, 2)

    found = own.precision.calibrate(pipe, own, sample)
    bits = {k: int(v) for k, v in split(found["base"])["|bits"].items()}
    layers = quantisable(pipe.unet, FEW)
    with accelerate(pipe, Recipe(DDIM)), layer_macs(layers) as macs:
        sample(Recipe(DDIM), 0, 1)
    assert 4.0 < mean_bits(bits, macs) <= 5.0
    assert all(torch.equal(found["base"][k + "|scores"], artefact[k + "|scores"]) for k in layers)
    with accelerate(pipe, own, artefacts=found), bit_operations([pipe.unet]) as counted:
        sample(own, 0, 1)
    assert counted.operations == sum(macs[k] * b * 32 for k, b in bits.items())
    assert own.precision.label == "mixdq w5a32(sim,operations)"


def test_mixed_bits_err_less_than_the_same_bits_everywhere(pipe, digits):
    """At a mean of four bits, with the objective that is the error itself."""
    mixed = MixDQ(activation_bits=32, budget=4.0, samples=2, objective="error", keep=FEW)
    recipe = Recipe(DDIM, precision=mixed)

    def sample(own, start, stop):
        return generate(pipe, digits, own, 99, start, stop, 2)

    artefacts = mixed.calibrate(pipe, recipe, sample)

    def images(own, artefacts=None):
        with accelerate(pipe, own, artefacts=artefacts):
            return generate(pipe, digits, own, 5, 0, 8, 8)

    full = images(Recipe(DDIM))
    error = [
        (images(r, a) - full).square().mean().item()
        for r, a in ((recipe, artefacts), (replace(recipe, precision=FakeQuant(4, 32, keep=FEW)), None))
    ]
    assert error[0] < error[1]


def test_content_layers_of_text_models_are_scored_by_the_images_and_spare_the_first_token():
    pipe = stable_diffusion()
    keep = ("*time*", "down_blocks.*", "up_blocks.*", "*resnets*", "*conv*", "*attn1*")
    mixed = MixDQ(activation_bits=8, budget=5.0, samples=2, shares=(0.8, 1.0), keep=keep)
    recipe = Recipe(DDIM, precision=mixed)
    made = mixed.calibrate(pipe, recipe, lambda own, a, b: run_stable_diffusion(pipe, 1.0))
    scores = split(made["base"])["|scores"]
    layers = quantisable(pipe.unet, keep)
    shown = {k for k in layers if "attn2" in k or ".ff." in k}
    assert shown
    assert set(layers) - shown, "proj_in and proj_out, for the other group"
    assert all((scores[k] <= 1.0001).all() for k in shown), "a structural similarity"
    assert any((scores[k] > 10).any() for k in set(layers) - shown), "decibels"
    with accelerate(pipe, recipe, artefacts=made):
        exempt = {k for k, m in pipe.unet.named_modules() if isinstance(m, QuantisedLayer) and m.exempt_tokens}
    assert exempt == {k for k in layers if k.endswith(("attn2.to_k", "attn2.to_v"))}


def test_similarity_is_one_for_the_same_picture_and_falls_with_its_structure():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert similarity(x, x) == pytest.approx(1)
    noisy = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert 0.5 < similarity(noisy, x) < 1
    assert similarity(1 - x, x) < 0


def test_missing_bits_name_the_command(pipe):
    with pytest.raises(ConfigError, match=r"the bits of .* are not allocated yet; make the artefact"):
        MixDQ().model_bytes(pipe.unet)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"candidates": ()}, "precision.candidates is empty"),
        ({"candidates": (1, 4)}, r"precision.candidates is 1; allowed: an integer in \[2, 16\]"),
        ({"budget": 1.0}, r"precision.budget is 1.0; allowed: a number in \[2.0, 16.0\]"),
        ({"objective": "db"}, "unknown precision.objective 'db'"),
        ({"budget_of": "bytes"}, "unknown precision.budget_of 'bytes'"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ConfigError, match=said):
        MixDQ(**settings)
