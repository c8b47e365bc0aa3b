"""Pipelines that guide by guider objects: HunyuanImage, tiny and random, held against its own loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanImagePipeline, HunyuanImageTransformer2DModel
from diffusers.guiders import (
    AdaptiveProjectedMixGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from diffusers.hooks import LayerSkipConfig

from accel.caching import EasyCache, FeatureInheritance
from accel.caching.schedules import Uniform
from accel.core import pipelines
from accel.core.applied import apply
from accel.core.guiders import guiders
from accel.core.recipe import Recipe, accelerate
from accel.errors import IncompatibleError
from accel.guidance import APG, CFG, AdaptiveGuidance, CFGPlusPlus, IntervalCFG
from accel.guidance.apg import apg
from accel.samplers import DiffusersSampler

STEPS, SCALE = 5, 3.0
EULER = DiffusersSampler("FlowMatchEulerDiscreteScheduler", STEPS, "flow_euler")
LAYERS = LayerSkipConfig(indices=[0], fqn="transformer_blocks")


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            num_single_layers=1, num_refiner_layers=1, text_embed_dim=8, text_embed_2_dim=8, rope_axes_dim=(4, 4),
        )  # fmt: skip
        for weight in net.parameters():  # the last layers begin at little
            torch.nn.init.normal_(weight, std=0.2)
    return net.eval().requires_grad_(False)


@pytest.fixture
def pipe(net):
    pipe = HunyuanImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(seed: int, prefix: str = "", count: int = 2):
    made = [torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(seed + i)) for i in range(2)]
    masks = torch.ones(count, 6, dtype=torch.int64)
    names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
    return {prefix + name: value for name, value in zip(names, (made[0], masks, made[1], masks), strict=True)}


COND, NULL = arguments(1), arguments(7, "negative_")
NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def call(pipe):
    return pipe(**COND, **NULL, latents=NOISE.clone(), height=128, width=128, num_inference_steps=STEPS,
                output_type="latent").images  # fmt: skip


def images(pipe, recipe):
    with accelerate(pipe, recipe, count_macs=True) as run:
        return call(pipe), run


def with_guider(pipe, guider, ocr=None):
    """What the pipeline's own loop gives with these guiders, on the recipe's scheduler."""
    before = pipe.guider, pipe.ocr_guider, pipe.scheduler
    pipe.guider, pipe.ocr_guider, pipe.scheduler = guider, ocr, EULER.build(pipe.scheduler.config)
    try:
        return call(pipe)
    finally:
        pipe.guider, pipe.ocr_guider, pipe.scheduler = before


def by_hand(pipe, combined):
    """Euler steps with `combined(u, c, sigma, x)`."""
    scheduler, x = EULER.build(pipe.scheduler.config), NOISE.clone()
    scheduler.set_timesteps(STEPS)
    given = [{n.removeprefix("negative_"): v for n, v in own.items()} for own in (NULL, COND)]
    named = {
        "prompt_embeds": "encoder_hidden_states",
        "prompt_embeds_mask": "encoder_attention_mask",
        "prompt_embeds_2": "encoder_hidden_states_2",
        "prompt_embeds_mask_2": "encoder_attention_mask_2",
    }
    for i, t in enumerate(scheduler.timesteps):
        u, c = (
            pipe.transformer(x, t.expand(len(x)), return_dict=False, **{named[n]: v for n, v in own.items()})[0]
            for own in given
        )
        x = scheduler.step(combined(u, c, float(scheduler.sigmas[i]), x), t, x, return_dict=False)[0]
    return x


def test_where_a_guider_may_be_is_seen_from_the_class(pipe):
    assert guiders(pipe) == {"guider": None, "ocr_guider": None}
    assert pipelines.layout(pipe) == "separate"
    assert pipelines.scale_arguments(type(pipe), 3.0) == {}, "no argument of a call asks for guidance"
    assert pipelines.scale_arguments(type(pipe), 1.0, 3.5) == {"distilled_guidance_scale": 3.5}
    assert pipelines.usual_scale(type(pipe)) is None


@pytest.mark.parametrize(
    "own", [None, ClassifierFreeGuidance(5.0), AdaptiveProjectedMixGuidance()], ids=lambda own: type(own).__name__
)
def test_a_recipe_s_guidance_takes_the_guider_s_place_until_it_is_removed(pipe, own):
    pipe.guider = pipe.ocr_guider = own
    config, plain = dict(pipe.config), call(pipe)
    found, run = images(pipe, Recipe(EULER, guidance=CFG(SCALE)))
    assert torch.equal(found, with_guider(pipe, *[ClassifierFreeGuidance(SCALE)] * 2))
    assert run.nfe == 2 * STEPS
    assert pipe.guider is pipe.ocr_guider is own
    assert dict(pipe.config) == config
    assert torch.equal(call(pipe), plain)
    assert not torch.equal(found, plain)


@torch.no_grad()
def test_apg_and_cfgpp_are_their_equations(pipe):
    """Of a flow: x_0 = x - sigma v, eps = x + (1 - sigma) v."""
    past = [0.0]

    def projected(u, c, sigma, x):
        of = [(x - sigma * v).double() for v in (c, u)]
        d, past[0] = apg(of[0] - of[1], of[0], past[0], 0.0, float("inf"), -0.5)
        return ((x - (of[0] + (SCALE - 1) * d)) / sigma).float()

    found, run = images(pipe, Recipe(EULER, guidance=APG(SCALE)))
    torch.testing.assert_close(found, by_hand(pipe, projected), rtol=1e-4, atol=1e-4)
    assert run.nfe == 2 * STEPS

    scheduler = EULER.build(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.tolist()

    def renoised(u, c, sigma, x):
        g, end = u + 0.6 * (c - u), sigmas[sigmas.index(sigma) + 1]
        step = (end - sigma) * g + end * (1 - sigma) * (u - g)
        return step / (end - sigma)

    found, _ = images(pipe, Recipe(EULER, guidance=CFGPlusPlus(0.6)))
    torch.testing.assert_close(found, by_hand(pipe, renoised), rtol=1e-4, atol=1e-4)


def test_what_guidance_does_not_ask_for_is_not_evaluated(pipe):
    found, run = images(pipe, Recipe(EULER, guidance=IntervalCFG(SCALE, 5.0, 6.0)))
    torch.testing.assert_close(found, with_guider(pipe, ClassifierFreeGuidance(enabled=False)))
    assert run.nfe == STEPS
    _, run = images(pipe, Recipe(EULER, guidance=AdaptiveGuidance(SCALE, -1.0, min_steps=2)))
    assert run.nfe == STEPS + 3


def test_without_guidance_in_the_recipe_the_pipeline_s_own_stays(pipe):
    pipe.guider = pipe.ocr_guider = ClassifierFreeGuidance(5.0)
    wanted = with_guider(pipe, pipe.guider, pipe.guider)
    found, run = images(pipe, Recipe(EULER))
    assert torch.equal(found, wanted)
    assert run.nfe == 2 * STEPS
    for cache in (FeatureInheritance("unit", schedule=Uniform(1)), EasyCache(0.0)):
        assert torch.equal(images(pipe, Recipe(EULER, cache=cache))[0], wanted)
    cached, run = images(pipe, Recipe(EULER, cache=FeatureInheritance("unit", schedule=Uniform(2))))
    assert not torch.equal(cached, wanted)
    assert [e.mode for e in run.trace] == ["full"] * 2 + ["partial"] * 2 + ["full"] * 2 + ["partial"] * 2 + ["full"] * 2


def test_applied_it_is_the_same(pipe):
    pipe.guider = AdaptiveProjectedMixGuidance()
    own, wanted = pipe.guider, with_guider(pipe, *[ClassifierFreeGuidance(SCALE)] * 2)
    applied = apply(pipe, Recipe(EULER, guidance=CFG(SCALE)))
    assert torch.equal(call(pipe), wanted)
    applied.remove()
    assert pipe.guider is own


@pytest.mark.parametrize(
    "guider",
    [
        SkipLayerGuidance(skip_layer_config=LAYERS),
        PerturbedAttentionGuidance(perturbed_guidance_config=LAYERS),
        AutoGuidance(auto_guidance_config=LAYERS),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_a_guider_that_changes_layers_goes_with_nothing_that_looks_at_them(pipe, guider):
    pipe.guider = guider
    with pytest.raises(IncompatibleError, match=rf"guides by the {type(guider).__name__} of its part guider, which"):
        Recipe(EULER, cache=EasyCache()).check(pipe)
    Recipe(EULER).check(pipe)
    Recipe(EULER, guidance=CFG(SCALE), cache=EasyCache()).check(pipe)
    guider.disable()
    Recipe(EULER, cache=EasyCache()).check(pipe)


def test_modular_pipelines_are_refused():
    from diffusers import ModularPipeline

    modular = type("StableDiffusionXLModularPipeline", (ModularPipeline,), {})
    with pytest.raises(IncompatibleError, match=r"is a modular pipeline.*Use the pipeline class of the same model"):
        Recipe(EULER).check(modular.__new__(modular))
