"""Networks that get more than the latents: the mask and the masked image of inpainting, beside them in the channels."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import run_stable_diffusion, stable_diffusion

from accel import Recipe, accelerate
from accel.core import pipelines
from accel.core.denoiser import Inputs
from accel.core.trajectory import Trajectory, attach_clock
from accel.guidance import APG, AdaptiveGuidance, CFGPlusPlus
from accel.guidance.spaces import Level, latents
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid

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


def test_a_network_that_predicts_the_negative_says_the_same():
    """HiDream, Lumina: the pipeline negates x_0 - eps before it steps."""

    class HiDreamImageSomethingPipeline:
        pass

    assert pipelines.sign(HiDreamImageSomethingPipeline()) == -1.0
    assert pipelines.sign(stable_diffusion()) == 1.0
    x0, eps = torch.randn(2, 1, 3, 4, 4)
    x = 0.25 * x0 + 0.75 * eps
    for sign in (1.0, -1.0):
        at = Level(0.25, 0.75, "flow_prediction", True, sign)
        output = sign * (eps - x0)
        for space, wanted in (("x0", x0), ("eps", eps), ("v", eps - x0)):
            torch.testing.assert_close(at.to(space, output, x), wanted)
            torch.testing.assert_close(at.back(space, wanted, x), output)


@pytest.mark.parametrize("name", ["DEISScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_recipes_grid_wins_over_timesteps_that_a_pipeline_makes_itself(name):
    """CogView4 hands its scheduler timesteps and sigmas of its own."""
    scheduler = DiffusersSampler(name, 4).build(FlowMatchEulerDiscreteScheduler().config, Grid("linspace"))
    scheduler.set_timesteps(4)
    wanted = scheduler.timesteps
    attach_clock(scheduler, Trajectory(), 4, gridded=True)
    scheduler.set_timesteps(timesteps=[900, 800, 300, 100], sigmas=[0.9, 0.8, 0.3, 0.1])
    assert torch.equal(scheduler.timesteps, wanted)
