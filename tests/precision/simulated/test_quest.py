"""QuEST: tuning begins at the rounded network, changes only what it names, and comes nearer to the full network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.precision import AdaRound, FakeQuant, QuEST, StridedSteps
from accel.precision.layers import quantisable
from accel.precision.simulated.fake_quant import shortcut_slices
from accel.precision.simulated.levels import Range
from accel.precision.simulated.quantised import InputQuantiser, QuantisedLayer
from accel.precision.simulated.quest import Tuned
from accel.precision.simulated.weights import nearest_weight, scales_of, sliced, to_rows
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 4)
# All but the attention, which is what is tuned: elsewhere rounding would drown what tuning gains.
KEEP = ("time_embedding.*", "down_blocks.*", "up_blocks.*", "mid_block.resnets.*", "conv_in", "conv_out")
QUICK = {
    "weight_bits": 2,
    "activation_bits": 4,
    "lr": 1e-3,
    "keep": KEEP,
    "rounding": AdaRound(iterations=10),
    "calibration": StridedSteps(samples=8, stride=1),
    "groups": 2,
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [(), (4, 6)], ids=["whole", "split"])
def test_tuning_begins_at_the_quantised_layer(channels):
    layer, group = nn.Conv2d(10, 5, 1), [0]
    x = normal(3, 10, 4, 4)
    limits = torch.tensor([[[-2.0, 1.5]] * max(1, len(channels)), [[-3.0, 3.0]] * max(1, len(channels))])
    inputs = InputQuantiser(4, limits, channels, lambda: group[0])
    weight = nearest_weight(layer.weight, 3, "channel", Range(), channels)
    quantised = QuantisedLayer(layer, weight, inputs, weight_bits=3)
    rows = [to_rows(part, "channel") for part in sliced(layer.weight, channels)]
    tuned = Tuned(quantised, [scales_of(r, 3, Range()) for r in rows])
    torch.testing.assert_close(tuned.inputs.limits().reshape(2, -1, 2), inputs_limits(inputs))
    for group[0] in (0, 1):
        torch.testing.assert_close(tuned(x), quantised(x), atol=1e-5, rtol=1e-5)
    tuned(x).square().sum().backward()
    assert (tuned.latent.grad != 0).all()
    assert (tuned.inputs.log_scale.grad[1] != 0).all()
    assert (tuned.inputs.log_scale.grad[0] == 0).all(), "only the group that ran"


def inputs_limits(inputs: InputQuantiser) -> torch.Tensor:
    """The range of levels, which is that asked for but for the rounding of the zero point."""
    own = torch.tensor(inputs.parameters)
    scale, zero = own[..., 0], own[..., 1]
    return torch.stack([-zero * scale, (inputs.levels.high - zero) * scale], -1)


@pytest.fixture(scope="module")
def made(pipe, digits):
    """{name: (recipe, artefacts)} of the tuned network and of the same without tuning."""

    def sample(own, start, stop):
        return generate(pipe, digits, own, 99, start, stop, 8)

    found = {}
    for name, iterations in (("tuned", 60), ("rounded", 0)):
        recipe = Recipe(DDIM, precision=QuEST(iterations=iterations, **QUICK))
        found[name] = recipe, recipe.precision.calibrate(pipe, recipe, sample)
    return found


def test_only_the_named_layers_are_tuned(made, pipe):
    tuned, rounded = (made[k][1]["base"] for k in ("tuned", "rounded"))
    assert set(tuned) == set(rounded)
    changed = {k.removesuffix("|weight") for k in tuned if "|weight" in k and not torch.equal(tuned[k], rounded[k])}
    limits = {k for k in tuned if "|" not in k and not torch.allclose(tuned[k], rounded[k], atol=1e-3)}
    layers = quantisable(pipe.unet, KEEP)
    attention = {k for k in layers if "attentions" in k}
    assert attention
    assert changed <= attention | {k for k in layers if k.endswith("time_emb_proj")}
    assert changed & attention
    assert limits <= attention


def test_tuned_weights_are_on_the_levels_of_the_rounded(made, pipe):
    tuned = made["tuned"][1]["base"]
    for name, layer in quantisable(pipe.unet, KEEP).items():
        scale = scales_of(to_rows(layer.weight, "channel"), 2, Range())
        ratios = to_rows(tuned[name + "|weight"], "channel") / scale
        torch.testing.assert_close(ratios, ratios.round(), atol=2e-3, rtol=0)
        assert ratios.abs().max() < 1.01


@torch.no_grad()
def test_tuning_brings_the_output_nearer(made, pipe):
    """What is trained, the output of single evaluations, on noises that no calibration saw. (Whole images of so short a
    training differ by less than their noise.) Some 0.75 to 0.81 of the error is left, by processor and threads."""
    noise = torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(40) % 10

    def outputs(recipe, artefacts=None, states=None):
        found, kept, x = [], [], noise
        with accelerate(pipe, recipe, artefacts=artefacts):
            pipe.scheduler.set_timesteps(4)
            for i, t in enumerate(pipe.scheduler.timesteps):
                x = x if states is None else states[i]
                kept.append(x)
                found.append(pipe.unet(x, t, class_labels=labels).sample)
                x = pipe.scheduler.step(found[-1], t, x).prev_sample
        return torch.stack(found), kept

    full, states = outputs(Recipe(DDIM))
    error = {name: (outputs(*own, states)[0] - full).square().mean().item() for name, own in made.items()}
    assert error["tuned"] < 0.9 * error["rounded"], error


def test_the_network_is_left_as_it_was(made, pipe):
    assert not any(isinstance(m, (Tuned, QuantisedLayer)) for m in pipe.unet.modules())
    assert not any(m._forward_hooks for m in pipe.unet.modules())


def test_bad_settings():
    with pytest.raises(ConfigError, match="tunes quantised weights"):
        QuEST(weight_bits=32)
    with pytest.raises(ConfigError, match=r"precision.lr is -1; allowed"):
        QuEST(lr=-1)
    assert QuEST().label.startswith("quest w4a4(sim,adaround/block")
    assert isinstance(QuEST(), FakeQuant)
    assert shortcut_slices(nn.Linear(1, 1)) == {}
