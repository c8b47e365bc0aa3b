"""DBCache of the package cache-dit: what it skips, whose steps it counts, and that it is gone afterwards."""

from __future__ import annotations

from dataclasses import replace

import hub_tiny
import pytest
import torch
from core.test_branches import SIX, video, wan
from snapshots import assert_same, snapshot
from tiny import dit_pipeline, run_dit, stable_diffusion

from accel.caching import CacheDiT, DiffusersCache
from accel.caching.cache_dit import block_lists
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, IntervalCFG
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 6)
ALWAYS = CacheDiT(threshold=1e6, warmup=1)


@pytest.fixture(scope="module")
def dit():
    return dit_pipeline(layers=4)


@pytest.fixture
def package():
    pytest.importorskip("cache_dit", reason="needs the package cache-dit")


def ran(pipe, recipe, **call):
    with accelerate(pipe, recipe, count_macs=True) as run:
        return torch.as_tensor(run_dit(pipe, **call)), [e.macs for e in run.trace], run


@pytest.mark.parametrize("threshold", [0.02, 0.1, 10.0])
def test_with_one_first_block_it_is_first_block_cache(dit, package, threshold):
    """The judge: diffusers' FirstBlockCache, another program of the same formula."""
    ours = ran(dit, Recipe(DDIM, cache=CacheDiT(threshold=threshold, warmup=0)))
    theirs = ran(dit, Recipe(DDIM, cache=DiffusersCache("first_block", {"threshold": threshold})))
    assert ours[1] == theirs[1]
    assert torch.allclose(ours[0], theirs[0], atol=1e-6)


def test_what_is_skipped_is_blocks_between_the_first_and_the_last(dit, package):
    whole = ran(dit, Recipe(DDIM))[1][0]
    one = [ran(dit, Recipe(DDIM, cache=replace(ALWAYS, first=f, last=b)))[1] for f, b in ((1, 0), (1, 1), (2, 1))]
    block = one[1][1] - one[0][1]
    assert [macs[0] for macs in one] == [whole] * 3
    assert [whole - macs[1] for macs in one] == [3 * block, 2 * block, block]


@pytest.mark.parametrize(
    ("change", "skipped"),
    [
        ({"warmup": 3}, [3, 4, 5]),
        ({"in_a_row": 1}, [1, 3, 5]),
        ({"mask": (1, 0, 1, 0, 0, 1)}, [1, 3, 4]),
        ({"mask": (1, 0, 1, 0, 0, 1), "policy": "static", "threshold": 1e-9}, [1, 3, 4]),
        ({"threshold": 0.0}, []),
    ],
)
def test_which_steps_are_skipped(dit, package, change, skipped):
    _, macs, _ = ran(dit, Recipe(DDIM, cache=replace(ALWAYS, **change)))
    assert [step for step, m in enumerate(macs) if m < macs[0]] == skipped


def test_each_trajectory_begins_anew_and_nothing_is_left(dit, package):
    before, exact = snapshot(dit), ran(dit, Recipe(DDIM))[0]
    calls = type(dit).__call__
    with accelerate(dit, Recipe(DDIM, cache=ALWAYS)) as run:
        held = []
        run.clock.on_stage(lambda: held.append(run.cache_bytes))
        first = torch.as_tensor(run_dit(dit))
        latent = dit.transformer.config
        kept = 2 * 16 * latent.num_attention_heads * latent.attention_head_dim * 4  # the residual of 2 x 16 tokens
        assert {*held} == {2 * kept}, "of the first block, and of the others"
        run_dit(dit, count=3)
        assert torch.equal(torch.as_tensor(run_dit(dit)), first)
    assert not torch.equal(first, exact)
    assert_same(before, snapshot(dit))
    assert type(dit).__call__ is calls
    assert not hasattr(type(dit), "_is_cached")
    assert torch.equal(ran(dit, Recipe(DDIM))[0], exact)


def test_an_error_leaves_the_network_as_it_was(dit, package):
    before = snapshot(dit)

    def broken(*_):
        raise RuntimeError("no")

    handle = dit.transformer.transformer_blocks[-1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="no"):
        ran(dit, Recipe(DDIM, cache=ALWAYS))
    handle.remove()
    assert_same(before, snapshot(dit))


def test_where_guidance_ends_the_rows_that_are_left_are_evaluated_whole_first(dit, package):
    """Under a static mask, which asks for nothing: other rows are in a context of their own, that knows no residual."""
    static = replace(ALWAYS, mask=(1, 0, 0, 0, 0, 0), policy="static")
    guided = IntervalCFG(3.0, sigma_lo=2.0, sigma_hi=1e6)
    _, macs, run = ran(dit, Recipe(DDIM, guidance=guided, cache=static), guidance_scale=3.0)
    rows = [e.rows for e in run.trace]
    change = next(i for i in range(1, 6) if rows[i] != rows[i - 1])
    a_row = [m / r for m, r in zip(macs, rows, strict=True)]
    assert [i for i, m in enumerate(a_row) if m == max(a_row)] == [0, change]


def test_guidance_in_two_calls_mixes_nothing(package):
    """Wan calls for the condition and for its absence: a threshold of 0 is no cache, what always skips skips both."""
    found = {}
    for threshold in (None, 0.0, 1e6):
        cache = None if threshold is None else CacheDiT(threshold=threshold, warmup=1)
        frames, run = video(wan(), Recipe(SIX, guidance=CFG(3.0), cache=cache))
        found[threshold] = frames, [e.macs for e in run.trace if e.model == "base"]
    assert torch.equal(found[None][0], found[0.0][0])
    macs = found[1e6][1]
    assert macs[0] == macs[1] > macs[2] == macs[3] == macs[-1]


def test_two_evaluations_a_step_have_contexts_of_their_own(dit, package):
    heun = DiffusersSampler("HeunDiscreteScheduler", 4)
    _, macs, _ = ran(dit, Recipe(heun, cache=ALWAYS))
    assert [m == macs[0] for m in macs] == [True, True, False, False, False, False, False]


def test_without_the_package_it_is_refused_in_one_line(dit, monkeypatch):
    monkeypatch.setattr("accel.caching.cache_dit.find_spec", lambda name: None)
    line = r"needs the package cache-dit, which is not installed; install it with pip install cache-dit, or use cache="
    with pytest.raises(IncompatibleError, match=line), accelerate(dit, Recipe(DDIM, cache=ALWAYS)):
        pass


def test_what_it_cannot_work_on_is_refused(dit):
    with pytest.raises(IncompatibleError, match="works on transformers, and 'base' is a UNet2DConditionModel"):
        Recipe(DDIM, cache=ALWAYS).check(stable_diffusion())
    with pytest.raises(IncompatibleError, match="4 first and 1 last blocks, and transformer_blocks of 'base' has 4"):
        Recipe(DDIM, cache=CacheDiT(first=4, last=1)).check(dit)
    with pytest.raises(IncompatibleError, match=r"for 2 steps, and the sampler has 6"):
        Recipe(DDIM, cache=CacheDiT(mask=(1, 0))).check(dit)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": 0}, "cache.first is 0"),
        ({"mask": (0, 1)}, r"cache.mask is \[0, 1\]; allowed: a 1"),
        ({"policy": "static"}, "cache.mask is empty"),
        ({"policy": "fast"}, "unknown cache.policy 'fast'"),
        ({"threshold": -0.1}, "cache.threshold is -0.1"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(ConfigError, match=said):
        CacheDiT(**settings)


def test_two_lists_of_blocks_decide_for_themselves(package):
    """Flux: both streams, then one; of each list its second block is skipped."""
    pipe = hub_tiny.builder("flux")(num_layers=2, num_single_layers=2)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.transformer):
        part.eval()
    assert [*block_lists("base", pipe.transformer)] == ["transformer_blocks", "single_transformer_blocks"]
    call = {"prompt": "a", "height": 16, "width": 16, "max_sequence_length": 24, "output_type": "latent"}
    macs, images = {}, {}
    for threshold in (None, 0.0, 1e6):
        cache = None if threshold is None else CacheDiT(threshold=threshold, warmup=1)
        with accelerate(pipe, Recipe(SIX, cache=cache), count_macs=True) as run:
            images[threshold] = pipe(**call, generator=torch.Generator().manual_seed(0)).images
        macs[threshold] = [e.macs for e in run.trace]
    blocks = [count_macs_of(pipe, name) for name in ("transformer_blocks", "single_transformer_blocks")]
    assert torch.equal(images[None], images[0.0])
    assert macs[0.0] == macs[None]
    assert {whole - less for whole, less in zip(macs[None][1:], macs[1e6][1:], strict=True)} == {sum(blocks)}


def count_macs_of(pipe, name: str) -> int:
    """MACs of one block of the list, by the difference of networks with one and with two of them."""
    call = {"prompt": "a", "height": 16, "width": 16, "max_sequence_length": 24, "output_type": "latent"}
    found = []
    for _ in range(2):
        with accelerate(pipe, Recipe(SIX), count_macs=True) as run:
            pipe(**call)
        found.append(run.trace[0].macs)
        del getattr(pipe.transformer, name)[1:]
    return found[0] - found[1]
