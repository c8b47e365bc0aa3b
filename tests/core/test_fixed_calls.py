"""What a caller of an applied pipeline may say: nothing, or what the recipe has anyway."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import run_stable_diffusion, stable_diffusion

from accel.core.applied import apply
from accel.core.calls import Calls, Fixed, differences
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError
from accel.guidance import CFG, CFGPlusPlus
from accel.samplers import DiffusersSampler
from accel.samplers.grids import ExplicitGrid

IMAGE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
RECIPE = Recipe(DiffusersSampler("DDIMScheduler", 10, "ddim"), guidance=CFG(3.0))


def prompted(pipe, **call):
    """Latents of two prompts; steps and scale are left to the recipe."""
    embeds = [torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in (100, 0)]
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    own = {"prompt_embeds": embeds[0], "negative_prompt_embeds": 3 * embeds[1], "generator": generators}
    size = {} if "image" in call else {"height": 8, "width": 8}
    return pipe(**own, **size, output_type="latent", **call).images


@pytest.fixture(scope="module")
def expected():
    with accelerate(stable_diffusion(), RECIPE) as run:
        return run_stable_diffusion(run.pipe, 3.0, steps=10)


@pytest.mark.parametrize(
    "said",
    [{}, {"num_inference_steps": 10}, {"guidance_scale": 3.0}, {"guidance_scale": None, "timesteps": None, "eta": 0.0}],
    ids=str,
)
def test_what_the_recipe_has_may_be_said_or_left_out(said, expected):
    pipe = stable_diffusion()
    apply(pipe, RECIPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(prompted(pipe, **said), expected)
    assert pipe.guidance_scale == 3.0  # and not diffusers' 7.5
    assert pipe.num_timesteps == 10  # and not its 50


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"guidance_scale": 7.5}, r"guidance_scale=7\.5, and its own is 3"),
        ({"guidance_scale": 1.0}, r"guidance_scale=1\.0, and its own is 3"),
        ({"num_inference_steps": 50}, "num_inference_steps=50, and it has 10"),
        ({"timesteps": [900, 500]}, "timesteps of its own"),
        ({"sigmas": [10.0, 1.0]}, "sigmas of its own"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_differs_is_refused_or_said_once_and_replaced(said, reason, expected):
    pipe = stable_diffusion()
    applied = apply(pipe, RECIPE)
    with pytest.raises(ConfigError, match=reason):
        prompted(pipe, **said)
    assert torch.equal(prompted(pipe), expected)
    applied.remove()
    apply(pipe, RECIPE, strict=False)
    with pytest.warns(UserWarning, match=reason) as warned:
        assert torch.equal(prompted(pipe, **said), expected)
    assert len([one for one in warned if "differs from what the recipe" in str(one.message)]) == 1
    assert {one.filename for one in warned} == {__file__}  # where the caller is


def test_all_that_differs_is_one_warning():
    pipe = stable_diffusion()
    apply(pipe, RECIPE, strict=False)
    with pytest.warns(UserWarning, match="num_inference_steps=30.*guidance_scale=7.5.*eta=0.5") as warned:
        prompted(pipe, num_inference_steps=30, guidance_scale=7.5, eta=0.5)
    assert len(warned) == 1


def test_a_recipe_without_guidance_is_not_guided_by_the_pipelines_default():
    pipe = stable_diffusion()
    applied = apply(pipe, Recipe(RECIPE.sampler))
    prompted(pipe)
    assert applied.run.nfe == 10
    with pytest.raises(ConfigError, match=r"guidance_scale=7\.5, and its own is 1"):
        prompted(pipe, guidance_scale=7.5)


def test_inside_accelerate_a_call_that_says_nothing_has_the_recipes_scale(expected):
    with accelerate(stable_diffusion(), RECIPE) as run:
        assert torch.equal(prompted(run.pipe), expected)


@pytest.mark.parametrize("said", [{}, {"strength": 0.8}], ids=str)
def test_image_to_image_that_begins_in_the_middle_is_said(said):
    """strength=0.8 is also what the pipeline does by itself; its steps were too many for diffusers' default before."""
    pipe = stable_diffusion("StableDiffusionImg2ImgPipeline")
    applied = apply(pipe, RECIPE)
    with pytest.raises(ConfigError, match=r"strength=0\.8.*measured with 1\.0\. Pass strength=1\.0; or apply"):
        prompted(pipe, image=IMAGE, **said)
    prompted(pipe, image=IMAGE, strength=1.0)
    assert len(applied.run.trace) == 10
    applied.remove()
    applied = apply(pipe, RECIPE, strict=False)
    with pytest.warns(UserWarning, match=r"strength=0\.8"):
        prompted(pipe, image=IMAGE, **said)
    assert len(applied.run.trace) == 8


def said_of(given, fixed, **defaults):
    """`differences` for a pipeline with such arguments and defaults."""
    scope: dict = {}
    exec(f"def call(self, {', '.join(f'{k}={v!r}' for k, v in defaults.items())}): pass", scope)
    cls = type("Pipe", (), {"__call__": scope["call"]})
    return differences(given, Calls(cls, fixed).accepted, fixed)


@pytest.mark.parametrize(
    ("given", "defaults", "said"),
    [
        ({}, {"denoising_end": None, "denoising_start": None}, 0),
        ({"denoising_end": 0.8}, {"denoising_end": None}, 1),
        ({"denoising_start": 0.8}, {"denoising_start": None, "strength": 1.0}, 1),
        ({}, {"strength": 0.3}, 1),
        ({"strength": 1}, {"strength": 0.3}, 0),
        ({}, {"true_cfg_scale": 4.0}, 0),
        ({"true_cfg_scale": 2.0}, {"true_cfg_scale": 1.0}, 1),
        ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.0}, 1),
        ({"strength": 0.5}, {}, 0),  # the pipeline itself refuses what it does not take
        ({"guidance_scale": 0.0}, {"guidance_scale": 1.0}, 0),  # 1 and below guide nothing
        ({"guidance_scale": [2.0, 3.0]}, {"guidance_scale": 1.0}, 1),
    ],
    ids=str,
)
def test_what_makes_another_trajectory(given, defaults, said):
    scales = {"guidance_scale": 1.0, "true_cfg_scale": 1.0}
    assert len(said_of(given, Fixed("r", 10, None, scales, True), **defaults)) == said


def test_without_a_sampler_steps_and_timesteps_are_the_callers():
    fixed = Fixed("r", None, None, {"guidance_scale": 1.0}, True)
    assert not said_of({"num_inference_steps": 9, "timesteps": [5, 1]}, fixed, num_inference_steps=50, timesteps=None)


def test_arguments_by_position_are_the_same_call(expected):
    pipe = stable_diffusion()
    apply(pipe, RECIPE)
    embeds = [torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in (100, 0)]
    own = {"prompt_embeds": embeds[0], "negative_prompt_embeds": 3 * embeds[1], "output_type": "latent"}
    own["generator"] = [torch.Generator().manual_seed(i) for i in range(2)]
    assert torch.equal(pipe(None, 8, 8, **own).images, expected)
    with pytest.raises(ConfigError, match="num_inference_steps=3"):
        pipe(None, 8, 8, 3, **own)
    with pytest.raises(TypeError, match="multiple values"):
        pipe(None, prompt=None)


def test_the_recipes_timesteps_run_whatever_the_pipeline_would_make():
    recipe = Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 4), ExplicitGrid(timesteps=(999, 700, 400, 100)))
    pipe = stable_diffusion()
    applied = apply(pipe, recipe)
    prompted(pipe)
    assert [call.timestep for call in applied.run.trace] == [999, 700, 400, 100]


def test_a_guidance_whose_scale_is_its_own_asks_the_pipeline_for_a_doubled_batch():
    pipe = stable_diffusion()
    applied = apply(pipe, Recipe(RECIPE.sampler, guidance=CFGPlusPlus(0.6)))
    prompted(pipe)
    assert applied.run.nfe == 20
