"""Networks that get more than the latents: the mask and the masked image of inpainting, beside them in the channels."""

import pytest
import torch
from tiny import run_stable_diffusion, stable_diffusion

from accel import Recipe, accelerate
from accel.core.denoiser import Inputs
from accel.guidance import APG, AdaptiveGuidance, CFGPlusPlus
from accel.guidance.spaces import latents
from accel.samplers import DiffusersSampler

MASK = torch.zeros(2, 1, 8, 8)
MASK[:, :, 2:6, 2:6] = 1
MORE = {"image": torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5)), "mask_image": MASK}
SAMPLER = DiffusersSampler("DDIMScheduler", 6)


@pytest.mark.parametrize("guidance", [APG(3.0, eta=1.0, momentum=0.0), AdaptiveGuidance(3.0, threshold=1.1)])
def test_on_an_inpainting_network_a_neutral_guidance_is_cfg(guidance):
    plain, pipe = (stable_diffusion("StableDiffusionInpaintPipeline", channels=9) for _ in range(2))
    plain.scheduler = SAMPLER.build(plain.scheduler.config)
    expected = run_stable_diffusion(plain, 3.0, **MORE)
    with accelerate(pipe, Recipe(SAMPLER, guidance=guidance)):
        assert torch.equal(run_stable_diffusion(pipe, 3.0, **MORE), expected)
    with accelerate(pipe, Recipe(SAMPLER, guidance=APG(3.0))):
        assert not torch.equal(run_stable_diffusion(pipe, 3.0, **MORE), expected)


def test_cfgpp_moves_the_latents_alone():
    pipe = stable_diffusion("StableDiffusionInpaintPipeline", channels=9)
    guidance = CFGPlusPlus()
    with accelerate(pipe, Recipe(SAMPLER, guidance=guidance)):
        assert run_stable_diffusion(pipe, guidance.pipeline_scale, **MORE).isfinite().all()


@pytest.mark.parametrize(
    ("sample", "prediction", "shape"),
    [
        ((2, 9, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8)),  # inpainting
        ((2, 4, 8, 8), (2, 8, 8, 8), (2, 4, 8, 8)),  # learned variances
        ((2, 5, 32, 4, 4), (2, 5, 16, 4, 4), (2, 5, 16, 4, 4)),  # an image beside each frame (CogVideoX)
        ((2, 7, 96), (2, 7, 64), (2, 7, 64)),  # packed latents (Flux Fill)
    ],
)
def test_latents_are_the_first_of_what_the_network_gets(sample, prediction, shape):
    x = torch.randn(sample)
    found = latents(Inputs({"x": x}, "x"), torch.zeros(prediction))
    assert found.shape == shape
    assert torch.equal(found, x[tuple(slice(n) for n in shape)])
