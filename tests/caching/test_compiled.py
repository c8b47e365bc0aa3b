"""Caches on networks that torch.compile has been at: blocks work as they are, whole networks are refused unharmed."""

from __future__ import annotations

import pytest
import torch
from tiny import dit_pipeline, run_dit, run_stable_diffusion, stable_diffusion

from accel.caching import DeepCache, DiffusersCache, EncoderPropagation, FeatureInheritance, TeaCache
from accel.caching.schedules import Uniform
from accel.core.recipe import Recipe, accelerate
from accel.errors import IncompatibleError
from accel.guidance import CFG

CACHES = {
    "deepcache": DeepCache(2, 1),
    "encoder": EncoderPropagation(Uniform(2), group=2),
    "units": FeatureInheritance("unit"),
}


def images(pipe, cache=None, count_macs=False):
    with accelerate(pipe, Recipe(guidance=CFG(3.0), cache=cache), count_macs=count_macs) as run:
        made = run_stable_diffusion(pipe, 3.0, steps=4)
    return made, run


@pytest.mark.parametrize("name", CACHES)
def test_compiled_blocks_change_nothing(name):
    pipe = stable_diffusion()
    expected, plain = images(pipe, CACHES[name], count_macs=True)
    pipe.unet.compile_repeated_blocks(backend="eager")
    for count_macs in (False, True):
        found, run = images(pipe, CACHES[name], count_macs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (run.macs, run.strip) == (plain.macs, plain.strip)


PAB = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [-1, 1001]}
INSIDE = {
    "reuse": (FeatureInheritance("unit"), 4),
    "forecast": (FeatureInheritance("unit", order=1), 4),
    "pab": (DiffusersCache("pab", PAB), 1000),
    "around": (TeaCache(1e9, coefficients=(1.0,)), 1000),
}


@pytest.mark.parametrize("name", INSIDE)
def test_every_block_stays_compiled_under_a_cache_inside_it(name):
    """Accel's caches need two graphs for all blocks, and two again for the number of rows that torch first takes for a
    constant. Others make one or more for each block, and torch stops at so many (8, here 2) unless told otherwise,
    silently."""
    import torch._dynamo

    cache, most = INSIDE[name]
    pipe, graphs = dit_pipeline(layers=3), []
    with accelerate(pipe, Recipe(cache=cache)):
        expected = torch.as_tensor(run_dit(pipe))

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend=backend)
    strict = {"fail_on_recompile_limit_hit": True}  # newer torch; an older one only warns
    strict = {name: value for name, value in strict.items() if hasattr(torch._dynamo.config, name)}
    most = most if strict else max(most, 2 * len(pipe.transformer.transformer_blocks))  # there no block shares a graph
    with torch._dynamo.config.patch(cache_size_limit=2, **strict):
        with accelerate(pipe, Recipe(cache=cache)):
            found = torch.as_tensor(run_dit(pipe))
            assert torch.equal(torch.as_tensor(run_dit(pipe)), found)
        assert torch._dynamo.config.cache_size_limit == 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert 2 <= len(graphs) <= most
    torch._dynamo.reset()


def wrapped(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def in_place(pipe):
    pipe.unet.compile(backend="eager")


@pytest.mark.parametrize("compiled", [wrapped, in_place])
def test_a_network_compiled_as_a_whole_is_refused_unharmed(compiled):
    pipe = stable_diffusion()
    before = run_stable_diffusion(pipe, 3.0, steps=4)
    compiled(pipe)
    for cache in CACHES.values():
        with pytest.raises(IncompatibleError, match=r"'base' \(UNet2DConditionModel\) is compiled as a whole"):
            images(pipe, cache)
    assert torch.equal(run_stable_diffusion(pipe, 3.0, steps=4), before)


def test_what_does_not_look_inside_takes_a_wrapped_network():
    pipe = stable_diffusion()
    expected, plain = images(pipe, count_macs=True)
    wrapped(pipe)
    found, run = images(pipe, count_macs=True)
    assert torch.equal(found, expected)
    assert run.macs == plain.macs
