"""Tiny random pipelines of the kinds that the embedded suites do not have."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from accel.testing.suites import dit, dit_pipeline

__all__ = ["dit", "dit_pipeline"]  # which accel ships; the rest is for these tests alone


def run_dit(pipe, guidance_scale: float = 1.0, count: int = 2, steps: int = 4):
    """Images (count, 3, 8, 8) in [0, 1] for `count` classes and seeds."""
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    return pipe([7 * (i + 1) for i in range(count)], guidance_scale, generators, steps, output_type="pt").images


def gaussian_flow():
    """PixelPipeline of the exact rectified flow between N(0, I) and N(MEAN, STD^2), one class, in float64."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from accel.suites.pipeline import PixelPipeline

    pipe = PixelPipeline(GaussianFlow(), FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


class GaussianFlow(ModelMixin, ConfigMixin):
    """E[eps - x_0 | x] for data N(MEAN, STD^2) in each element and x = (1 - s) x_0 + s eps, s = t / 1000."""

    MEAN, STD = 0.5, 0.3

    @register_to_config
    def __init__(self, sample_size: int = 2, in_channels: int = 1, num_class_embeds: int | None = None) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))

    def forward(self, sample, timestep, return_dict=True):
        s = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1, 1, 1, 1) / 1000
        centred = (sample - (1 - s) * self.MEAN) / ((1 - s) ** 2 * self.STD**2 + s**2)
        return ((s - (1 - s) * self.STD**2) * centred - self.MEAN,)

    @classmethod
    def solution(cls, x: torch.Tensor, t: float) -> torch.Tensor:
        """The state at timestep t of the trajectory that starts from noise `x`: quantiles stay quantiles."""
        s = t / 1000
        return (1 - s) * cls.MEAN + ((1 - s) ** 2 * cls.STD**2 + s**2) ** 0.5 * x


def stable_diffusion(kind: str = "StableDiffusionPipeline", channels: int = 4):
    """diffusers' own StableDiffusionPipeline (or another of its parts), tiny and random, for `prompt_embeds`.

    channels: of the UNet's input.
    """
    import diffusers
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet2DConditionModel(
            sample_size=8, in_channels=channels,
            block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
            attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=4)
    for part in (net, vae):
        part.eval().requires_grad_(False)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    parts = (vae, None, None, net, scheduler, None, None)
    pipe = getattr(diffusers, kind)(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_stable_diffusion(pipe, guidance_scale: float, negative: int = 0, steps: int = 6, **more):
    """Latents (2, 4, 8, 8) for two prompts; `negative` numbers the negative prompt, `more`: further arguments."""
    embed = [torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) for seed in (100, negative)]
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    call = {"prompt_embeds": embed[0], "negative_prompt_embeds": 3 * embed[1], "generator": generators}
    size = {} if "image" in more and "mask_image" not in more else {"height": 8, "width": 8}
    call |= {"guidance_scale": guidance_scale, "num_inference_steps": steps, "output_type": "latent"}
    return pipe(**call, **size, **more).images


class Rotating(ModelMixin, ConfigMixin):
    """Denoiser of two pixels: x_0 = (cos a, sin a), a = `rate` (label + 1) t / 1000, or 0 for the null label.

    So that the cosine of conditional and unconditional prediction is cos a, whatever the sample.
    """

    @register_to_config
    def __init__(self, rate: float = 0.5, num_class_embeds: int = 4, sample_size: tuple[int, int] = (1, 2)) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))
        self.register_to_config(in_channels=1)

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        null = self.config.num_class_embeds - 1
        turns = torch.where(class_labels == null, 0, class_labels + 1).to(sample)
        angle = self.config.rate * turns * float(timestep) / 1000
        return (torch.stack([angle.cos(), angle.sin()], 1).reshape(sample.shape),)


class Proportional(ModelMixin, ConfigMixin):
    """Denoiser whose unconditional prediction is `share` of its conditional one, tanh(2 x + label + t / 1000)."""

    @register_to_config
    def __init__(self, share: float = 0.7, num_class_embeds: int = 2, sample_size: int = 2, in_channels: int = 1):
        super().__init__()
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        weight = torch.where(class_labels == self.config.num_class_embeds - 1, self.config.share, 1.0).to(sample)
        return (weight.reshape(-1, 1, 1, 1) * torch.tanh(2 * sample + float(timestep) / 1000),)


def pixels(net, scheduler):
    """PixelPipeline of `net`."""
    from accel.suites.pipeline import PixelPipeline

    pipe = PixelPipeline(net, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_pixels(pipe, guidance_scale: float = 1.0, labels=(0, 1, 2), first: int = 0, steps: int = 10):
    """Images of a PixelPipeline; image i starts from noise of its own seed first + i."""
    generators = [torch.Generator().manual_seed(first + i) for i in range(len(labels))]
    return pipe(class_labels=list(labels), guidance_scale=guidance_scale, generator=generators,
                num_inference_steps=steps, output_type="pt").images  # fmt: skip
