"""What a caller passes to an accelerated pipeline that the recipe decides, and networks that it would not see."""

import diffusers
import pytest
import torch
from tiny import run_stable_diffusion, stable_diffusion

from accel import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import APG, CFG, AdaptiveGuidance, CFGPlusPlus
from accel.samplers import DiffusersSampler

IMAGE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
SAMPLER = DiffusersSampler("DDIMScheduler", 10)


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("asked", [{}, {"num_inference_steps": 25}])
def test_strength_is_a_share_of_the_recipes_steps(strength, asked):
    pipe = stable_diffusion("StableDiffusionImg2ImgPipeline")
    embeds = torch.ones(2, 3, 8)
    with accelerate(pipe, Recipe(SAMPLER)) as run:
        pipe(prompt_embeds=embeds, image=IMAGE, strength=strength, guidance_scale=1.0, output_type="latent", **asked)
    assert len(run.trace) == int(10 * strength)


def test_a_pipeline_hears_the_recipes_steps_however_they_are_passed():
    pipe = stable_diffusion()
    kind = type(pipe)
    with accelerate(pipe, Recipe(SAMPLER)):
        assert type(pipe).__name__ == kind.__name__
        pipe(None, 8, 8, 3, prompt_embeds=torch.ones(1, 3, 8), guidance_scale=1.0, output_type="latent")
        assert pipe.num_timesteps == 10
    assert type(pipe) is kind
    assert "__call__" not in vars(pipe)


@pytest.mark.parametrize("own", [{"timesteps": [900, 500]}, {"sigmas": [10.0, 1.0]}])
def test_timesteps_of_the_callers_own_are_refused(own):
    pipe = stable_diffusion()
    with accelerate(pipe, Recipe(SAMPLER)), pytest.raises(ConfigError, match="grid decide"):
        run_stable_diffusion(pipe, 1.0, **own)


def test_another_scale_than_the_guidances_is_refused():
    pipe = stable_diffusion()
    with accelerate(pipe, Recipe(SAMPLER, guidance=APG(4.0))), pytest.raises(ConfigError, match="guidance_scale=4"):
        run_stable_diffusion(pipe, 7.5)


def ratio(guidance, rescale):
    """std of what the scheduler is handed at the first step over that of the conditional prediction, (B,)."""
    pipe, handed, conditional = stable_diffusion(), [], []
    pipe.unet.conv_out.register_forward_hook(lambda m, a, out: conditional.append(out.chunk(2)[1].clone()))
    with accelerate(pipe, Recipe(SAMPLER, guidance=guidance)):
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda output, *a, **k: (handed.append(output.clone()), step(output, *a, **k))[1]
        run_stable_diffusion(pipe, guidance.pipeline_scale, guidance_rescale=rescale)
    return handed[0].std(dim=(1, 2, 3)) / conditional[0].std(dim=(1, 2, 3))


@pytest.mark.parametrize("guidance", [CFG(8.0), AdaptiveGuidance(8.0, threshold=1.1)])
def test_guidance_rescale_gives_the_conditional_predictions_deviation(guidance):
    torch.testing.assert_close(ratio(guidance, 1.0), torch.ones(2), rtol=1e-4, atol=0)
    assert (ratio(guidance, 0.0) - 1).abs().max() > 1e-3


@pytest.mark.parametrize("guidance", [APG(8.0), CFGPlusPlus()])
def test_guidance_rescale_is_refused_where_the_conditional_prediction_is_changed(guidance):
    with pytest.raises(IncompatibleError, match=r"guidance_rescale=0\.7"):
        ratio(guidance, 0.7)
    assert ratio(guidance, 0.0).isfinite().all()


class Demanding(diffusers.DDIMScheduler):
    """Asks for what no pipeline of these tests says."""

    def set_timesteps(self, num_inference_steps, device=None, shape=None):
        if shape is None and device is not None:
            raise ValueError("set_timesteps needs the shape")
        super().set_timesteps(num_inference_steps, device)


def test_a_scheduler_that_the_pipeline_cannot_drive_is_refused_with_its_own_words():
    pipe = stable_diffusion()
    with accelerate(pipe, Recipe(DiffusersSampler(Demanding, 4))) as run:
        with pytest.raises(IncompatibleError, match="cannot drive Demanding: set_timesteps needs the shape"):
            run_stable_diffusion(pipe, 1.0)
        with pytest.raises(ValueError, match="prompt"):  # the pipeline's own word on its own arguments
            pipe()
    assert run.trace == []
