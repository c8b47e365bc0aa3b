"""T-Stitch: who takes which step, what that costs, and which networks cannot continue each other's trajectory."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from snapshots import assert_same, snapshot
from tiny import dit, dit_pipeline, run_dit

from accel.caching import DeepCache
from accel.caching.unet_view import ShallowView
from accel.core.macs import count_macs
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid
from accel.stitching import TStitch
from accel.stitching.tstitch import milestones, model_by_step, model_by_time
from accel.suites.digits.models import build_unet
from accel.suites.pipeline import PixelPipeline


@pytest.fixture(scope="module")
def three(models, pipe):
    """small, and a `medium` that computes something else than the base model."""
    medium = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        medium.conv_out.weight.mul_(0.9)
    return {"small": models["small"], "medium": medium}


def owners(traced) -> str:
    return "".join(e.model[0] for e in traced.trace)


# --- milestones


@pytest.mark.parametrize(
    ("fraction", "steps", "first_of_base"),
    # Half up: Python's own round() would give 12, 2 and 0.
    [(0.5, 25, 13), (0.5, 5, 3), (0.5, 1, 1), (0.4, 10, 4), (0.1, 4, 0), (0.125, 4, 1), (0.0, 50, 0), (1.0, 50, 50),
     (0.3, 5, 2), (0.7, 45, 32), (0.29, 50, 15), (0.55, 90, 50)],
)  # fmt: skip
def test_milestones_round_half_up(fraction, steps, first_of_base):
    """Also where the product in floating point falls short of the half: 0.29 * 50 = 14.499999999999998."""
    assert milestones((fraction,), steps) == [first_of_base]


def test_shares_of_three_models():
    """Cumulative rounding: the shares fill all steps and none is off by a whole step."""
    for steps in range(5, 101):
        first, second = milestones((0.4, 0.4), steps)
        shares = [first, second - first, steps - second]
        assert sum(shares) == steps
        for share, fraction in zip(shares, (0.4, 0.4, 0.2), strict=True):
            assert abs(share - fraction * steps) < 1, (steps, shares)
    assert milestones((0.4, 0.4), 10) == [4, 8]
    assert milestones((0.1, 0.2, 0.7), 30)[-1] == 30  # 0.1 + 0.2 + 0.7 < 1 in floats


def test_a_step_belongs_to_the_share_that_it_falls_in():
    assert [model_by_step((0.4, 0.4), step, 5) for step in range(5)] == [0, 0, 1, 1, 2]
    assert [model_by_time((0.4, 0.4), t, 1000) for t in (999, 600, 599, 200, 199, 0)] == [0, 0, 1, 1, 2, 2]
    assert model_by_time((1.0,), 0, 1000) == 0, "all of the time is the first model's"
    assert model_by_step((0.0,), 0, 5) == 1


# --- by time


@pytest.mark.parametrize(("steps", "fraction", "count"), [(25, 0.5, 13), (10, 0.4, 4), (10, 0.0, 0), (10, 1.0, 10)])
def test_on_the_trailing_grid_the_rules_differ_by_one_step_at_most(pipe, models, run, ddim, steps, fraction, count):
    found = {}
    for rule in ("step", "time"):
        stitch = TStitch(fractions=(fraction,), rule=rule)
        with accelerate(pipe, Recipe(ddim(steps), stitch=stitch), models=models) as traced:
            run()
        found[rule] = owners(traced).count("s")
    assert found["step"] == count
    assert abs(found["time"] - count) <= 1


def test_the_time_rule_follows_the_timesteps_and_not_their_number(pipe, models, run):
    """On a grid that is dense at low noise the first half of the time is fewer steps. By hand: t / 1000 >= 1 - r."""
    sampler = DiffusersSampler("DPMSolverMultistepScheduler", 12)
    stitch = TStitch(fractions=(0.5,), rule="time")
    with accelerate(pipe, Recipe(sampler, Grid("karras"), stitch=stitch), models=models) as traced:
        run()
    expected = "".join("s" if e.timestep / 1000 >= 0.5 else "b" for e in traced.trace)
    assert owners(traced) == expected
    assert expected.count("s") != 6


def test_both_stages_of_a_step_belong_to_one_model(pipe, models, run):
    for rule in ("step", "time"):
        recipe = Recipe(DiffusersSampler("HeunDiscreteScheduler", 7), stitch=TStitch(fractions=(0.5,), rule=rule))
        with accelerate(pipe, recipe, models=models) as traced:
            run()
        for step in range(7):
            assert len({e.model for e in traced.trace if e.step == step}) == 1


def test_an_unknown_rule_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="time"):
        TStitch(rule="tiem")


# --- what runs


@pytest.mark.parametrize("cache", [None, DeepCache(2, 2)])
def test_the_ends_equal_the_single_models(pipe, models, run, ddim, cache):
    def images(fraction: float):
        with accelerate(pipe, Recipe(ddim(4), cache=cache, stitch=TStitch(fractions=(fraction,))), models=models) as r:
            return run(), r

    with accelerate(pipe, Recipe(ddim(4), cache=cache)):
        large = run()
    small_pipe = PixelPipeline(models["small"], pipe.scheduler)
    small_pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    with accelerate(small_pipe, Recipe(ddim(4), cache=cache)):
        small = small_pipe([0, 1], generator=generators, output_type="pt").images

    none, traced = images(0.0)
    assert torch.equal(none, large)
    assert owners(traced) == "bbbb"
    every, traced = images(1.0)
    assert torch.equal(every, small)
    assert owners(traced) == "ssss"
    half = images(0.5)[0]
    assert not torch.equal(half, large)
    assert not torch.equal(half, small)


def test_three_models_by_hand(pipe, three, run, ddim):
    """5 steps at 40/40/20: a hand-written loop over the three networks gives the same images and the same MACs."""
    recipe = Recipe(ddim(5), stitch=TStitch(("small", "medium"), (0.4, 0.4)))
    with accelerate(pipe, recipe, models=three, count_macs=True) as traced:
        images = run()
    assert owners(traced) == "ssmmb"

    scheduler = ddim(5).build(pipe.scheduler.config)
    scheduler.set_timesteps(5)
    x = torch.cat([torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    macs = 0
    nets = [three["small"], three["small"], three["medium"], three["medium"], pipe.unet]
    with torch.no_grad():
        for t, net in zip(scheduler.timesteps, nets, strict=True):
            predicted, counted = count_macs(
                lambda net=net, t=t, x=x: net(x, t, class_labels=torch.tensor([0, 1])).sample
            )
            macs += counted
            x = scheduler.step(predicted, t, x).prev_sample
    assert torch.equal(images, x)
    assert traced.macs == macs / 2
    assert traced.trace[0].macs < traced.trace[4].macs / 5


def test_order_of_the_models_is_the_recipes(pipe, three, run, ddim):
    recipe = Recipe(ddim(4), stitch=TStitch(("medium", "small"), (0.25, 0.25)))
    with accelerate(pipe, recipe, models=three) as traced:
        run()
    assert owners(traced) == "msbb"


def test_both_stages_of_a_step_go_to_the_same_model(pipe, models, run):
    recipe = Recipe(DiffusersSampler("HeunDiscreteScheduler", 5), stitch=TStitch(fractions=(0.4,)))
    with accelerate(pipe, recipe, models=models) as traced:
        run()
    assert owners(traced) == "ss" + "ss" + "bb" + "bb" + "b"


def test_each_model_has_a_cache_of_its_own(pipe, models, ddim):
    """Stitched DeepCache equals a hand-written loop with two caches; the large model's first step is full."""
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 4])
    recipe = Recipe(ddim(6), cache=DeepCache(3, 2), stitch=TStitch(fractions=(0.4,)))  # 2 of 6 steps: 0.4 * 6 = 2.4
    with accelerate(pipe, recipe, models=models) as traced:
        images = pipe(labels, latents=x, output_type="pt").images
    # Step 2 would be shallow by the schedule, but the large model has nothing stored yet.
    assert traced.strip == "small:full small:shallow base:full base:full base:shallow base:shallow"

    scheduler = ddim(6).build(pipe.scheduler.config)
    scheduler.set_timesteps(6)
    views = {n: ShallowView(net, 2) for n, net in (("small", models["small"]), ("base", pipe.unet))}
    stored = {}
    with torch.no_grad():
        for t, word in zip(scheduler.timesteps, traced.strip.split(), strict=True):
            name, mode = word.split(":")
            inputs = {"sample": x, "timestep": t, "class_labels": labels}
            if mode == "full":
                output, stored[name] = views[name].capture(lambda name=name, inputs=inputs: views[name].net(**inputs))
            else:
                output = views[name].forward(stored[name], **inputs)
            x = scheduler.step(output.sample, t, x).prev_sample
    assert torch.equal(images, x)


# --- what cannot be stitched


@pytest.mark.parametrize(
    ("key", "value", "changes"),
    [("in_channels", 3, {"in_channels": 3}), ("out_channels", 2, {"out_channels": 2}),
     ("num_class_embeds", 5, {"num_class_embeds": 5}), ("sample_size", 32, {"sample_size": 32}),
     ("num_class_embeds", None, {"num_class_embeds": None})],
)  # fmt: skip
def test_networks_of_another_space_are_refused(pipe, ddim, key, value, changes):
    config = {k: v for k, v in build_unet("small").config.items() if not k.startswith("_")}
    from diffusers import UNet2DModel

    other = UNet2DModel(**config | changes)
    ours = pipe.unet.config[key]
    with pytest.raises(IncompatibleError, match=f"{key} is {value} in 'other' and {ours} in 'base'; use a model with"):
        Recipe(ddim(4), stitch=TStitch(("other",))).check(pipe, {"other": other})


def test_a_transformer_pipeline_is_stitched_too():
    pipe, small = dit_pipeline(), dit(seed=1, layers=1)
    state = snapshot(pipe, [small])
    recipe = Recipe(DiffusersSampler("DDIMScheduler", 5), guidance=CFG(3.0), stitch=TStitch(fractions=(0.4,)))
    bare = run_dit(pipe, 3.0)
    with accelerate(pipe, recipe, models={"small": small}, count_macs=True) as traced:
        images = run_dit(pipe, 3.0)
    assert owners(traced) == "ssbbb"
    assert traced.nfe == 10  # two rows an image
    assert torch.isfinite(images).all()
    assert_same(state, snapshot(pipe, [small]))
    assert torch.equal(run_dit(pipe, 3.0), bare)

    inputs = {
        "hidden_states": torch.zeros(1, 4, 8, 8),
        "timestep": torch.tensor([5]),
        "class_labels": torch.tensor([1]),
    }
    once = [count_macs(lambda net=net: net(**inputs))[1] for net in (small, pipe.transformer)]
    assert math.isclose(traced.macs, 2 * (2 * once[0] + 3 * once[1]), rel_tol=1e-9)

    for changes in ({"num_embeds_ada_norm": 10}, {"in_channels": 8}, {"sample_size": 16}):
        with pytest.raises(IncompatibleError, match=f"{next(iter(changes))} is"):
            recipe.check(pipe, {"small": dit(**changes)})


# --- across architectures


def small_dit(classes: int = 10):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    settings = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "out_channels": 1, "num_layers": 2}
    return DiTTransformer2DModel(**settings, sample_size=16, patch_size=4, num_embeds_ada_norm=classes).eval()


def test_a_transformer_begins_and_a_unet_goes_on(pipe, run, ddim):
    """By hand: the transformer's own call for the first steps, the UNet's for the rest; guided, with the null class."""
    other = small_dit()
    recipe = Recipe(ddim(4), guidance=CFG(2.0), stitch=TStitch(("dit",), (0.5,)))
    with accelerate(pipe, recipe, models={"dit": other}) as traced:
        found = run(2.0)
    assert owners(traced) == "ddbb"
    forward = pipe.unet.forward

    def by_hand(sample, timestep, class_labels, return_dict):
        if timestep < 500:
            return forward(sample, timestep, class_labels=class_labels, return_dict=return_dict)
        return other(sample, timestep.expand(len(sample)), class_labels, return_dict=return_dict)

    pipe.unet.forward = by_hand
    try:
        with accelerate(pipe, Recipe(ddim(4), guidance=CFG(2.0))):
            expected = run(2.0)
    finally:
        del pipe.unet.forward
    assert torch.equal(found, expected)


def test_other_classes_or_spaces_are_refused_across_architectures(pipe, ddim):
    with pytest.raises(IncompatibleError, match="classes is 6 in 'dit' and 11 in 'base'"):
        Recipe(ddim(4), stitch=TStitch(("dit",), (0.5,))).check(pipe, {"dit": small_dit(5)})
