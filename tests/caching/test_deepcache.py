"""DeepCache on real trajectories: schedule, counted cost, multi-stage samplers, guidance that changes the batch."""

from __future__ import annotations

import math

import pytest
import torch

from accel.caching import BranchTable, DeepCache
from accel.caching.schedules import Explicit, NonUniform, Squares
from accel.caching.unet_view import ShallowView
from accel.core.macs import count_macs
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.guidance import CFG, IntervalCFG
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
        assert drops
        assert not any(drop.__self__ for drop in drops), "the cache still holds tensors after the last step"


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


# --- other schedules, tables, numberings


def test_full_steps_are_those_of_the_schedule(pipe, run, ddim):
    for schedule in (NonUniform(3, 4), Explicit((0, 1, 5)), Squares()):
        with accelerate(pipe, Recipe(ddim(8), cache=DeepCache(branch=2, schedule=schedule))) as traced:
            run()
        assert {e.step for e in traced.trace if e.mode == "full"} == schedule.full(8)


@pytest.mark.parametrize("numbering", [("paper", 3), ("pypi", 2), ("ddpm_code", 1)])
def test_numberings_name_the_same_branch(pipe, run, ddim, numbering):
    named, branch = numbering
    with accelerate(pipe, Recipe(ddim(4), cache=DeepCache(2, 3))):
        expected = run()
    with accelerate(pipe, Recipe(ddim(4), cache=DeepCache(2, branch, numbering=named))):
        assert torch.equal(run(), expected)


def test_a_table_of_one_branch_is_that_schedule(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(6), cache=DeepCache(3, 2))):
        expected = run()
    with accelerate(pipe, Recipe(ddim(6), cache=BranchTable([0, 2, 2, 0, 2, 2]))):
        assert torch.equal(run(), expected)


def test_a_table_runs_at_every_step_what_it_says(pipe, run, ddim):
    table = [0, 1, 3, 0, 0, 9, 1]
    with accelerate(pipe, Recipe(ddim(7), cache=BranchTable(table)), count_macs=True) as counted:
        run()
    rows = counted.trace[0].rows
    assert [e.macs for e in counted.trace] == [rows * macs_of(pipe, b or 1)[b > 0] for b in table]


def test_each_branch_of_a_table_reuses_the_last_full_step(pipe, run, ddim):
    """Step 2 by branch 3 is what uniform caching of branch 3 makes of the same inputs, whatever step 1 was."""
    seen = {}
    for name, cache in (
        ("table", BranchTable([0, 0, 3])),
        ("explicit", DeepCache(branch=3, schedule=Explicit((0, 1)))),
    ):
        with accelerate(pipe, Recipe(ddim(3), cache=cache)):
            seen[name] = run()
    assert torch.equal(seen["table"], seen["explicit"])


REFUSED = {
    "cached first": (lambda: BranchTable([1, 0]), "beginning with 0"),
    "empty": (lambda: BranchTable([]), "beginning with 0"),
    "negative": (lambda: BranchTable([0, -1]), "cache.table is -1"),
    "numbering": (lambda: DeepCache(2, 1, numbering="pipy"), "pypi"),
    "no live skip": (lambda: DeepCache(2, 0), "cache.branch is 0"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        (BranchTable([0, 1, 1]), "has 3 steps, but the sampler has 8"),
        (BranchTable([0, *[10] * 7]), r"cache.branch is 10, but 'base' has 9 skip connections; allowed: 1\.\.9"),
        (DeepCache(2, 9, numbering="pypi"), "cache.branch is 10"),
        (DeepCache(branch=1, schedule=Explicit((0, 8))), r"has 8, but the sampler has 8 steps"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(pipe, ddim, cache, said):
    with pytest.raises(ConfigError, match=said):
        Recipe(ddim(8), cache=cache).check(pipe)
