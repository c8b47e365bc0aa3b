"""Quantised products of attention: PyTorch's own at many bits, levels at few, ranges of what they saw, exact counts."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, snapshot
from torch import nn

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.precision import FakeQuant
from accel.precision.simulated.attention import FACTORS, SDPA, QuantisedProducts, attentions, observe_products
from accel.precision.simulated.bits import bit_operations
from accel.precision.simulated.calibration import Observer
from accel.precision.simulated.quantised import InputQuantiser
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def products(bits: int, *factors: torch.Tensor) -> QuantisedProducts:
    limits = [torch.stack(torch.aminmax(x)).reshape(1, 1, 2) for x in factors]
    return QuantisedProducts(bits, {k: InputQuantiser(bits, own) for k, own in zip(FACTORS, limits, strict=True)})


MASK = normal(7, 9, seed=5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": MASK},
        {"attn_mask": MASK > -0.5},
        {"attn_mask": MASK > -0.5, "enable_gqa": True},
    ],
    ids=["plain", "scale", "causal", "added", "boolean", "groups"],
)
def test_many_bits_are_pytorchs_own(settings):
    heads = 2 if "enable_gqa" in settings else 4
    q, k, v = normal(2, 4, 7, 8), normal(2, heads, 9, 8, seed=1), normal(2, heads, 9, 8, seed=2)
    found = products(16, q, k, v)(q, k, v, **settings)
    torch.testing.assert_close(found, SDPA(q, k, v, **settings), atol=2e-3, rtol=1e-3)


def test_few_bits_are_the_product_of_levels():
    """Step by step in float64 from the integers."""
    q, k, v = normal(1, 1, 5, 4), normal(1, 1, 6, 4, seed=1), normal(1, 1, 6, 4, seed=2)
    own = products(4, q, k, v)

    def levels(x, name):
        ((scale, zero),) = own.factors[name].parameters[0]
        return ((x / scale).round() + zero).clamp(0, 15).double().sub(zero) * scale

    scores = levels(q, "|q") @ levels(k, "|k").transpose(-2, -1) / 2
    chances = (scores.softmax(-1) * 15).round() / 15
    torch.testing.assert_close(own(q, k, v).double(), chances @ levels(v, "|v"), atol=1e-5, rtol=1e-5)


def test_ranges_are_those_of_queries_keys_and_values(pipe, run):
    """In this network they are the outputs of three linear layers."""
    modules = attentions(pipe.unet)
    assert modules
    observers = {name + factor: Observer(dim=-1) for name in modules for factor in FACTORS}
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        getattr(m, f"to_{factor[1]}").register_forward_hook(
            lambda module, args, output, key=name + factor: seen.setdefault(key, []).append(output)
        )
        for name, m in modules.items()
        for factor in FACTORS
    ]
    plain = run()
    seen.clear()
    with observe_products(modules, observers):
        assert torch.equal(run(), plain), "looking changes nothing"
    for hook in hooks:
        hook.remove()
    for key, observer in observers.items():
        every = torch.cat([x.flatten() for x in seen[key]])
        assert torch.equal(observer.ends[0, 0], torch.stack(torch.aminmax(every)))


def calibrated(pipe, run, bits):
    recipe = Recipe(DDIM, precision=FakeQuant(32, 32, attention_bits=bits))
    return recipe, recipe.precision.calibrate(pipe, recipe, lambda *drawn: run())


def test_fewer_bits_err_more_and_all_comes_off(pipe, run):
    before = snapshot(pipe)
    full, errors = None, []
    with accelerate(pipe, Recipe(DDIM)):
        full = run()
    for bits in (12, 8, 4):
        recipe, made = calibrated(pipe, run, bits)
        with accelerate(pipe, recipe, artefacts=made):
            errors.append((run() - full).square().mean().item())
    assert 0 < errors[0] < errors[1] < errors[2]
    assert_same(snapshot(pipe), before)


def test_bit_operations_by_hand(pipe, run):
    recipe, made = calibrated(pipe, run, 8)
    tokens: list[torch.Size] = []
    with accelerate(pipe, recipe, artefacts=made), bit_operations([pipe.unet]) as counted:
        hooks = [
            m.to_q.register_forward_hook(lambda module, args, output: tokens.append(output.shape))
            for m in attentions(pipe.unet).values()
        ]
        run(steps=3)
        for hook in hooks:
            hook.remove()
    by_hand = sum(2 * batch * length * length * width for batch, length, width in tokens)
    layers = counted.macs - by_hand
    assert layers > 0, "convolutions and linear layers are counted, too"
    assert counted.operations == layers * 32**2 + by_hand * 8**2


def test_networks_without_attention_are_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

    with pytest.raises(IncompatibleError, match="has no attention to quantise"):
        FakeQuant(attention_bits=8).check({"base": Plain()}, Recipe(DDIM))
    with pytest.raises(ConfigError, match="attention_bits"):
        FakeQuant(attention_bits=1)
