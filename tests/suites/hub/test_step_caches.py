"""Dynamic step caches on every pipeline class: they act, a sample alone is what it is in a batch, nothing is left."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hub_tiny import KINDS
from registry import recipe

from accel.caching import EasyCache, SeaCache, TeaCache
from accel.caching.step_reuse import AUTO, BLOCKS, resolved
from accel.core.denoiser import denoiser_name
from accel.core.pipelines import layout
from accel.core.recipe import accelerate
from accel.errors import IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG

STEPS = 5
CACHES = {
    "easycache": EasyCache(1e9),
    "teacache": TeaCache(1e9, coefficients=(1.0,)),
    "seacache": SeaCache(1e9),
}
TRANSFORMERS = ("dit", "pixart_alpha", "pixart_sigma", "sd3", "flux")


def made_for(kind, pipe, cache):
    made = recipe(sampler="flow_euler" if kind in ("sd3", "flux") else "ddim")
    made = replace(made, sampler=replace(made.sampler, steps=STEPS), cache=cache)
    guided = replace(made, guidance=CFG(2.0))
    try:
        guided.check(pipe)
    except IncompatibleError:
        return made
    return guided


CASES = [
    *((kind, name) for kind in KINDS for name in ("easycache", "teacache")),
    ("sd", "seacache"),
    ("sd3", "seacache"),
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_it_reuses_on_the_class(kind, name, hub_suite, hub_pipe):
    suite, pipe = hub_suite(kind), hub_pipe(kind)
    made, net = made_for(kind, pipe, CACHES[name]), getattr(pipe, denoiser_name(pipe))
    with accelerate(pipe, made, count_macs=True) as run:
        images = generate(pipe, suite, made, 5, 0, 2, 2)
        modes = [call.mode for call in run.trace]
        reused = [call for call in run.trace if call.mode == "reused"]
        whole = run.trace[0].macs
        alone = generate(pipe, suite, made, 5, 1, 2, 1)
    first = made.cache.first
    steps = ["full"] * first + ["reused"] * (STEPS - 1 - first) + ["full"]
    calls = 2 if made.guidance and layout(pipe) == "separate" else 1
    assert modes == [mode for mode in steps for _ in range(calls)]
    assert all(call.macs < 0.8 * whole for call in reused), (
        "what runs around the blocks of a tiny network is much of it"
    )
    assert (images[1:] - alone).abs().max() <= 1e-4 * max(1.0, float(images.abs().max()))
    assert not [module for module in net.modules() if "forward" in vars(module) or module._forward_hooks]
    assert (resolved(AUTO, net) == BLOCKS) == (kind in TRANSFORMERS)


@pytest.mark.parametrize("kind", ["sd", "sd3", "flux", "pixart_alpha", "dit"])
def test_samples_that_run_do_so_without_those_that_rest(kind, hub_suite, hub_pipe):
    """At a threshold between their indicators. (A timestep embedding, where TeaCache takes that, knows no sample.)"""
    suite, pipe = hub_suite(kind), hub_pipe(kind)
    cache = TeaCache(coefficients=(1.0, 0.0)) if kind in ("dit", "sd3", "flux") else EasyCache()
    made = made_for(kind, pipe, cache)
    watched, seen = cache.threshold_rule.watch(made, None)
    with accelerate(pipe, replace(made, cache=watched)):
        generate(pipe, suite, replace(made, cache=watched), 5, 0, 3, 3)
    modes = []
    for value in sorted(seen):
        one = replace(made, cache=replace(cache, threshold=value * (1 + 1e-4)))
        with accelerate(pipe, one) as run:
            images = generate(pipe, suite, one, 5, 0, 3, 3)
            modes = [call.mode for call in run.trace]
            if "partial" in modes:
                alone = [generate(pipe, suite, one, 5, i, i + 1, 1) for i in range(3)]
                break
    assert "partial" in modes
    off = (images - torch.cat(alone)).abs().max()
    assert off <= 1e-4 * max(1.0, float(images.abs().max()))
