"""Caches on networks that torch.compile has been at: blocks work as they are, whole networks are refused unharmed."""

from __future__ import annotations

import pytest
import torch
from tiny import run_stable_diffusion, stable_diffusion

from accel.caching import DeepCache, EncoderPropagation, FeatureInheritance
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
