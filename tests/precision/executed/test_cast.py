"""Casts: the network runs in the given dtype, everything around it does not, and the weights come back untouched."""

from __future__ import annotations

import pytest
import torch
from snapshots import assert_same, snapshot

from accel.caching import DeepCache
from accel.core.precision import plain_bytes
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.precision import Cast
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})
CASTS = [("bfloat16", torch.bfloat16), ("float16", torch.float16)]


def inputs_of(module, seen: list):
    """Note the first input of every call of `module`; returns the handle."""
    return module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))


@pytest.mark.parametrize(("name", "dtype"), CASTS)
def test_weights_come_back_bit_for_bit_in_the_same_storage(pipe, models, run, name, dtype):
    before = snapshot(pipe, models.values())
    storage = {n: p.data_ptr() for n, p in pipe.unet.named_parameters()}
    recipe = Recipe(DDIM, stitch=TStitch(), precision=Cast(name))
    with accelerate(pipe, recipe, models=models):
        for net in (pipe.unet, models["small"]):
            assert {p.dtype for p in net.parameters()} == {dtype}
        run()
    assert_same(before, snapshot(pipe, models.values()))
    assert {n: p.data_ptr() for n, p in pipe.unet.named_parameters()} == storage


def test_the_timestep_is_not_cast(pipe, run):
    """bfloat16 would round timestep 999 to 1000 and 0.83 steps of a fractional grid away."""
    seen, sampler = [], DiffusersSampler("EulerDiscreteScheduler", 4, options={"use_karras_sigmas": True})
    handle = inputs_of(pipe.unet.time_proj, seen)
    try:
        with accelerate(pipe, Recipe(sampler, precision=Cast("bfloat16"))) as cast:
            run()
    finally:
        handle.remove()
    timesteps = [float(t[0]) for t in seen]
    assert timesteps == [float(t) for t in cast.scheduler.timesteps]
    assert timesteps[0] == pytest.approx(999.0, abs=1e-3)
    assert any(float(torch.tensor(t).bfloat16()) != t for t in timesteps), "the test can fail"


@pytest.mark.parametrize(("name", "dtype"), CASTS)
def test_only_the_network_runs_in_low_precision(pipe, run, name, dtype):
    """The noise, the latents, the predictions and the sampler's arithmetic stay in float32."""
    inside, stepped = [], []
    handle = inputs_of(pipe.unet.conv_in, inside)
    try:
        with accelerate(pipe, Recipe(DDIM, precision=Cast(name))) as cast:
            step = cast.scheduler.step

            def spy(predicted, t, x, **kwargs):
                stepped.append((predicted.dtype, x))
                return step(predicted, t, x, **kwargs)

            cast.scheduler.step = spy
            images = run()
            single = torch.zeros(1, 1, 16, 16)
            cast.scheduler.set_timesteps(4)
            with torch.no_grad():
                predicted = pipe.unet(single, 999, class_labels=torch.tensor([1])).sample
    finally:
        handle.remove()
    assert {x.dtype for x in inside} == {dtype}
    assert predicted.dtype == torch.float32
    assert {x.dtype for _, x in stepped} == {torch.float32}
    assert images.dtype == torch.float32
    with accelerate(pipe, Recipe(DDIM)) as plain:
        first, step = [], plain.scheduler.step
        plain.scheduler.step = lambda predicted, t, x, **kwargs: first.append(x) or step(predicted, t, x, **kwargs)
        exact = run()
    assert torch.equal(stepped[0][1], first[0]), "the same initial noise, not a rounded one"
    # Unit roundoff is 2^-9 for bfloat16 and 2^-12 for float16: an eighth of the error.
    error = (images - exact).square().mean().sqrt()
    assert 0 < error < {"bfloat16": 0.05, "float16": 0.01}[name]


def test_float32_on_a_float32_network_is_nothing(pipe, run):
    with accelerate(pipe, Recipe(DDIM)):
        plain = run()
    with accelerate(pipe, Recipe(DDIM, precision=Cast("float32"))):
        assert torch.equal(run(), plain)


@pytest.mark.parametrize(("name", "dtype"), CASTS)
def test_shallow_steps_and_stitched_networks_are_cast_too(pipe, models, run, name, dtype):
    recipe = Recipe(DDIM, cache=DeepCache(2, 2), stitch=TStitch(("small",), (0.5,)))
    with accelerate(pipe, recipe, models=models) as plain:
        exact = run()
    seen = {"base": [], "small": []}
    handles = [inputs_of(pipe.unet.conv_out, seen["base"]), inputs_of(models["small"].conv_out, seen["small"])]
    try:
        cast = Recipe(DDIM, cache=recipe.cache, stitch=recipe.stitch, precision=Cast(name))
        with accelerate(pipe, cast, models=models) as traced:
            images = run()
    finally:
        for handle in handles:
            handle.remove()
    assert traced.strip == plain.strip == "small:full small:shallow base:full base:shallow"
    assert {n: [x.dtype for x in inputs] for n, inputs in seen.items()} == {"base": [dtype] * 2, "small": [dtype] * 2}
    assert images.dtype == torch.float32
    assert 0 < (images - exact).square().mean().sqrt() < {"bfloat16": 0.1, "float16": 0.02}[name]


def test_model_bytes(pipe):
    size = plain_bytes(pipe.unet)
    assert size == 4 * pipe.unet.num_parameters()
    assert Cast("bfloat16").model_bytes(pipe.unet) == Cast("float16").model_bytes(pipe.unet) == size // 2
    assert Cast("float32").model_bytes(pipe.unet) == size
    with_counter = torch.nn.BatchNorm2d(3)  # 2 * 3 parameters, 2 * 3 statistics, one int64 counter
    assert Cast("float16").model_bytes(with_counter) == 2 * 12 + 8


def test_unknown_dtype():
    with pytest.raises(ConfigError, match=r"unknown precision\.dtype 'bfloat'\. Did you mean bfloat16"):
        Cast("bfloat")
