"""TF32: refused off the GPUs that have it, its switches on within evaluations and as before around them."""

from __future__ import annotations

import contextlib

import pytest
import torch

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import IncompatibleError
from accel.precision import TF32
from accel.precision.executed.tf32 import tf32_products
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})


def switches() -> list:
    parts = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", torch.backends.cudnn))
    return [getattr(part, "fp32_precision", None) or part.allow_tf32 for part in parts]


ON = (["tf32", "tf32"], [True, True])


def test_refused_on_the_cpu(pipe):
    with pytest.raises(IncompatibleError, match=r"tf32 needs a CUDA device of .* 8\.0 or above, but 'base' is on cpu"):
        Recipe(DDIM, precision=TF32()).check(pipe)


def test_switches_come_back_after_an_exception():
    before = switches()
    seen = []
    with contextlib.suppress(KeyError), tf32_products():
        seen.append(switches())
        raise KeyError
    assert seen[0] in ON
    assert switches() == before
    assert before not in ON, "the test can fail"


@pytest.mark.parametrize("cache", [None, DeepCache(2, 1)], ids=["plain", "cached"])
def test_switches_are_on_within_evaluations_only(pipe, run, monkeypatch, cache):
    """As on a GPU that has it; on the CPU the switches change nothing."""
    monkeypatch.setattr("accel.precision.executed.tf32.require_capability", lambda *args: None)
    inside, outside, before = [], [], switches()
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: inside.append(switches()))
    try:
        with accelerate(pipe, Recipe(DDIM, cache=cache, precision=TF32())) as fast:
            step = fast.scheduler.step
            fast.scheduler.step = lambda *args, **kwargs: outside.append(switches()) or step(*args, **kwargs)
            found = run()
    finally:
        handle.remove()
    assert len(inside) == len(outside) == 4
    assert all(now in ON for now in inside)
    assert all(now == before for now in outside)
    with accelerate(pipe, Recipe(DDIM, cache=cache)):
        assert torch.equal(run(), found)
