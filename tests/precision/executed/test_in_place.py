"""Casts, 8-bit linear layers and compiled blocks in place, under caches; nothing is compiled after the start."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from snapshots import assert_same, snapshot
from tiny import dit_pipeline, run_dit, run_stable_diffusion, stable_diffusion

from accel.caching import DeepCache, DiffusersCache, EncoderPropagation, FeatureInheritance
from accel.caching.schedules import Uniform
from accel.core.compiling import compilations
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, AdaptiveGuidance
from accel.precision import Cast, Compiled, InPlace, TorchAO
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 4)
DIT_CACHES = {
    "none": None,
    "fora": FeatureInheritance("unit", r"(attn1|ff)$", Uniform(2)),
    "taylorseer": FeatureInheritance("unit", r"(attn1|ff)$", Uniform(2), order=1),
    "block": FeatureInheritance("block"),
    "first_block": DiffusersCache("first_block", {"threshold": 10.0}),
}
UNET_CACHES = {"deepcache": DeepCache(2, 1), "encoder": EncoderPropagation(Uniform(2), group=2)}
torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs the extra `torchao`")


@pytest.fixture(autouse=True)
def anew():
    """Each test compiles for itself."""
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def dit():
    return dit_pipeline(layers=2)


def images(pipe, precision=None, cache=None, guidance=None, times=1):
    """Images of the last of `times` trajectories in one context, and the graphs that each has made."""
    graphs = []
    with accelerate(pipe, Recipe(DDIM, precision=precision, cache=cache, guidance=guidance)) as run:
        for _ in range(times):
            before = compilations()
            if hasattr(pipe, "unet"):
                made = run_stable_diffusion(pipe, guidance.pipeline_scale if guidance else 1.0, steps=4)
            else:
                made = torch.as_tensor(run_dit(pipe, guidance.pipeline_scale if guidance else 1.0))
            graphs.append(compilations() - before)
    return made, graphs, run


@pytest.mark.parametrize("cache", DIT_CACHES.values(), ids=DIT_CACHES)
def test_compiled_blocks_are_compiled_once(cache, dit):
    """Adaptive Guidance switches off at step 2, so that there are fewer rows. Images are those without compiling."""
    guidance = AdaptiveGuidance(3.0, -1.0, min_steps=2)
    expected, *_ = images(dit, None, cache, guidance)
    found, graphs, _ = images(dit, InPlace("float32", "none", "eager"), cache, guidance, times=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert graphs[0] > 0
    assert graphs[1] <= isinstance(cache, DiffusersCache)  # whose second trajectory begins with a state of the first
    assert graphs[2] == 0


@pytest.mark.parametrize("cache", UNET_CACHES.values(), ids=UNET_CACHES)
def test_caches_of_unets_stay_outside(cache):
    pipe = stable_diffusion()
    before = snapshot(pipe)
    expected, *_ = images(pipe, None, cache, CFG(3.0))
    found, graphs, _ = images(pipe, InPlace("float32", "none", "eager"), cache, CFG(3.0), times=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (graphs[0] > 0, graphs[1]) == (True, 0)
    assert_same(before, snapshot(pipe))


def test_without_either_it_is_a_cast(dit):
    found, _, _ = images(dit, InPlace("bfloat16", "none", "none"))
    assert torch.equal(found, images(dit, Cast("bfloat16"))[0])
    plain = images(dit)[0]
    assert torch.equal(images(dit, InPlace("float32", "none", "none"))[0], plain)


@torchao
@pytest.mark.parametrize("scheme", ["weights", "dynamic"])
def test_linear_layers_are_torchaos_and_go_back(scheme, dit):
    """The numbers are those of the network in one piece, and a cache goes on top."""
    before = snapshot(dit)
    whole, *_ = images(dit, TorchAO(scheme, "float32", compile=False))
    found, *_ = images(dit, InPlace("float32", scheme, "none"))
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    assert not torch.equal(found, images(dit)[0])
    cached, _, run = images(dit, InPlace("float32", scheme, "none"), DIT_CACHES["fora"])
    assert run.strip.split() == ["base:full", "base:partial"] * 2
    assert not torch.equal(cached, found)
    assert_same(before, snapshot(dit))
    assert not [name for name, module in dit.transformer.named_modules() if "extra_repr" in vars(module)]
    assert InPlace("float32", scheme).model_bytes(dit.transformer) == TorchAO(scheme, "float32").model_bytes(
        dit.transformer
    )


@torchao
def test_the_stack_as_a_whole_compiles_once(dit):
    stack = InPlace("float32", "dynamic", "eager")
    expected, *_ = images(dit, InPlace("float32", "dynamic", "none"), DIT_CACHES["fora"])
    found, graphs, _ = images(dit, stack, DIT_CACHES["fora"], times=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (graphs[0] > 0, graphs[1]) == (True, 0)


def test_an_error_takes_everything_back(dit):
    before, recipe = snapshot(dit), Recipe(DDIM, precision=InPlace("bfloat16", "none", "eager"))
    with pytest.raises(ZeroDivisionError):
        fail_inside(dit, recipe)
    assert_same(before, snapshot(dit))
    assert all(module._compiled_call_impl is None for module in dit.transformer.modules())


def fail_inside(pipe, recipe):
    with accelerate(pipe, recipe):
        run_dit(pipe)
        raise ZeroDivisionError


def test_what_cannot_be_is_refused_with_the_remedy(dit, pipe):
    with pytest.raises(ConfigError, match=r"unknown precision\.linear 'dynamik'\. Did you mean dynamic"):
        InPlace(linear="dynamik")
    with pytest.raises(IncompatibleError, match=r"no repeated blocks to compile; use precision\.backend=none"):
        Recipe(precision=InPlace(linear="none")).check(pipe)
    with pytest.raises(IncompatibleError, match="no linear layer to quantise"):
        Recipe(precision=InPlace(backend="none", keep=["*"])).check(pipe)
    compiled = dit_pipeline(layers=1)
    for block in compiled.transformer.transformer_blocks:
        block.compile(backend="eager")
    with pytest.raises(IncompatibleError, match=r"compiled already; use suite\.compile=false"):
        Recipe(precision=InPlace(linear="none")).check(compiled)
    with pytest.raises(IncompatibleError, match="one piece"):
        Recipe(precision=Compiled(), cache=DIT_CACHES["fora"]).check(dit)


def test_labels_say_what_runs():
    assert InPlace().label == "w8a8 linear(in place,bf16,compiled blocks)"
    assert InPlace("float32", "none").label == "fp32(in place,compiled blocks)"
    assert InPlace("bfloat16", "weights", "none").label == "w8 linear(in place,bf16)"
