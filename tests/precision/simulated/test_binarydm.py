"""BinaryDM: one bit in the end, the evolvable basis, channel directions, and that training helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.precision import BinaryDM, StridedSteps
from accel.precision.layers import quantisable
from accel.precision.simulated.binarydm import Binary, principal, projected, sign, straight_sign
from accel.precision.simulated.quantised import QuantisedLayer
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 4)
KEEP = (*BinaryDM().keep, "down_blocks.*", "up_blocks.0.*")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def binary(layer: nn.Module) -> Binary:
    return Binary(QuantisedLayer(layer, layer.weight.detach()))


def test_two_bases_err_less_than_one_and_one_is_the_best_single_scale():
    """min over s of |w - s sign(w)|^2 is at s = mean |w| (Rastegari et al. 2016, arXiv:1603.05279, eq. 6)."""
    layer = nn.Linear(200, 3)
    module, weight = binary(layer), layer.weight.detach()
    two = (module.weight - weight).square().sum(1)
    module.evolving = False
    one = (module.weight - weight).square().sum(1)
    assert (two < 0.5 * one).all()
    for factor in (0.9, 1.1):
        other = factor * module.first * sign(weight)
        assert ((other - weight).square().sum(1) > one).all()
    assert all(len(row.unique()) == 2 for row in module.weight)


def test_gradients_pass_within_the_scale_only():
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 2.0], requires_grad=True)
    found = straight_sign(x, torch.tensor(1.0))
    assert found.tolist() == [-1, -1, 1, 1, 1]
    found.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_directions_are_those_of_channels():
    """Channels that vary most span the basis, however wide the picture is."""
    x = normal(8, 8, 5, 7) * torch.tensor([0.1] * 6 + [5.0, 9.0]).reshape(1, 8, 1, 1)
    basis = principal(x)
    assert basis.shape == (8, 2)
    torch.testing.assert_close(basis[6:].square().sum(0), torch.ones(2), atol=1e-2, rtol=0)
    kept = projected(x, basis).square().sum() / x.square().sum()
    assert kept > 0.98
    tokens = principal(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens.abs(), basis.abs(), atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def made(pipe, digits):
    """{iterations: (recipe, artefacts)}."""

    def sample(own, start, stop):
        return generate(pipe, digits, own, 99, start, stop, 8)

    settings = {"activation_bits": 8, "keep": KEEP, "calibration": StridedSteps(samples=8, stride=1)}
    found = {}
    for iterations in (1, 50):
        recipe = Recipe(DDIM, precision=BinaryDM(iterations=iterations, batch=8, **settings))
        found[iterations] = recipe, recipe.precision.calibrate(pipe, recipe, sample)
    return found


def test_the_network_ends_at_one_bit(made, pipe):
    recipe, artefacts = made[50]
    layers = quantisable(pipe.unet, KEEP)
    assert layers
    for name in layers:
        rows = artefacts["base"][f"{name}|weight"].flatten(1)
        assert all(len(row.unique()) == 2 and row.abs().unique().numel() == 1 for row in rows)
    with accelerate(pipe, recipe, artefacts=artefacts):
        inside = {k: m for k, m in pipe.unet.named_modules() if isinstance(m, QuantisedLayer)}
    assert set(inside) == set(layers)
    assert {(m.weight_bits, m.activation_bits) for m in inside.values()} == {(1, 8)}
    assert not torch.equal(inside["mid_block.resnets.0.conv1"].bias, layers["mid_block.resnets.0.conv1"].bias)
    own, none = (recipe.precision.model_bytes(pipe.unet), replace(recipe.precision, keep=("*",)).model_bytes(pipe.unet))
    sizes = [m.weight for m in layers.values()]
    assert none - own == sum(4 * w.numel() - (w.numel() + 7) // 8 - 4 * len(w) for w in sizes)


def test_training_brings_the_images_nearer(made, pipe, digits):
    def images(recipe, artefacts=None):
        with accelerate(pipe, recipe, artefacts=artefacts):
            return generate(pipe, digits, recipe, 5, 0, 16, 16)

    full = images(Recipe(DDIM))
    error = {k: (images(*own) - full).square().mean().item() for k, own in made.items()}
    assert error[50] < 0.8 * error[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight_bits": 2}, "weight_bits is 2; allowed for BinaryDM: 1"),
        ({"split": True}, "trains its weights; rounding, split"),
        ({"tau": -1.0}, r"precision.tau is -1.0; allowed: a number >= 0.0"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(ConfigError, match=said):
        BinaryDM(**settings)
