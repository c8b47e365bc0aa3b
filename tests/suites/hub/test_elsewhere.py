"""What is shown pictures, runs beside a ControlNet or makes videos, on another device: the CPU's numbers bit for bit,
and nothing in the loop waits for the host."""

from __future__ import annotations

import pytest
import torch

from accel.core.recipe import Recipe, accelerate
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.registry import method
from accel.testing.elsewhere import DEVICE, Elsewhere

CASES = [("sd_controlnet", "deepcache"), ("sd_pix2pix", "fora"), ("animate_diff", "encoder_propagation")]


@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_it_runs_there_as_it_does_here(kind, cache, shown_suite):
    suite = shown_suite(kind)
    recipes = [
        Recipe(method("sampler", "ddim", steps=n), guidance=CFG(3.0), cache=method("cache", cache)) for n in (3, 6)
    ]
    pipe = suite.pipeline()
    with accelerate(pipe, recipes[0]):
        here = generate(pipe, suite, recipes[0], 0, 0, 2, 2)
    waits = []
    with Elsewhere() as device:
        pipe = suite.on(suite.pipeline(), DEVICE)
        for made in recipes:
            with accelerate(pipe, made):
                device.waits.clear()
                there = generate(pipe, suite, made, 0, 0, 2, 2)
            waits.append(sum(count for (_, line), count in device.waits.items() if line.startswith("accel")))
            if made is recipes[0]:
                assert torch.equal(there, here)
    assert waits[0] == waits[1], "some wait at each step"
