"""Counted cost: peak tensor memory on allocations known by hand, and the cost of whole recipes."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from accel.caching import DeepCache, DiffusersCache, FeatureInheritance, TeaCache
from accel.caching.rows import Kept
from accel.caching.schedules import Explicit
from accel.core.denoiser import held_bytes
from accel.core.macs import count_macs
from accel.core.precision import plain_bytes
from accel.core.recipe import Recipe
from accel.evaluation.cost import PeakTensorMemory, counted_cost
from accel.guidance import CFG
from accel.precision import Cast, FakeQuant
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.testing.suites import TinySuite

MB = 1 << 20
DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})


def mebibytes(count: int) -> torch.Tensor:
    return torch.zeros(count * MB, dtype=torch.uint8)


# --- peak memory of allocations


def test_peak_of_a_known_sequence():
    with PeakTensorMemory() as memory:
        a = mebibytes(3)
        assert (memory.live, memory.peak) == (3 * MB, 3 * MB)
        b = mebibytes(2)
        assert memory.live == 5 * MB
        del a
        assert (memory.live, memory.peak) == (2 * MB, 5 * MB)
        c = mebibytes(1)
        assert (memory.live, memory.peak) == (3 * MB, 5 * MB)
        d = mebibytes(4)
        assert (memory.live, memory.peak) == (7 * MB, 7 * MB)
        del b, c, d
        assert (memory.live, memory.peak) == (0, 7 * MB)


def test_views_and_changes_in_place_allocate_nothing():
    with PeakTensorMemory() as memory:
        a = torch.zeros(MB, dtype=torch.uint8)
        views = [a[:10], a.reshape(2, -1), a.view(torch.int8), a.t() if a.dim() == 2 else a, a.detach(), *a.chunk(4)]
        a.add_(1)
        a[3:7] = 2
        torch.add(a, 1, out=a)
        assert memory.peak == MB
        del a
        gc.collect()
        assert memory.live == MB, "a view keeps its storage alive"
        del views
        gc.collect()
        assert memory.live == 0


def test_what_was_there_before_is_not_counted():
    weight = torch.ones(MB)
    with PeakTensorMemory() as memory:
        weight.mul_(2)
        part = weight[: MB // 2]
        assert memory.peak == 0
        copy = part.clone()
        assert memory.peak == 2 * MB
    del copy
    assert memory.live == 0, "also when it ends after the context"


def test_temporaries_count_while_they_live():
    with PeakTensorMemory() as memory:
        x = torch.zeros(MB, dtype=torch.uint8)
        x = x + 1  # both live during the sum
        assert (memory.live, memory.peak) == (MB, 2 * MB)
        x = ((x + 1) + 1) + 1  # the name still holds x; at most two temporaries on top of it
        assert (memory.live, memory.peak) == (MB, 3 * MB)


def test_outputs_of_every_shape_are_seen():
    with PeakTensorMemory() as memory:
        values, index = torch.sort(torch.zeros(MB, dtype=torch.float32))
        assert memory.peak == 4 * MB + 4 * MB + 8 * MB  # input, values and int64 indices
        del values
        assert memory.live == 8 * MB
        del index
        parts = torch.split(torch.zeros(4, MB, dtype=torch.uint8), 1)
        assert memory.live == 4 * MB
        del parts
        assert memory.live == 0


def test_peak_of_a_network_by_hand():
    """1x1 convolutions without bias: 1 -> 4 -> 1 channels of n elements, ReLU in place."""
    n = 64 * 64
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(4, 1, 1, bias=False))
    x = torch.zeros(1, 1, 64, 64)
    with torch.no_grad(), PeakTensorMemory() as memory:
        net(x)
    assert memory.peak == 4 * (4 * n + n)


# --- cost of recipes


def cost(pipe, digits, models, **axes):
    return counted_cost(pipe, digits, Recipe(DDIM, **axes), models)


@pytest.fixture(scope="module")
def plain(pipe, digits, models):
    return cost(pipe, digits, models)


def macs_of(net) -> int:
    with torch.no_grad():
        return count_macs(lambda: net(torch.zeros(1, 1, 16, 16), 5, class_labels=torch.tensor([1])))[1]


def test_plain_recipe(plain, pipe):
    assert plain["steps"] == plain["nfe"] == 4
    assert plain["macs"] == 4 * macs_of(pipe.unet)
    assert plain["model_bytes"] == plain_bytes(pipe.unet) == 4 * pipe.unet.num_parameters()
    assert plain["strip"] == "base:full base:full base:full base:full"
    # Weights, and at least the widest activation: 32 channels of 16x16 in float32, in and out of a layer.
    assert plain["peak_bytes"] > plain["model_bytes"] + 2 * 4 * 32 * 256


def test_memory_is_deterministic(plain, pipe, digits, models):
    assert cost(pipe, digits, models) == plain


def test_guidance_doubles_rows_but_not_weights(plain, pipe, digits, models):
    guided = cost(pipe, digits, models, guidance=CFG(2.0))
    assert (guided["steps"], guided["nfe"]) == (4, 8)
    assert guided["macs"] == 2 * plain["macs"]
    assert guided["model_bytes"] == plain["model_bytes"]
    activations = [c["peak_bytes"] - c["model_bytes"] for c in (plain, guided)]
    assert 1.8 * activations[0] < activations[1] < 2.2 * activations[0]


def test_stitching_sums_both_models(plain, pipe, digits, models):
    stitched = cost(pipe, digits, models, stitch=TStitch(fractions=(0.5,)))
    small = models["small"]
    assert stitched["model_bytes"] == plain["model_bytes"] + plain_bytes(small)
    assert stitched["macs"] == 2 * macs_of(small) + 2 * macs_of(pipe.unet)
    assert stitched["peak_bytes"] == plain["peak_bytes"] + plain_bytes(small)  # the large model's activations decide
    assert stitched["strip"] == "small:full small:full base:full base:full"


def test_a_cache_trades_memory_for_work(plain, pipe, digits, models):
    cached = cost(pipe, digits, models, cache=DeepCache(2, 1))
    assert cached["nfe"] == 4
    assert cached["macs"] < 0.75 * plain["macs"]
    assert cached["model_bytes"] == plain["model_bytes"]
    # What is stored: the entry of the last up layer, 32 channels... of 16x16, on top of a full step's activations.
    stored = cached["peak_bytes"] - plain["peak_bytes"]
    assert 0 < stored <= 4 * 64 * 256


# --- what a cache keeps between steps


def test_deepcache_keeps_one_tensor(plain, pipe, digits, models):
    assert "cache_bytes" not in plain
    net, shapes = pipe.unet, []
    handle = net.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    try:
        found = cost(pipe, digits, models, cache=DeepCache(2, 1))["cache_bytes"]
    finally:
        handle.remove()
    skip = net.conv_in.out_channels  # which is concatenated to what was stored
    assert found == 4 * (shapes[0][1] - skip) * shapes[0][2] * shapes[0][3]
    guided = cost(pipe, digits, models, cache=DeepCache(2, 1), guidance=CFG(2.0))["cache_bytes"]
    assert guided == 2 * found  # both halves
    assert cost(pipe, digits, models, cache=DeepCache(1, 1))["cache_bytes"] == 0  # every step is full, nothing is kept


def test_taylor_factors_count(pipe, digits, models):
    """A forecast of order 1 keeps two tensors of a module where reuse keeps one."""
    kept = {
        order: cost(pipe, digits, models, cache=FeatureInheritance("block", "mid_block", Explicit((0, 1)), order=order))
        for order in (0, 1)
    }
    assert kept[0]["cache_bytes"] > 0
    assert kept[1]["cache_bytes"] == 2 * kept[0]["cache_bytes"]


def test_what_a_dynamic_cache_reuses_is_in_its_cost():
    """A UNet's timestep embedding knows no sample: all reuse the two steps between the first and the last."""
    suite = TinySuite("unet")
    pipe = suite.pipeline()
    for threshold, share in ((0.0, 0.0), (1e9, 0.5)):
        cache = TeaCache(threshold, coefficients=(1.0,))
        found = counted_cost(pipe, suite, Recipe(DDIM, cache=cache))
        assert (found["hits"], found["nfe"]) == (share, 4 * (1 - share))
    assert "hits" not in counted_cost(pipe, suite, Recipe(DDIM, cache=DeepCache(2, 1)))


def test_what_tensors_share_counts_once():
    whole = torch.zeros(8, MB)
    state = [{"a": (whole[:4], [whole[4:]])}, lambda: {"b": Kept((torch.ones(MB),), None)}]
    assert held_bytes(state) == 4 * 9 * MB
    state.append(state)  # a circle
    assert held_bytes(state) == 4 * 9 * MB


def test_hooks_of_diffusers_are_weighed():
    suite = TinySuite("transformer")
    pipe = suite.pipeline()
    options = {"cache_interval": 2, "disable_cache_before_step": 1, "cache_identifiers": [r".*attn1$"]}
    for cache in (DiffusersCache("taylorseer", options), DiffusersCache("first_block", {"threshold": 10.0})):
        assert counted_cost(pipe, suite, Recipe(DDIM, cache=cache))["cache_bytes"] > 0


def test_casts_halve_weights_and_activations(plain, pipe, digits, models):
    half = cost(pipe, digits, models, precision=Cast("bfloat16"))
    assert half["model_bytes"] == plain["model_bytes"] // 2
    assert half["macs"] == plain["macs"]
    assert half["peak_bytes"] < 0.7 * plain["peak_bytes"]
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


def test_quantised_weights_count_their_bits(plain, pipe, digits, models):
    from accel.evaluation.generate import generate

    recipe = Recipe(DDIM, stitch=TStitch(fractions=(0.5,)), precision=FakeQuant(4, 8))
    ranges = recipe.precision.calibrate(pipe, recipe, lambda *drawn: generate(pipe, digits, recipe, 9, 0, 1, 1), models)
    found = counted_cost(pipe, digits, recipe, models, ranges)
    assert found["model_bytes"] == sum(recipe.precision.model_bytes(net) for net in (pipe.unet, models["small"]))
    assert found["model_bytes"] < 0.2 * (plain["model_bytes"] + plain_bytes(models["small"]))
    assert found["macs"] == 2 * macs_of(models["small"]) + 2 * macs_of(pipe.unet), "imitated layers are counted too"
