"""FasterCache on a tiny UNet with cross-attention, held against the plain network with hooks on its self-attentions."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from tiny import dit_pipeline

from accel.caching import FasterCache
from accel.caching.fastercache import amplified, skips, split
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, AdaptiveGuidance
from accel.samplers import DiffusersSampler
from accel.testing import contract_checks
from accel.testing.suites import text_pipeline, unet

STEPS, SAMPLES, SCALE = 12, 2, 3.0
DDIM = DiffusersSampler("DDIMScheduler", STEPS, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
CACHE = FasterCache(guidance_interval=3, turn=0.7)


@pytest.fixture(scope="module")
def pipe():
    return text_pipeline().to(torch.float64)


def images(pipe, cache, guidance, first=0, count=SAMPLES, count_macs=False):
    generators = [torch.Generator().manual_seed(i) for i in range(first, first + count)]
    recipe = Recipe(DDIM, guidance=guidance, cache=cache)
    with accelerate(pipe, recipe, count_macs=count_macs) as run:
        made = pipe(list(range(first, first + count)), None, STEPS, recipe.guidance_scale, generators, output_type="pt")
    return made.images, run


def by_hand(pipe):
    """The guided images: attention between its runs is F + (F - F') / 2, and u is c + the kept difference."""
    net, scheduler = pipe.unet, DDIM.build(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    attention = {k: k % 2 == 0 or k < 4 or k == 9 for k in range(STEPS)}  # at 9 both halves run again
    whole = {k: k % 3 == 0 or k < 5 for k in range(STEPS)}
    outputs, now = defaultdict(list), {}

    def hook(module, args, output):
        halves = "uc" if now["both"] else "c"
        if now["runs"]:
            for half, own in zip(halves, output.chunk(len(halves)), strict=True):
                outputs[module, half].append(own)
            return None
        last = [outputs[module, half][-2:] for half in halves]
        return torch.cat([b + 0.5 * (b - a) for a, b in last])

    hooks = [m.register_forward_hook(hook) for name, m in net.named_modules() if name.endswith("attn1")]
    seeds = [torch.Generator().manual_seed(i) for i in range(SAMPLES)]
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=seed, dtype=torch.float64) for seed in seeds])
    texts = pipe._condition(torch.arange(SAMPLES), True)["encoder_hidden_states"]
    f = np.fft.fftfreq(8, 1 / 8)
    near = f[:, None] ** 2 + f**2 <= 1
    low = high = None
    for k, t in enumerate(scheduler.timesteps):
        now |= {"runs": attention[k], "both": whole[k]}
        if whole[k]:
            u, c = net(torch.cat([x, x]), t, texts).sample.chunk(2)
            spectrum = np.fft.fft2((u - c).numpy())
            low, high = (torch.from_numpy(np.fft.ifft2(spectrum * mask).real) for mask in (near, ~near))
        else:
            c = net(x, t, texts[SAMPLES:]).sample
            low, high = (1.1 * low, high) if k < 0.7 * STEPS else (low, 1.1 * high)
            u = c + low + high
        x = scheduler.step(u + SCALE * (c - u), t, x).prev_sample
    for one in hooks:
        one.remove()
    return x


@torch.no_grad()
def test_what_is_extrapolated_is_what_the_paper_says(pipe):
    found, run = images(pipe, CACHE, CFG(SCALE), count_macs=True)
    torch.testing.assert_close(found, by_hand(pipe), rtol=0, atol=1e-8)
    assert [e.rows // SAMPLES for e in run.trace] == [2, 2, 2, 2, 2, 1, 2, 1, 1, 2, 1, 1]
    assert [e.mode for e in run.trace] == ["full"] * 5 + [
        "partial",
        "full",
        "partial",
        "full",
        "full",
        "full",
        "partial",
    ]
    whole = run.trace[0].macs
    assert [e.macs < whole for e in run.trace] == [r == 1 for r in (2, 2, 2, 2, 2, 1, 2, 1, 1, 2, 1, 1)]


def test_of_interval_1_it_is_the_plain_pipeline_bit_for_bit(pipe):
    none = FasterCache(interval=1, guidance_interval=1)
    assert torch.equal(images(pipe, none, CFG(SCALE))[0], images(pipe, None, CFG(SCALE))[0])


@pytest.mark.parametrize("guidance", [None, AdaptiveGuidance(SCALE, 0.5, space="v")])
def test_a_sample_alone_is_what_it_is_in_a_batch(pipe, guidance):
    found, _ = images(pipe, CACHE, guidance, count=3)
    alone = torch.cat([images(pipe, CACHE, guidance, first=i, count=1)[0] for i in range(3)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-8)


def test_with_guidance_left_alone_it_keeps_the_parts_of_a_batch_apart():
    assert CACHE.joins_parts
    alone = FasterCache(begin=0.0, guidance_interval=1)
    assert not alone.joins_parts
    contract_checks(alone)["parts"]()


def test_which_steps_lie_between():
    assert [k for k in range(10) if skips(k, 10, 0.34, 5)] == [4, 6, 7, 8, 9]
    assert not any(skips(k, 10, 0.0, 1) for k in range(10))
    assert [k for k in range(6) if skips(k, 6, 0.0, 2)] == [1, 3, 5]


def test_low_frequencies_are_those_about_0():
    x = torch.arange(10, dtype=torch.float64)
    wave = lambda n: torch.cos(2 * torch.pi * n * x / 10)[None, None, None, :].expand(1, 1, 10, 10)  # noqa: E731
    low, high = split(wave(2) + 3 * wave(3))
    torch.testing.assert_close(low, wave(2), atol=1e-9, rtol=0)
    torch.testing.assert_close(high, 3 * wave(3), atol=1e-9, rtol=0)
    one = torch.ones(1)
    assert [float(v) for v in (*amplified(one, one, 2.0, True), *amplified(one, one, 2.0, False))] == [2, 1, 1, 2]
    with pytest.raises(IncompatibleError, match=r"use cache\.guidance_interval=1"):
        split(torch.zeros(2, 16, 4))


def test_where_it_finds_attention(pipe):
    names = FasterCache().modules(pipe.unet, "base")
    assert names
    assert all(name.endswith("attn1") for name in names)
    assert all(".attentions." in name for name in FasterCache().modules(unet(), "base"))
    assert all(name.endswith("attn1") for name in FasterCache().modules(dit_pipeline().transformer, "base"))
    with pytest.raises(IncompatibleError, match=r"has none; use cache=easycache"):
        FasterCache().modules(torch.nn.Sequential(), "base")
    with pytest.raises(ConfigError, match=r"cache\.interval is 0"):
        FasterCache(interval=0)
    assert FasterCache().label == "fastercache(2,5)"
