"""Strips: what a reader sees of a recipe's steps."""

from __future__ import annotations

from accel.caching import DeepCache, EncoderPropagation
from accel.caching.schedules import Uniform
from accel.core.recipe import Recipe, accelerate
from accel.guidance import CFG, AdaptiveGuidance
from accel.results.strips import strip
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch


def shown(pipe, run, recipe, models=None, scale=1.0) -> list[str]:
    with accelerate(pipe, recipe, models=models) as traced:
        run(scale)
    return strip(traced.trace, 2, traced.clock.stages, traced.events).splitlines()


def test_stitch_and_cache(pipe, models, run, ddim):
    recipe = Recipe(ddim(12), cache=DeepCache(3, 2), stitch=TStitch(fractions=(0.4,)))
    assert shown(pipe, run, recipe, models) == [
        "step  0    5    0",
        "small FssFs·······",
        "base  ·····FFssFss",  # the first step of the large model has nothing to reuse
        "rows  111111111111",
    ]


def test_guidance_and_multi_stage_samplers(pipe, run):
    recipe = Recipe(DiffusersSampler("HeunDiscreteScheduler", 6), guidance=CFG(2.0), cache=DeepCache(2, 1))
    assert shown(pipe, run, recipe, scale=2.0) == [
        "step 0         5",
        "base FFssFFssFFs",
        "rows 22222222222",
    ]


def test_predictions_made_ahead(pipe, run, ddim):
    recipe = Recipe(ddim(8), cache=EncoderPropagation(Uniform(4), group=3))
    assert shown(pipe, run, recipe) == ["step 0    5", "base Fd··Fd··", "rows 13··13··"]


def test_decisions_are_told_below(pipe, run, ddim):
    guidance = AdaptiveGuidance(2.0, threshold=0.5, min_steps=2)
    lines = shown(pipe, run, Recipe(ddim(5), guidance=guidance), scale=2.0)
    assert lines[2].startswith("rows 22")
    assert lines[2].endswith("1")
    assert len(lines) > 3
    assert lines[3].strip().startswith("step ")


def test_nothing_evaluated():
    assert strip([], 1, 4) == "nothing was evaluated"
