"""Adaptive projected guidance: its update by hand, and what is left when nothing is to be done."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import Proportional, pixels, run_pixels

from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.guidance import APG, CFG
from accel.guidance.apg import apg
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 5, "ddim", {"set_alpha_to_one": True, "clip_sample": False})


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def dot(a, b):
    return (a * b).flatten(1).sum(1)


@pytest.mark.parametrize("norm", [0.0, float("inf")])
def test_neutral_update_is_the_difference_itself(norm):
    difference, cond = pair()
    assert torch.equal(apg(difference, cond, 0.0, eta=1.0, norm=norm, momentum=0.0)[0], difference)


def test_without_the_parallel_part_the_update_is_orthogonal():
    difference, cond = pair()
    kept, _ = apg(difference, cond, 0.0, eta=0.0, norm=math.inf, momentum=0.0)
    torch.testing.assert_close(dot(kept, cond), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(dot(kept, difference - kept), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    half, _ = apg(difference, cond, 0.0, eta=0.5, norm=math.inf, momentum=0.0)
    torch.testing.assert_close(half, (difference + kept) / 2)


def test_norm_is_clipped_for_each_sample():
    difference, cond = pair()
    difference[0] *= 0.01
    clipped, _ = apg(difference, cond, 0.0, eta=1.0, norm=2.0, momentum=0.0)
    assert torch.equal(clipped[0], difference[0])
    torch.testing.assert_close(dot(clipped, clipped)[1:], torch.full((2,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(clipped[1] / clipped[1].norm(), difference[1] / difference[1].norm())


def test_momentum_runs_before_clip_and_projection():
    settings = {"eta": 0.0, "norm": 1.0, "momentum": -0.5}
    (first, cond), (second, other) = pair(0), pair(1)
    _, past = apg(first, cond, 0.0, **settings)
    found, past = apg(second, other, past, **settings)
    summed = second - 0.5 * first
    clipped = summed / dot(summed, summed).sqrt().reshape(-1, 1, 1, 1)
    along = (dot(clipped, other) / dot(other, other)).reshape(-1, 1, 1, 1) * other
    torch.testing.assert_close(found, clipped - along)
    torch.testing.assert_close(past, summed)


def test_neutral_setting_is_cfg_bit_for_bit(small, run_small):
    with accelerate(small, Recipe(DDIM, guidance=CFG(3.0))):
        wanted = run_small(3.0)
    for norm in (0.0, float("inf")):
        with accelerate(small, Recipe(DDIM, guidance=APG(3.0, 1.0, norm, 0.0))):
            assert torch.equal(run_small(3.0), wanted)
    with accelerate(small, Recipe(DDIM, guidance=APG(3.0, 0.9, 0.0, 0.0))):
        assert not torch.equal(run_small(3.0), wanted)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_sampling_is_the_formula_on_x0(kind):
    """By hand in float64, whatever the network predicts."""
    pipe = pixels(Proportional(num_class_embeds=3), DDIMScheduler(prediction_type=kind, clip_sample=False))
    method = APG(3.0, eta=0.3, norm=0.8, momentum=-0.4)
    with accelerate(pipe, Recipe(DDIM, guidance=method)):
        found = run_pixels(pipe, 3.0, labels=(0, 1))
    scheduler, past = DDIM.build(pipe.scheduler.config), 0.0
    scheduler.set_timesteps(5)
    sources = [torch.Generator().manual_seed(i) for i in range(2)]
    x = torch.cat([torch.randn(1, 1, 2, 2, generator=g, dtype=torch.float64) for g in sources])
    for t in scheduler.timesteps:
        a = scheduler.alphas_cumprod[t].double()
        alpha, sigma = a.sqrt(), (1 - a).sqrt()
        to_x0 = {"sample": (0, 1), "epsilon": (1 / alpha, -sigma / alpha), "v_prediction": (alpha, -sigma)}[kind]
        u, c = (to_x0[0] * x + to_x0[1] * pipe.unet(x, t, torch.full((2,), y))[0] for y in (2, 0))
        update, past = apg(c - u, c, past, method.eta, method.norm, method.momentum)
        x0 = c + 2.0 * update
        x = scheduler.step((x0 - to_x0[0] * x) / to_x0[1], t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("setting", "said"), [
    ({"eta": -0.1}, "guidance.eta is -0.1"),
    ({"norm": -1}, "guidance.norm is -1"),
    ({"momentum": -1.0}, "guidance.momentum is -1; allowed: between -1 and 1"),
    ({"momentum": 1.5}, "guidance.momentum is 1.5"),
])  # fmt: skip
def test_bad_settings(setting, said):
    with pytest.raises(ConfigError, match=said):
        APG(**setting)
