"""Where some samples of a batch are guided and others no more, all their rows are one call of the denoiser.

Held against the same rows in a call for each part. Not bit for bit: kernels sum in another order for another number of
rows, so that everything runs in float64 here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import Rotating, pixels, run_pixels

from accel.caching import (
    DeepCache,
    DiffusersCache,
    EasyCache,
    EncoderPropagation,
    FasterCache,
    FeatureInheritance,
    SeaCache,
    TeaCache,
    TGate,
)
from accel.caching.rows import Kept
from accel.caching.schedules import Uniform
from accel.caching.skip_tuning import SkipTuning
from accel.caching.tgate import mean_of
from accel.core.denoiser import Block, Inputs
from accel.core.guidance import by_part, spread
from accel.core.recipe import Recipe, accelerate
from accel.guidance import AdaptiveGuidance
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.suites import text_pipeline
from accel.testing.waits import counted_waits

STEPS, SAMPLES = 12, 4
DDIM = DiffusersSampler("DDIMScheduler", STEPS, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
EVEN = {"first": 1, "last": 1}
CACHES = {
    "none": None,
    "deepcache": DeepCache(3, 1),
    "encoder propagation": EncoderPropagation(Uniform(3)),
    "two decoders at once": EncoderPropagation(Uniform(3), group=2),
    "reuse": FeatureInheritance("layer", schedule=Uniform(3)),
    "forecast": FeatureInheritance("layer", schedule=Uniform(3), order=2),
    "attention and guidance": FasterCache(guidance_interval=1),
    "gate": TGate(4, "both"),
}
DECIDING = {
    "easycache": EasyCache(0.15),
    "seacache": SeaCache(0.2, **EVEN),
    "teacache": TeaCache(3.0, coefficients=(1.0, 0.0), **EVEN),
    "fastercache": FasterCache(guidance_interval=3),
    "gate": TGate(4),
}


@pytest.fixture(scope="module")
def pipe():
    return text_pipeline().to(torch.float64)


def images(pipe, recipe, first=0, count=SAMPLES, models=None):
    generators = [torch.Generator().manual_seed(i) for i in range(first, first + count)]
    scale = recipe.guidance.scale
    with accelerate(pipe, recipe, count_macs=True, models=models) as run, torch.no_grad():
        made = pipe(list(range(first, first + count)), None, STEPS, scale, generators, output_type="pt")
    return made.images, run


def off(run) -> dict[int, int]:
    """The step at which guidance ended for each sample."""
    return {i: event.step for event in run.events if event.name == "guidance off" for i in event.samples}


def ragged(run, count=SAMPLES) -> list[int]:
    """Steps at which some samples are guided and others are not."""
    ends = off(run)
    guided = {k: sum(ends.get(i, STEPS) >= k for i in range(count)) for k in range(STEPS)}
    return [k for k, n in guided.items() if 0 < n < count]


def ragged_guidance(pipe, recipe, models=None):
    """Guidance that ends at several steps under `recipe`, so that evaluations between are of unequal parts."""
    for threshold in (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.999, 0.9995):
        found = AdaptiveGuidance(3.0, threshold, "v", min_steps=2)
        if len(ragged(images(pipe, replace(recipe, guidance=found), models=models)[1])) >= 3:
            return found
    pytest.fail("all samples switch at once at every threshold")


@pytest.fixture(scope="module")
def guidance(pipe):
    return ragged_guidance(pipe, Recipe(DDIM))


def in_two_calls(monkeypatch, *args, **kwargs):
    with monkeypatch.context() as patched:
        patched.setattr(Inputs, "joint", False)
        return images(*args, **kwargs)


def calls_by_step(run) -> list[int]:
    return [sum(e.step == k and e.rows > 0 for e in run.trace) for k in range(STEPS)]


@pytest.mark.parametrize("name", CACHES)
def test_one_call_is_what_two_calls_are(pipe, guidance, name, monkeypatch):
    recipe = Recipe(DDIM, guidance=guidance, cache=CACHES[name])
    called = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args, kwargs: called.append(0), with_kwargs=True)
    together, one = images(pipe, recipe)
    hook.remove()
    apart, two = in_two_calls(monkeypatch, pipe, recipe)
    assert ragged(one)
    assert len(called) == STEPS, "the pipeline itself calls once a step"
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)
    assert off(one) == off(two)
    assert all(n <= 1 for n in calls_by_step(one))
    assert sum(calls_by_step(two)) > sum(calls_by_step(one))
    assert sum(e.rows for e in one.trace) == sum(e.rows for e in two.trace)
    assert one.macs == two.macs


@pytest.mark.parametrize("name", {**CACHES, **DECIDING})
def test_a_sample_alone_is_what_it_is_in_a_ragged_batch(pipe, guidance, name):
    recipe = Recipe(DDIM, guidance=guidance, cache={**CACHES, **DECIDING}[name])
    together, run = images(pipe, recipe)
    assert ragged(run), "or the test is too easy"
    assert all(n <= 1 for n in calls_by_step(run))
    alone = [images(pipe, recipe, i, 1) for i in range(SAMPLES)]
    torch.testing.assert_close(together, torch.cat([image for image, _ in alone]), rtol=0, atol=1e-9)
    assert run.macs == pytest.approx(sum(own.macs for _, own in alone) / SAMPLES)
    reused = {(e.step, i) for e in run.events if e.name == "reused" for i in e.samples}
    assert reused == {(e.step, i) for i, (_, own) in enumerate(alone) for e in own.events if e.name == "reused"}
    assert bool(reused) == (name in ("easycache", "seacache", "teacache"))


def test_the_network_is_called_once_a_step():
    """Forward calls of the network itself, beneath everything of accel's."""
    net, called = Rotating(), []
    rotating = pixels(net, DDIMScheduler(prediction_type="sample", clip_sample=False))
    own = net.forward
    net.forward = lambda *args, **kwargs: (
        called.append(len(args[0] if args else kwargs["sample"])) or own(*args, **kwargs)
    )
    with accelerate(rotating, Recipe(DDIM, guidance=AdaptiveGuidance(3.0, 0.9, "x0"))) as run:
        run_pixels(rotating, 3.0, steps=STEPS)
    assert called == [e.rows for e in run.trace]
    assert len(called) == STEPS
    assert set(called) == {3, 4, 5, 6}


@pytest.mark.parametrize("skip", [None, SkipTuning()])
def test_through_a_stitch_and_a_skip(skip, monkeypatch):
    pipe = text_pipeline().to(torch.float64)
    other = text_pipeline().to(torch.float64).unet
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.9)
    recipe = Recipe(DDIM, cache=DeepCache(3, 1), stitch=TStitch(fractions=(0.5,)), skip=skip)
    recipe = replace(recipe, guidance=ragged_guidance(pipe, recipe, {"small": other}))
    together, one = images(pipe, recipe, models={"small": other})
    apart, two = in_two_calls(monkeypatch, pipe, recipe, models={"small": other})
    assert ragged(one)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)
    assert {e.model for e in one.trace} == {"small", "base"}
    assert all(n == 1 for n in calls_by_step(one))
    assert one.macs == two.macs


def test_what_does_not_take_such_calls_gets_one_for_each_part(pipe, guidance):
    assert not DiffusersCache.uneven

    @dataclass(frozen=True)
    class OfEqualParts(DeepCache):
        uneven: ClassVar[bool] = False

    found = [images(pipe, Recipe(DDIM, guidance=guidance, cache=kind(3, 1))) for kind in (DeepCache, OfEqualParts)]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-9)
    assert [{calls_by_step(run)[k] for k in ragged(run)} for _, run in found] == [{1}, {2}]


@pytest.mark.parametrize("name", ["none", "forecast", "easycache", "gate"])
def test_on_a_gpu_it_is_the_same_and_waits_no_more(name, guidance, monkeypatch):
    recipe = Recipe(DDIM, guidance=guidance, cache=(DECIDING | CACHES)[name])
    expected, run = images(text_pipeline().to(torch.float64), recipe)
    assert ragged(run)
    with Elsewhere():
        pipe, waited = text_pipeline().to(torch.float64).to(DEVICE), []
        for form in (images, partial(in_two_calls, monkeypatch)):
            with counted_waits() as waits:
                found, _ = form(pipe, recipe)
            waited.append(sum(waits.values()))
            if form is images:
                assert torch.equal(found.cpu(), expected)
    assert waited[0] <= waited[1]


def test_rows_say_whose_they_are():
    x = torch.arange(8.0)[:, None]
    kwargs = {"x": x, "t": torch.tensor(3), "text": {"rows": x + 10, "all": torch.zeros(3, 8)}}
    both = Inputs(kwargs, "x", ("uncond", "cond"))
    assert both.blocks == (Block("uncond", None, 0, 4), Block("cond", None, 4, 8))
    some = both.only({"uncond": (1, 3), "cond": None})
    assert some.sample[:, 0].tolist() == [1, 3, 4, 5, 6, 7]
    assert some.kwargs["text"]["rows"][:, 0].tolist() == [11, 13, 14, 15, 16, 17]
    assert some.kwargs["text"]["all"].shape == (3, 8)
    assert some.blocks == some.uneven == (Block("uncond", (1, 3), 0, 2), Block("cond", None, 2, 6))
    assert some.samples == [1, 3, 0, 1, 2, 3]
    assert some.take("uncond").members == (1, 3)
    assert some.take("cond").members is None
    assert some.take("cond").sample[:, 0].tolist() == [4, 5, 6, 7]
    assert {part: rows[:, 0].tolist() for part, rows in by_part(some.sample, some).items()} == {
        "uncond": [1, 3], "cond": [4, 5, 6, 7],
    }  # fmt: skip
    even = some.only({"uncond": (3,), "cond": (3,)})
    assert (even.members, even.uneven, even.sample[:, 0].tolist()) == ((3,), (), [3, 7])
    assert some.chosen([0, 3]).blocks == (Block("uncond", (1,), 0, 1), Block("cond", (1,), 1, 2))
    assert both.only({"cond": None}).blocks == (Block("cond", None, 0, 4),)
    assert spread(torch.tensor([10, 11, 12, 13]), some).tolist() == [11, 13, 10, 11, 12, 13]
    assert some.with_parts(("all",)).blocks == (Block("all", None, 0, 6),)
    with pytest.raises(KeyError):
        some.only({"uncond": (0,)})


def test_frames_and_lists_go_with_their_rows():
    kwargs = {
        "sample": torch.zeros(4, 1, 3, 2, 2),
        "encoder_hidden_states": torch.arange(12.0)[:, None, None],
    }
    some = Inputs(kwargs, "sample", ("uncond", "cond")).only({"uncond": (1,), "cond": None})
    assert some.kwargs["encoder_hidden_states"].flatten().tolist() == list(range(3, 12))
    listed = Inputs({"x": torch.zeros(4, 1), "text": ["a", "b", "c", "d"]}, "x", ("uncond", "cond"), listed=True)
    assert listed.only({"uncond": (1,), "cond": None}).kwargs["text"] == ["b", "c", "d"]


def test_the_mean_of_a_sample_is_over_the_parts_that_have_it():
    uncond = Kept((torch.tensor([1.0, 2.0, 3.0, 4.0]),), (0, 4), 2)  # two rows of each sample
    cond = Kept((torch.tensor([3.0, 4.0, 0.0, 0.0, 9.0, 8.0]),), (0, 2, 4), 3)
    one, other = mean_of([uncond, cond])
    assert one.tensors[0].tolist() == [2.0, 3.0, 6.0, 6.0]
    assert other.tensors[0].tolist() == [2.0, 3.0, 0.0, 0.0, 6.0, 6.0]
    assert (one.members, other.members) == ((0, 4), (0, 2, 4))
