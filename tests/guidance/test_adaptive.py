"""Adaptive Guidance: where it switches, what it then evaluates, and what a user sees of it."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import Rotating, pixels, run_pixels

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.guidance import CFG, AdaptiveGuidance, IntervalCFG
from accel.samplers import DiffusersSampler

OPTIONS = {"set_alpha_to_one": True, "clip_sample": False}
DDIM = DiffusersSampler("DDIMScheduler", 10, "ddim", OPTIONS)
T = [999 - 100 * i for i in range(10)]
THRESHOLD = 0.9
# The cosine of class c at t is cos(0.5 (c + 1) t / 1000).
SWITCH = [next(i for i, t in enumerate(T) if math.cos(0.5 * (c + 1) * t / 1000) >= THRESHOLD) for c in range(3)]


@pytest.fixture
def rotating():
    return pixels(Rotating(), DDIMScheduler(prediction_type="sample", clip_sample=False))


def images(pipe, guidance, **call):
    with accelerate(pipe, Recipe(DDIM, guidance=guidance)) as run:
        return run_pixels(pipe, guidance.pipeline_scale, **call), run


def test_each_sample_switches_where_its_own_cosine_crosses(rotating):
    assert SWITCH == [1, 6, 7]
    _, run = images(rotating, AdaptiveGuidance(3.0, THRESHOLD, "x0"))
    assert {e.name for e in run.events} == {"guidance off"}
    assert [(e.step, e.samples) for e in run.events] == [(s, (i,)) for i, s in enumerate(SWITCH)]
    assert [e.timestep for e in run.events] == [T[s] for s in SWITCH]
    rows = [sum(e.rows for e in run.trace if e.step == i) for i in range(10)]
    assert rows == [3 + sum(s >= i for s in SWITCH) for i in range(10)], "the switch itself pays for both"
    assert run.nfe == sum(rows) / 3


def test_after_the_switch_the_prediction_is_conditional(rotating):
    """By hand: DDIM with the guided prediction before, the conditional one from the switch on."""
    found, _ = images(rotating, AdaptiveGuidance(3.0, THRESHOLD, "x0"))
    scheduler = DDIM.build(rotating.scheduler.config)
    for i, switch in enumerate(SWITCH):
        scheduler.set_timesteps(10)
        x = torch.randn(1, 1, 1, 2, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for step, t in enumerate(scheduler.timesteps):
            u, c = (rotating.unet(x, t, torch.tensor([y]))[0] for y in (3, i))
            x = scheduler.step(c if step >= switch else u + 3.0 * (c - u), t, x).prev_sample
        torch.testing.assert_close(found[i : i + 1], x, rtol=0, atol=1e-12)


def test_batch_decision_switches_all_at_the_mean(rotating):
    _, run = images(rotating, AdaptiveGuidance(3.0, THRESHOLD, "x0", decision="batch"))
    means = [sum(math.cos(0.5 * (c + 1) * t / 1000) for c in range(3)) / 3 for t in T]
    switch = next(i for i, m in enumerate(means) if m >= THRESHOLD)
    assert [(e.step, e.samples) for e in run.events] == [(switch, (0, 1, 2))]
    assert [e.rows for e in run.trace] == [6] * (switch + 1) + [3] * (9 - switch)


@pytest.mark.parametrize("min_steps", [0, 4])
def test_the_first_steps_are_guided_whatever_the_cosine(rotating, min_steps):
    _, run = images(rotating, AdaptiveGuidance(3.0, -1.0, min_steps=min_steps))
    assert [e.rows for e in run.trace] == [6] * (min_steps + 1) + [3] * (9 - min_steps)


def test_a_threshold_above_1_is_cfg_bit_for_bit(small, run_small):
    with accelerate(small, Recipe(DDIM, guidance=CFG(2.0))):
        wanted = run_small(2.0)
    for space in ("x0", "eps", "v"):
        with accelerate(small, Recipe(DDIM, guidance=AdaptiveGuidance(2.0, 1.1, space))) as traced:
            assert torch.equal(run_small(2.0), wanted)
        assert traced.nfe == 20
        assert traced.events == []


def test_spaces_decide_differently(small, run_small):
    """The cosine of noise predictions is near 1 at once."""
    steps = {}
    for space in ("x0", "eps"):
        with accelerate(small, Recipe(DDIM, guidance=AdaptiveGuidance(2.0, 0.99, space, min_steps=0))) as traced:
            run_small(2.0)
        steps[space] = min(e.step for e in traced.events)
    assert steps["eps"] == 0
    assert steps["x0"] > 0


def test_fewer_rows_under_a_cache_are_the_right_rows(small, run_small):
    """An image is the same alone and in a batch whose other samples switch elsewhere."""
    labels = (0, 1, 2, 3)
    for threshold in (0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95):
        guidance = AdaptiveGuidance(2.0, threshold)
        with accelerate(small, Recipe(DDIM, guidance=guidance, cache=DeepCache(3, 2))) as cached:
            together = run_small(2.0, labels)
            switches = {e.step for e in cached.events}
            if len(switches) > 1 and any(s % 3 != 2 for s in sorted(switches)[:-1]):  # ragged in a cached step
                break
    else:
        pytest.fail("all samples switch at once at every threshold: nothing is ragged")
    assert {"full", "shallow"} == {e.mode for e in cached.trace}
    with accelerate(small, Recipe(DDIM, guidance=guidance, cache=DeepCache(3, 2))):
        alone = torch.cat([run_small(2.0, labels[i : i + 1], i) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_the_last_switch_leaves_interval_guidance(small, run_small):
    with accelerate(small, Recipe(DDIM)) as plain:
        run_small()
    border = plain.trace[3].sigma
    with accelerate(small, Recipe(DDIM, guidance=AdaptiveGuidance(2.0, -1.0, min_steps=3))) as traced:
        adaptive = run_small(2.0)
    with accelerate(small, Recipe(DDIM, guidance=IntervalCFG(2.0, border))):
        interval = run_small(2.0)
    assert traced.nfe == 14  # the switch paid for both
    torch.testing.assert_close(adaptive, interval, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("setting", "said"), [
    ({"threshold": -2}, "guidance.threshold is -2; allowed: a number >= -1"),
    ({"min_steps": -1}, "guidance.min_steps is -1"),
    ({"space": "x"}, "unknown guidance.space 'x'.*Allowed: eps, v, x0"),
    ({"decision": "sample"}, "unknown guidance.decision 'sample'. Did you mean per_sample"),
    ({"scale": 0.5}, "guidance.scale is 0.5"),
])  # fmt: skip
def test_bad_settings(setting, said):
    with pytest.raises(ConfigError, match=said):
        AdaptiveGuidance(**setting)
