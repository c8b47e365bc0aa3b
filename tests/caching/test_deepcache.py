"""DeepCache on real trajectories: schedule, counted cost, multi-stage samplers, guidance that changes the batch."""

from __future__ import annotations

import math

import pytest
import torch

from accel.caching import DeepCache
from accel.caching.unet_view import ShallowView
from accel.evaluation.macs import count_macs
from accel.guidance import CFG, IntervalCFG
from accel.recipe import Recipe, accelerate
from accel.samplers import DiffusersSampler


def macs_of(pipe, branch: int) -> tuple[int, int]:
    """MACs of one full and one shallow evaluation of one row, counted on the bare network."""
    inputs = {"sample": torch.randn(1, 1, 16, 16), "timestep": 5, "class_labels": torch.tensor([1])}
    with torch.no_grad():
        view = ShallowView(pipe.unet, branch)
        (_, full), stored = view.capture(lambda: count_macs(lambda: pipe.unet(**inputs)))
        _, shallow = count_macs(lambda: view.forward(stored, **inputs))
    return full, shallow


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("branch", [1, 3, 9])
def test_counted_macs_follow_the_schedule(pipe, run, ddim, interval, branch):
    steps = 10
    with accelerate(pipe, Recipe(ddim(steps), cache=DeepCache(interval, branch)), count_macs=True) as counted:
        run()
    full_steps = math.ceil(steps / interval)
    full, shallow = macs_of(pipe, branch)
    assert counted.macs == full_steps * full + (steps - full_steps) * shallow
    assert counted.nfe == steps
    assert [e.mode == "full" for e in counted.trace] == [i % interval == 0 for i in range(steps)]


def test_heun_decides_by_step_and_keeps_a_cache_for_each_stage(pipe, run):
    """PyPI's DeepCache makes 1 full and 18 shallow calls here; both stages of a full step must be full."""
    sampler = DiffusersSampler("HeunDiscreteScheduler", 10)
    with accelerate(pipe, Recipe(sampler, cache=DeepCache(2, 2))) as traced:
        run()
    modes = "".join(e.mode[0] for e in traced.trace)
    assert modes == "ffssffssffssffssffs"


def test_interval_guidance_reuses_the_right_half(pipe, run, ddim):
    """Guidance ends at step 4 of 8: the conditional half of the doubled cache serves the single batch."""
    with accelerate(pipe, Recipe(ddim(8), guidance=CFG(2.0))) as probe:
        run(2.0)
    cut = (probe.trace[3].sigma + probe.trace[4].sigma) / 2
    recipe = Recipe(ddim(8), guidance=IntervalCFG(2.0, sigma_lo=cut), cache=DeepCache(3, 2))
    with accelerate(pipe, recipe) as traced:
        run(2.0)
    assert [e.rows for e in traced.trace] == [4, 4, 4, 4, 2, 2, 2, 2]
    assert "".join(e.mode[0] for e in traced.trace) == "fssfssfs"

    # The other way round: guidance begins at step 4, where nothing is stored for the unconditional half.
    recipe = Recipe(ddim(8), guidance=IntervalCFG(2.0, sigma_hi=cut), cache=DeepCache(3, 2))
    with accelerate(pipe, recipe) as traced:
        run(2.0)
    assert "".join(e.mode[0] for e in traced.trace) == "fssffsfs"


def test_stored_tensors_are_freed_at_the_end(pipe, run, ddim):
    cache = DeepCache(2, 2)
    with accelerate(pipe, Recipe(ddim(4), cache=cache)) as traced:
        run()
        drops = list(traced.clock._resets)
        assert len(drops) == 1
        assert drops[0].__self__ == {}, "the cache still holds tensors after the last step"


def test_batched_guidance_equals_two_calls(pipe, ddim):
    """Sequential CFG keeps a cache for each call of a stage: same result as the doubled batch."""
    x, labels, null = torch.randn(2, 1, 16, 16), torch.tensor([1, 2]), torch.tensor([10, 10])
    recipe = Recipe(ddim(4), cache=DeepCache(2, 2))

    def loop(sequential: bool):
        pipe.scheduler.set_timesteps(4)
        latents = x.clone()
        for t in pipe.scheduler.timesteps:
            if sequential:
                u = pipe.unet(latents, t, class_labels=null, return_dict=False)[0]
                c = pipe.unet(latents, t, class_labels=labels, return_dict=False)[0]
            else:
                both = pipe.unet(
                    torch.cat([latents] * 2), t, class_labels=torch.cat([null, labels]), return_dict=False
                )[0]
                u, c = both.chunk(2)
            latents = pipe.scheduler.step(u + 2 * (c - u), t, latents, return_dict=False)[0]
        return latents

    with torch.no_grad(), accelerate(pipe, recipe) as traced:
        batched = loop(sequential=False)
        sequential = loop(sequential=True)
        assert [e.mode[0] for e in traced.trace] == list("ffssffss")
    torch.testing.assert_close(batched, sequential, atol=1e-3, rtol=0)
