"""diffusers' own caches: they act, they start anew with each trajectory, and they leave nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core.test_branches import SIX, video, wan
from snapshots import assert_same, snapshot
from tiny import dit_pipeline, run_dit

from accel.caching import DiffusersCache
from accel.caching.diffusers_hooks import _without_traces
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 8)
TAYLOR = {"cache_interval": 3, "disable_cache_before_step": 2, "cache_identifiers": [r"transformer_blocks\.\d+\.ff"]}
ACTIVE = {
    "first_block": {"threshold": 10.0},
    "mag": {"threshold": 5.0, "num_inference_steps": 8, "mag_ratios": [1.0] * 8, "retention_ratio": 0.2},
    "taylorseer": TAYLOR,
    "pab": {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [-1, 1001]},
}


@pytest.fixture(scope="module")
def dit():
    return dit_pipeline(layers=4)


@pytest.mark.parametrize("hook", ACTIVE)
def test_it_skips_work_and_each_trajectory_starts_anew(dit, hook):
    before = snapshot(dit)
    with accelerate(dit, Recipe(DDIM), count_macs=True) as plain:
        exact = torch.as_tensor(run_dit(dit))
    recipe = Recipe(DDIM, cache=DiffusersCache(hook, ACTIVE[hook]))
    with accelerate(dit, recipe, count_macs=True) as cached:
        first = torch.as_tensor(run_dit(dit))
        macs = [e.macs for e in cached.trace]
        run_dit(dit, count=3)
        assert torch.equal(torch.as_tensor(run_dit(dit)), first)
        assert [e.macs for e in cached.trace] == macs, "the first steps are full again"
    assert sum(macs) < 0.95 * sum(e.macs for e in plain.trace)
    assert macs[0] == plain.trace[0].macs
    assert not torch.equal(first, exact)
    assert_same(before, snapshot(dit))
    assert not [m for m in dit.transformer.modules() if {"forward", "_diffusers_hook"} & set(m.__dict__)]
    with accelerate(dit, Recipe(DDIM)):
        assert torch.equal(torch.as_tensor(run_dit(dit)), exact)


def test_mag_ratios_are_those_of_diffusers_own_calibration(dit, capsys):
    recipe = Recipe(DDIM, cache=DiffusersCache("mag", {"threshold": 0.06}))
    assert recipe.cache.calibrated
    with pytest.raises(ConfigError, match="still to be measured"), accelerate(dit, recipe):
        pass
    made = recipe.cache.calibrate(dit, recipe, lambda *drawn: run_dit(dit))
    theirs = DiffusersCache("mag", {"calibrate": True, "num_inference_steps": 8, "mag_ratios": None})
    with accelerate(dit, Recipe(DDIM, cache=theirs)):
        run_dit(dit)
    said = capsys.readouterr().out
    printed = [float(x) for x in said[said.rindex("[") + 1 : said.rindex("]")].split(",")]
    assert made["mag_ratios"].tolist() == pytest.approx(printed, rel=1e-4)
    assert len(set(printed)) > 4
    ready = recipe.cache.prepared(dit, recipe, made)
    assert ready.options["num_inference_steps"] == 8
    with accelerate(dit, recipe, artefacts={"cache": made}):
        run_dit(dit)
    other = Recipe(DiffusersSampler("DDIMScheduler", 5), cache=recipe.cache)
    with pytest.raises(ConfigError, match="measured over 8 steps, but the sampler has 5"):
        other.cache.prepared(dit, other, made)


def test_a_threshold_that_nothing_meets_is_no_cache(dit):
    with accelerate(dit, Recipe(DDIM)):
        exact = torch.as_tensor(run_dit(dit))
    with accelerate(dit, Recipe(DDIM, cache=DiffusersCache("first_block", {"threshold": 0.0}))):
        assert torch.equal(torch.as_tensor(run_dit(dit)), exact)


def test_both_stages_of_heun_have_a_state_of_their_own(dit):
    sampler = DiffusersSampler("HeunDiscreteScheduler", 6)
    with accelerate(
        dit, Recipe(sampler, cache=DiffusersCache("first_block", {"threshold": 10.0})), count_macs=True
    ) as run:
        run_dit(dit)
    full = run.trace[0].macs
    assert [e.macs == full for e in run.trace][:4] == [True, True, False, False]


@pytest.mark.parametrize("hook", ["first_block", "taylorseer"])
def test_the_calls_of_one_step_have_a_state_each(hook):
    """A step with two calls (Wan) hits as often as two pipelines, and what a call keeps is its own."""
    pipe = wan()
    cache = DiffusersCache(
        hook, ACTIVE[hook] | ({"cache_identifiers": [r"blocks\.\d+\.ffn"]} if hook == "taylorseer" else {})
    )
    _, plain = video(pipe, Recipe(SIX, guidance=CFG(3.0)))
    _, run = video(pipe, Recipe(SIX, guidance=CFG(3.0), cache=cache))
    saved = [own.macs < whole.macs for own, whole in zip(run.trace, plain.trace, strict=True)]
    assert saved[::2] == saved[1::2]
    assert any(saved)


def test_where_calls_or_modules_would_be_mixed_they_are_refused(dit):
    pab = Recipe(SIX, guidance=CFG(3.0), cache=DiffusersCache("pab", {"spatial_attention_block_skip_range": 2}))
    with pytest.raises(IncompatibleError, match="more than once a step"):
        video(wan(), pab)
    video(wan(), replace(pab, guidance=None))

    class Twice(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return self.own(self.own(*args, **kwargs))

    pipe = dit_pipeline(layers=2)
    block = pipe.transformer.transformer_blocks[1]
    inside, block.ff = block.ff, Twice()
    block.ff.own = inside
    cache = DiffusersCache("taylorseer", TAYLOR | {"cache_identifiers": [r"transformer_blocks\.1\.ff\.own"]})
    with pytest.raises(IncompatibleError, match=r"calls its module transformer_blocks\.1\.ff\.own twice"):
        run_recipe(pipe, Recipe(DDIM, cache=cache))


def run_recipe(pipe, recipe):
    with accelerate(pipe, recipe):
        return run_dit(pipe)


def test_where_they_do_not_work_they_are_refused(pipe, ddim):
    for hook in ("first_block", "mag", "taylorseer"):
        with pytest.raises(IncompatibleError, match="works on transformers, and 'base' is a UNet2DModel"):
            Recipe(ddim(4), cache=DiffusersCache(hook, ACTIVE[hook])).check(pipe)


@pytest.mark.parametrize(
    ("settings", "said"),
    [(("first_blok", {}), "first_block"), (("first_block", {"treshold": 1}), r"cache.options .*treshold"),
     (("mag", {"treshold": 1}), r"cache.options .*treshold")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        DiffusersCache(*settings)


def test_hooks_that_match_no_module_are_refused(dit):
    """TaylorSeer's default knows no module of a DiT: it would run the plain network under a cache's name."""
    before = snapshot(dit)
    with pytest.raises(IncompatibleError, match="matches no module of DiTTransformer2DModel"):
        Recipe(DDIM, cache=DiffusersCache("taylorseer", {"cache_interval": 3})).check(dit)
    Recipe(DDIM, cache=DiffusersCache("taylorseer", TAYLOR)).check(dit)
    assert_same(before, snapshot(dit))


def test_pyramid_attention_is_refused_where_a_step_has_two_evaluations(dit):
    recipe = Recipe(DiffusersSampler("HeunDiscreteScheduler", 4), cache=DiffusersCache("pab", ACTIVE["pab"]))
    with pytest.raises(IncompatibleError, match="makes 2 of them a step"):
        recipe.check(dit)


def test_what_their_hooks_raise_is_a_refusal_and_what_the_network_raises_is_not(dit):
    bad = DiffusersCache("mag", {"threshold": 5.0, "num_inference_steps": 8, "mag_ratios": [1.0] * 8})
    twice = DiffusersCache("first_block", {"threshold": 0.1})
    with accelerate(dit, Recipe(DDIM, cache=bad)):
        dit.scheduler.set_timesteps(8)
        with pytest.raises(RuntimeError, match="7 channels"):
            dit.transformer(torch.zeros(1, 7, 3, 3), timestep=torch.tensor([1]), class_labels=torch.tensor([1]))
    with _without_traces(dit.transformer):
        twice._apply(dit.transformer, None)
        with pytest.raises(IncompatibleError, match=r"first_block cache fails on .*already exists"):
            Recipe(DDIM, cache=twice).check(dit)


def test_hooks_of_others_in_the_same_registry_stay(dit):
    """Offloading keeps its hooks in the registry that the caches' hooks go to: those are gone afterwards, and its own
    are called as before, however often a recipe is entered."""
    from diffusers.hooks import HookRegistry, ModelHook

    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Counting.calls += 1
            return args, kwargs

    blocks = dit.transformer.transformer_blocks
    recipe = Recipe(DDIM, cache=DiffusersCache("first_block", ACTIVE["first_block"]))
    with accelerate(dit, recipe):
        expected = torch.as_tensor(run_dit(dit))
    for block in blocks:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Counting(), "counting")
    try:
        for _ in range(2):
            with accelerate(dit, recipe):
                assert torch.equal(torch.as_tensor(run_dit(dit)), expected)
            assert [list(block._diffusers_hook.hooks) for block in blocks] == [["counting"]] * len(blocks)
        Counting.calls = 0
        run_dit(dit, steps=3)
        assert Counting.calls == 3 * len(blocks)
    finally:
        for block in blocks:
            block._diffusers_hook.remove_hook("counting")
            del block._diffusers_hook, block.forward
