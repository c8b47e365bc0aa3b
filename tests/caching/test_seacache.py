"""SeaCache: its filter by numpy, and what it decides and reuses by hand, a sample at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny import Proportional, pixels, run_pixels

from accel.caching import SeaCache
from accel.caching.seacache import filtered, mixture, sea_gain
from accel.core.recipe import Recipe, accelerate
from accel.core.trajectory import Trajectory
from accel.errors import ConfigError, IncompatibleError
from accel.samplers import DiffusersSampler
from accel.testing.suites import flow_pipeline

STEPS, SAMPLES = 12, 3
DDIM = DiffusersSampler("DDIMScheduler", STEPS, "ddim", {"set_alpha_to_one": True, "clip_sample": False})


def gain_by_numpy(sizes, a, b, power):
    """The authors' form: a S / (a^2 S + b^2), S = 1 / (|f|^p + 1e-16), along each axis."""
    gain = np.ones(())
    for size in sizes:
        s = 1 / (np.abs(np.fft.fftfreq(size)) ** power + 1e-16)
        gain = np.multiply.outer(gain, a * s / (a**2 * s + b**2 + 1e-16))
    return gain / gain.mean()


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.8, 0.6), (0.1, 0.995), (0.01, 1.0)])
@pytest.mark.parametrize("power", [2.0, 3.0])
def test_the_filter_is_the_authors(a, b, power):
    found = sea_gain((4, 6), a, b, power)
    np.testing.assert_allclose(found.numpy(), gain_by_numpy((4, 6), a, b, power), rtol=1e-9)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = np.fft.ifft2(np.fft.fft2(x.numpy()) * gain_by_numpy((4, 6), a, b, power)).real
    np.testing.assert_allclose(filtered(x, found).numpy(), wanted, atol=1e-12)


def test_at_the_ends_it_passes_everything_and_the_mean_alone():
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(filtered(x, sea_gain((4, 4), 1.0, 0.0, 2.0)), x)
    noise = filtered(x, sea_gain((4, 4), 0.0, 1.0, 2.0))
    torch.testing.assert_close(noise, 16 * x.mean().expand_as(x), rtol=1e-4, atol=1e-4)


def test_the_mixture_is_that_of_the_networks_input():
    clock = Trajectory()
    scheduler = DDIM.build(DDIMScheduler(prediction_type="v_prediction").config)
    scheduler.set_timesteps(STEPS)
    clock.begin(scheduler)
    a, b = mixture(clock)
    alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    assert (a, b) == (pytest.approx(math.sqrt(alpha_bar)), pytest.approx(math.sqrt(1 - alpha_bar)))
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(4)
    clock.begin(flow)
    clock.stage = 2
    assert mixture(clock) == (pytest.approx(1 - float(flow.sigmas[2])), pytest.approx(float(flow.sigmas[2])))


def by_hand(pipe, cache, sample):
    scheduler, hits, seen, kept, total = DDIM.build(pipe.scheduler.config), [], None, None, 0.0
    scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(sample), dtype=torch.float64)
    for k, t in enumerate(scheduler.timesteps):
        alpha_bar = float(scheduler.alphas_cumprod[int(t)])
        gain = gain_by_numpy((6, 6), math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), cache.power)
        y = np.fft.ifft2(np.fft.fft2(x.numpy()) * gain).real
        if seen is not None:
            total += np.abs(y - seen).mean() / np.abs(seen).mean()
        seen = y
        if k in (0, STEPS - 1) or total >= cache.threshold:
            kept, total = pipe.unet(x, t, torch.tensor([0]))[0], 0.0
        else:
            hits.append(k)
        x = scheduler.step(kept, t, x).prev_sample
    return x, hits


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_what_is_decided_and_reused_is_what_the_paper_says(power):
    pipe = pixels(Proportional(sample_size=6), DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    cache = SeaCache(0.5, power=power)
    with accelerate(pipe, Recipe(DDIM, cache=cache)) as run:
        found = run_pixels(pipe, labels=(0,) * SAMPLES)
    wanted = [by_hand(pipe, cache, i) for i in range(SAMPLES)]
    torch.testing.assert_close(found, torch.cat([x for x, _ in wanted]), rtol=0, atol=1e-10)
    reused = {(event.step, i) for event in run.events for i in event.samples}
    assert reused == {(k, i) for i, (_, own) in enumerate(wanted) for k in own}
    assert 0 < len(reused) < SAMPLES * (STEPS - 2)


def test_a_flow_begins_in_pure_noise():
    pipe = flow_pipeline()
    sampler = DiffusersSampler("FlowMatchEulerDiscreteScheduler", 6)
    watched, found = SeaCache().threshold_rule.watch(Recipe(sampler), None)
    with accelerate(pipe, Recipe(sampler, cache=watched)):
        run_pixels(pipe, labels=(1, 2))
    assert len(found) == 2 * (1 + 2 + 3 + 3)
    assert all(math.isfinite(value) and value > 0 for value in found)


def test_packed_tokens_are_refused():
    from accel.core.denoiser import Inputs, Node

    node = Node("base", torch.nn.Linear(1, 1), Trajectory(), None)
    with pytest.raises(IncompatibleError, match=r"Linear takes rows of tokens; use cache=teacache"):
        SeaCache().signal(node, None).before(Inputs({"input": torch.zeros(2, 16, 4)}, "input"))
    with pytest.raises(ConfigError, match=r"cache\.power is -1"):
        SeaCache(power=-1.0)
    assert (SeaCache().label, SeaCache(0.2, power=3.0).label) == ("seacache(0.3)", "seacache(0.2,p3)")
