"""Networks that people deploy, at their true shapes with random weights, made on the device in the dtype they run in.

Speed and multiply-accumulates depend on shapes alone. `ShapesPipeline` calls them as their diffusers pipelines do, on
latents, without text encoders and autoencoder. Configurations are those published with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from accel.benches.architectures import ARCHITECTURES, Architecture
from accel.core.denoiser import first_output, mapped
from accel.core.random_weights import random_weights


@dataclass(frozen=True)
class Network:
    """An architecture, and how its pipeline calls it.

    scale: of classifier-free guidance (a doubled batch), 1 for none. flow: whether it is a rectified flow. family: unet
    or transformer, whose caches are tried. time: how its timestep is given: `scalar`, `rows` (one a row), or
    `fraction` (of 1000, one a row).
    """

    architecture: Architecture
    family: str
    scale: float
    flow: bool = False
    time: str = "rows"

    @property
    def name(self) -> str:
        return self.architecture.name

    def pipeline(self, device: torch.device | str, dtype: torch.dtype) -> ShapesPipeline:
        """The network with random weights of `dtype`, made on `device`, in its pipeline."""
        import diffusers

        cls = getattr(diffusers, self.architecture.cls)
        with random_weights(device, dtype):
            net = cls(**self.architecture.config)
        net = net.to(torch.device(device), dtype).eval().requires_grad_(False)  # what was made of numpy's arrays
        scheduler = (
            FlowMatchEulerDiscreteScheduler(shift=3.0)
            if self.flow
            else DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        )
        pipe = ShapesPipeline(**{self.family: net}, scheduler=scheduler)
        pipe.network = self
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def conditions(self, rows: int, device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments beside latents and timestep: noise where there is a row each, numbers and flags as they are."""

        def batched(tensor: torch.Tensor) -> torch.Tensor:
            if len(tensor) == 1:
                tensor = tensor.expand(rows, *tensor.shape[1:])
                if tensor.is_floating_point():
                    return torch.randn(tensor.shape, device=device, dtype=dtype)
            return tensor.to(device)

        return mapped(self.architecture.condition(), batched)


class ShapesPipeline(DiffusionPipeline):
    """Latents of a `Network` under any diffusers scheduler: guided, both halves are rows of one call."""

    network: Network

    def __init__(self, scheduler, unet=None, transformer=None):
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer)

    @property
    def denoiser(self) -> nn.Module:
        return self.unet if self.unet is not None else self.transformer

    @torch.no_grad()
    def __call__(self, latents, conditions, num_inference_steps: int, guidance_scale: float = 1.0) -> torch.Tensor:
        """Latents (B, ...) after all steps from unit noise `latents` of that shape and the network's dtype;
        `conditions`: those of B rows, of 2 B where `guidance_scale` > 1."""
        guided = guidance_scale > 1
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        x = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps:
            inputs = torch.cat([x, x]) if guided else x
            if hasattr(self.scheduler, "scale_model_input"):
                inputs = self.scheduler.scale_model_input(inputs, t)
            predicted = self._predict(inputs, t, conditions)
            if guided:
                uncond, cond = predicted.chunk(2)
                predicted = uncond + guidance_scale * (cond - uncond)
            x = self.scheduler.step(predicted, t, x, return_dict=False)[0]
        return x

    def _predict(self, inputs: torch.Tensor, t: torch.Tensor, conditions: Mapping[str, Any]) -> torch.Tensor:
        if self.network.time != "scalar":
            t = t.expand(len(inputs))
        if self.network.time == "fraction":
            t = t.to(inputs.dtype) / 1000
        output = first_output(self.denoiser(inputs, timestep=t, **conditions, return_dict=False))
        learned = output.shape[1] == 2 * inputs.shape[1]  # a variance, which the pipelines drop
        return output.chunk(2, dim=1)[0] if learned else output


def _latent_ids(side: int) -> torch.Tensor:
    """Flux's place of each token of side x side packed latents (side * side, 3): 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()


PIXART = Architecture(
    "PixArt-alpha XL/2 512",
    "PixArtTransformer2DModel",
    {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "sample_size": 64,
        "patch_size": 2,
        "attention_bias": True,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
    },
    (4, 64, 64),
    lambda: {
        "encoder_hidden_states": torch.empty(1, 120, 4096),
        "encoder_attention_mask": torch.ones(1, 120, dtype=torch.bool),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    },
)
SD3 = Architecture(
    "Stable Diffusion 3 medium",
    "SD3Transformer2DModel",
    {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    (16, 128, 128),
    lambda: {"encoder_hidden_states": torch.empty(1, 333, 4096), "pooled_projections": torch.empty(1, 2048)},
)
FLUX = Architecture(
    "Flux.1-dev",
    "FluxTransformer2DModel",
    {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    (4096, 64),
    lambda: {
        "encoder_hidden_states": torch.empty(1, 512, 4096),
        "pooled_projections": torch.empty(1, 768),
        "guidance": torch.empty(1),
        "txt_ids": torch.zeros(512, 3),
        "img_ids": _latent_ids(64),
    },
)
# In order of worth; 512 x 512 pixels for SD 1.5, DiT and PixArt, 1024 x 1024 for the others.
NETWORKS = {
    network.name: network
    for network in (
        Network(ARCHITECTURES["Stable Diffusion 1.5"], "unet", 7.5, time="scalar"),
        Network(ARCHITECTURES["Stable Diffusion XL"], "unet", 5.0, time="scalar"),
        Network(ARCHITECTURES["DiT-XL/2 512"], "transformer", 4.0),
        Network(FLUX, "transformer", 1.0, flow=True, time="fraction"),
        Network(PIXART, "transformer", 4.5),
        Network(SD3, "transformer", 7.0, flow=True),
    )
}
