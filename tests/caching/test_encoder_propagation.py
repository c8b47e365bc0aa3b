"""Encoder propagation: what the decoder sees, parallel decoding, multi-stage samplers, guidance, prior noise."""

from __future__ import annotations

import pytest
import torch

from accel.caching import EncoderPropagation
from accel.caching.decoder_view import DecoderView
from accel.caching.schedules import Explicit, Uniform
from accel.config import choice_of
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, IntervalCFG
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from tests.caching.test_unet_view import KINDS


def cached(interval=3, **settings) -> EncoderPropagation:
    return EncoderPropagation(Uniform(interval), **settings)


# --- the view


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_on_fresh_features_is_the_network(kind):
    net, condition = KINDS[kind]()
    view, x = DecoderView(net), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        (expected,), features = view.capture(lambda: net(x, torch.tensor(7), **condition, return_dict=False))
        (found,) = view.forward(features, sample=x, timestep=torch.tensor(7), **condition, return_dict=False)
        (again,) = net(x, torch.tensor(7), **condition, return_dict=False)
    assert torch.equal(found, expected)
    assert torch.equal(again, expected), "the network is as it was"


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_depends_on_the_time_but_not_on_the_sample(kind):
    net, condition = KINDS[kind]()
    view, x = DecoderView(net), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        _, features = view.capture(lambda: net(x, torch.tensor(7), **condition, return_dict=False))

        def decoded(sample, t):
            return view.forward(features, sample=sample, timestep=torch.tensor(t), **condition, return_dict=False)[0]

        assert torch.equal(decoded(x, 3), decoded(torch.randn_like(x), 3))
        assert not torch.equal(decoded(x, 3), decoded(x, 500))


def test_captured_features_are_copies():
    """FreeU scales hidden states and skips in place or not, as diffusers likes; what is kept must not change."""
    net, condition = KINDS["SD"]()
    net.enable_freeu(s1=0.5, s2=0.5, b1=1.5, b2=1.5)
    view, x = DecoderView(net), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        (expected,), features = view.capture(lambda: net(x, torch.tensor(7), **condition, return_dict=False))
        for _ in range(2):
            (found,) = view.forward(features, sample=x, timestep=torch.tensor(7), **condition, return_dict=False)
            assert torch.equal(found, expected)


def test_control_residuals_stay_in_the_features():
    net, condition = KINDS["SD"]()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        _, plain = DecoderView(net).capture(lambda: net(x, torch.tensor(7), **condition))
        residuals = tuple(torch.randn_like(skip) for skip in plain[1:])
        control = {
            "down_block_additional_residuals": residuals,
            "mid_block_additional_residual": torch.randn_like(plain[0]),
        }
        view = DecoderView(net)
        (expected,), features = view.capture(lambda: net(x, torch.tensor(7), **condition, **control, return_dict=False))
        (found,) = view.forward(features, sample=x, timestep=torch.tensor(7), **condition, **control, return_dict=False)
    assert torch.equal(found, expected)


# --- trajectories


def test_every_step_a_key_step_is_no_cache(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(4))):
        expected = run()
    with accelerate(pipe, Recipe(ddim(4), cache=cached(1))):
        assert torch.equal(run(), expected)


def test_keys_are_full_and_the_rest_decoders(pipe, run, ddim):
    recipe = Recipe(ddim(8), cache=EncoderPropagation(Explicit((0, 1, 5))))
    with accelerate(pipe, recipe, count_macs=True) as traced:
        run()
    assert "".join(e.mode[0] for e in traced.trace) == "ffdddfdd"
    full, decoder = traced.trace[0].macs, traced.trace[2].macs
    assert {e.macs for e in traced.trace} == {full, decoder}
    assert 0.5 < decoder / full < 0.85


@pytest.mark.parametrize("group", [2, 3, 50])
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_parallel_decoding_equals_serial(pipe, run, ddim, group, sampler):
    sampler = ddim(8) if sampler == "ddim" else DiffusersSampler("HeunDiscreteScheduler", 8)
    results = {}
    for size in (1, group):
        with accelerate(pipe, Recipe(sampler, cache=cached(4, group=size), guidance=CFG(2.0)), count_macs=True) as seen:
            results[size] = run(2.0), seen.nfe, seen.macs, len(seen.trace)
    torch.testing.assert_close(results[1][0], results[group][0], atol=1e-4, rtol=0)
    assert results[1][1:3] == results[group][1:3], "the same rows and MACs"
    assert results[group][3] < results[1][3], "in fewer calls"


def test_group_bounds_the_rows_of_a_call(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(9), cache=cached(9, group=3))) as traced:
        run()
    assert [e.rows for e in traced.trace] == [2, 6, 6, 4]


def test_heun_keeps_features_for_each_stage(pipe, run):
    recipe = Recipe(DiffusersSampler("HeunDiscreteScheduler", 6), cache=cached(3))
    with accelerate(pipe, recipe) as traced:
        run()
    assert "".join(e.mode[0] for e in traced.trace) == "ffddddffddd"


@pytest.mark.parametrize("group", [1, 4])
def test_guidance_that_ends_reuses_the_conditional_half(pipe, run, ddim, group):
    with accelerate(pipe, Recipe(ddim(8), guidance=CFG(2.0))) as probe:
        run(2.0)
    cut = (probe.trace[4].sigma + probe.trace[5].sigma) / 2
    with accelerate(pipe, Recipe(ddim(8), guidance=IntervalCFG(2.0, sigma_lo=cut), cache=cached(4))):
        expected = run(2.0)
    recipe = Recipe(ddim(8), guidance=IntervalCFG(2.0, sigma_lo=cut), cache=cached(4, group=group))
    with accelerate(pipe, recipe) as traced:
        found = run(2.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert [e.mode for e in traced.trace].count("full") == 2


def test_state_is_that_of_the_run(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(6), cache=cached(3, group=2))) as traced:
        first = run()
        run(count=3, first=5)
        assert torch.equal(run(), first)
        assert not any(drop.__self__ for drop in traced.clock._resets)


def test_prior_noise_enters_in_the_later_half(pipe, run, ddim):
    """By hand: the sampler's own steps with x + alpha z_T from step T / 2 on."""
    alpha, recipe = 0.05, Recipe(ddim(6), cache=cached(2, prior_noise=0.05))
    with accelerate(pipe, recipe):
        found = run()
    with accelerate(pipe, Recipe(ddim(6), cache=cached(2))) as plain:
        without = run()
        original, seen = plain.scheduler.step, []

        def step(output, t, sample, *args, **kwargs):
            seen.append(sample)
            return original(output, t, sample + (alpha * seen[0] if len(seen) > 3 else 0), *args, **kwargs)

        plain.scheduler.step = step
        expected = run()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found, without, atol=1e-3)


# --- what is refused


@pytest.mark.parametrize(
    "sampler",
    [
        DiffusersSampler("EulerAncestralDiscreteScheduler", 4),
        DiffusersSampler("DPMSolverMultistepScheduler", 4, options={"algorithm_type": "sde-dpmsolver++"}),
        choice_of("sampler", "pc"),
    ],
    ids=lambda s: s.name,
)
def test_samplers_that_add_noise_are_refused(pipe, sampler):
    with pytest.raises(IncompatibleError, match=r"does not see the noise that \w+ adds at each step; use a determin"):
        Recipe(sampler, cache=cached()).check(pipe)


def test_parallel_decoding_with_a_stitch_is_refused(pipe, models, ddim):
    recipe = Recipe(ddim(8), cache=cached(group=2), stitch=TStitch(("small",), (0.5,)))
    with pytest.raises(IncompatibleError, match=r"use cache.group=1, or stitch=none"):
        recipe.check(pipe, models)
    with accelerate(pipe, Recipe(ddim(8), cache=cached(), stitch=recipe.stitch), models=models):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"group": 0}, "cache.group is 0"), ({"prior_noise": -0.1}, "cache.prior_noise is -0.1")],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        cached(**settings)


def test_key_steps_beyond_the_sampler_are_refused(pipe, ddim):
    with pytest.raises(ConfigError, match="has 5, but the sampler has 4 steps"):
        Recipe(ddim(4), cache=EncoderPropagation(Explicit((0, 5)))).check(pipe)
