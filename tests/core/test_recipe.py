"""The seams: what `accelerate` counts, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.guidance import CFG, IntervalCFG
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid
from accel.stitching import TStitch


def sampler(name: str, steps: int, **options) -> DiffusersSampler:
    return DiffusersSampler(name, steps, options=options)


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("DDIMScheduler", 6), ("EulerDiscreteScheduler", 6), ("HeunDiscreteScheduler", 11), ("UniPCMultistepScheduler", 6),
     ("KDPM2DiscreteScheduler", 11), ("DEISMultistepScheduler", 6), ("DPMSolverMultistepScheduler", 6)],
)  # fmt: skip
def test_nfe_is_counted_for_one_and_two_evaluation_samplers(pipe, run, name, evaluations):
    with accelerate(pipe, Recipe(sampler(name, 6))) as counted:
        run()
    assert counted.nfe == evaluations
    assert counted.clock.num_steps == 6
    stages = 2 if evaluations == 11 else 1
    assert [e.step for e in counted.trace] == [i // stages for i in range(evaluations)]


def test_cfg_counts_rows_and_interval_skips_them(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(8), guidance=CFG(3.0))) as full:
        run(3.0)
    assert full.nfe == 16
    with accelerate(pipe, Recipe(ddim(8), guidance=IntervalCFG(3.0, 0.3, 5.0))) as part:
        run(3.0)
    inside = sum(0.3 < e.sigma <= 5.0 for e in part.trace)
    assert 0 < inside < 8
    assert part.nfe == 8 + inside


def test_interval_over_everything_equals_cfg_and_outside_is_conditional(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(5), guidance=CFG(3.0))):
        cfg = run(3.0)
    with accelerate(pipe, Recipe(ddim(5), guidance=IntervalCFG(3.0))):
        assert torch.equal(run(3.0), cfg)
    with accelerate(pipe, Recipe(ddim(5), guidance=IntervalCFG(3.0, 1e6, 2e6))):
        never = run(3.0)
    with accelerate(pipe, Recipe(ddim(5))):
        torch.testing.assert_close(never, run(1.0), atol=1e-4, rtol=0)


def test_macs_are_those_of_the_network(pipe, run, ddim):
    """3x3 convolutions by hand: conv_in is 9 * 1 * 32 multiply-accumulates at each of 256 pixels."""
    from accel.core.macs import count_macs

    _, macs = count_macs(lambda: pipe.unet.conv_in(torch.zeros(1, 1, 16, 16)))
    assert macs == 9 * 1 * 32 * 256
    with accelerate(pipe, Recipe(ddim(3)), count_macs=True) as counted:
        run()
    with torch.no_grad():
        _, once = count_macs(lambda: pipe.unet(torch.zeros(1, 1, 16, 16), 5, class_labels=torch.tensor([1])))
    assert counted.macs == 3 * once


def test_attention_is_counted_on_cpu():
    from accel.core.macs import count_macs

    q = torch.randn(2, 4, 16, 8)
    _, macs = count_macs(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert macs == 2 * 4 * 16 * 16 * 8 * 2  # QK and AV


def test_trace_says_what_happened(pipe, models, run, ddim):
    recipe = Recipe(ddim(5), cache=DeepCache(2, 2), stitch=TStitch(fractions=(0.6,)))
    with accelerate(pipe, recipe, models=models) as traced:
        run()
    # Step 3 is no multiple of the interval, but nothing of `base` is stored yet.
    assert traced.strip == "small:full small:shallow small:full base:full base:full"


def test_empty_recipe_equals_the_bare_pipeline(pipe, run):
    bare = run(steps=3)
    with accelerate(pipe, Recipe()) as counted:
        assert torch.equal(run(steps=3), bare)
    assert counted.nfe == 3


def test_ddim_is_euler_in_sigma(pipe, run):
    """DDIM and Euler on the probability-flow ODE are the same map (Song et al. 2021, sec. 4.3)."""
    with accelerate(pipe, Recipe(sampler("DDIMScheduler", 10, set_alpha_to_one=True))):
        a = run()
    with accelerate(pipe, Recipe(sampler("EulerDiscreteScheduler", 10))):
        torch.testing.assert_close(run(), a, atol=2e-3, rtol=0)


def test_denoiser_outside_a_trajectory_is_an_error(pipe, ddim):
    with accelerate(pipe, Recipe(ddim(2))), pytest.raises(AccelError, match="set_timesteps"):
        pipe.unet(torch.zeros(1, 1, 16, 16), 5, class_labels=torch.tensor([1]))


def test_nesting_is_refused_and_leaves_the_outer_one_working(pipe, ddim, run):
    with accelerate(pipe, Recipe(ddim(3))) as outer:
        with pytest.raises(ConfigError, match="already"), accelerate(pipe, Recipe(ddim(2))):
            pass
        run()
    assert outer.nfe == 3


def test_return_dict_keeps_its_meaning(pipe, ddim):
    x, labels = torch.randn(1, 1, 16, 16), torch.tensor([1])
    with torch.no_grad():
        plain = pipe.unet(x, 999, class_labels=labels).sample
        with accelerate(pipe, Recipe(ddim(2))):
            pipe.scheduler.set_timesteps(2)
            assert torch.equal(pipe.unet(x, 999, class_labels=labels).sample, plain)
            assert torch.equal(pipe.unet(x, 999, labels, False)[0], plain)


def test_img2img_start_begins_its_own_schedule(pipe, models, ddim):
    """A pipeline that starts in the middle of the timesteps: the first evaluation is full."""
    recipe = Recipe(DiffusersSampler("EulerDiscreteScheduler", 10), cache=DeepCache(2, 1))
    with torch.no_grad(), accelerate(pipe, recipe) as traced:
        pipe.scheduler.set_timesteps(10)
        pipe.scheduler.set_begin_index(5)
        x, labels = torch.randn(2, 1, 16, 16) * pipe.scheduler.sigmas[5], torch.tensor([1, 2])
        for t in pipe.scheduler.timesteps[5:]:
            noise = pipe.unet(pipe.scheduler.scale_model_input(x, t), t, class_labels=labels, return_dict=False)[0]
            x = pipe.scheduler.step(noise, t, x, return_dict=False)[0]
    assert traced.clock.num_steps == 5
    assert [e.mode for e in traced.trace] == ["full", "shallow", "full", "shallow", "full"]
    assert traced.trace[0].sigma == pytest.approx(float(traced.scheduler.sigmas[5]))


@pytest.mark.parametrize("bad", [0, -3, 1001, 2.5, True])
def test_steps_out_of_range(pipe, bad):
    with pytest.raises(ConfigError, match="steps"):
        Recipe(DiffusersSampler("DDIMScheduler", bad)).check(pipe)


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda: DeepCache(interval=0), "interval"), (lambda: DeepCache(branch=0), "branch"),
     (lambda: TStitch(fractions=(1.2,)), "fractions"), (lambda: TStitch(fractions=(-0.1,)), "fractions"),
     (lambda: TStitch(("a", "b"), (0.6, 0.6)), "sum"), (lambda: TStitch(("a",), (0.1, 0.2)), "one fraction"),
     (lambda: CFG(0.5), "scale"), (lambda: CFG(float("nan")), "scale"), (lambda: IntervalCFG(2.0, 3.0, 1.0), "empty"),
     (lambda: Grid("karas"), "Did you mean karras"), (lambda: DiffusersSampler("DDIMSheduler", 5), "Did you mean DDIM"),
     (lambda: DiffusersSampler("DDIMScheduler", 5, options={"clip_sampel": True}), "Did you mean clip_sample")],
)  # fmt: skip
def test_values_out_of_range(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_refusals_name_what_is_allowed(pipe, models):
    euler = DiffusersSampler("DDIMScheduler", 5)
    with pytest.raises(ConfigError, match=r"allowed: 1\.\.9"):
        Recipe(euler, cache=DeepCache(branch=10)).check(pipe)
    with pytest.raises(ConfigError, match=r"unknown stitch model 'smal'\. Did you mean small"):
        Recipe(euler, stitch=TStitch(("smal",))).check(pipe, models)
    with pytest.raises(IncompatibleError, match="it takes: trailing"):
        Recipe(euler, grid=Grid("karras")).check(pipe)
    with pytest.raises(IncompatibleError, match="needs a sampler"):
        Recipe(grid=Grid("karras")).check(pipe)
