"""Tiny random pipelines of the kinds that the embedded suites do not have."""

from __future__ import annotations

import torch


def dit(seed: int = 0, layers: int = 2, **changes):
    """A random DiTTransformer2DModel of 8x8 latents. 1,000 classes, because DiTPipeline's null label is 1000."""
    from diffusers import DiTTransformer2DModel

    settings = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": layers,
        "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiTTransformer2DModel(**settings | changes).eval().requires_grad_(False)


def dit_pipeline(**changes):
    """diffusers' own DiTPipeline, which stacks (conditional, null) and gives both halves to the scheduler."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=4).eval().requires_grad_(False)
    pipe = DiTPipeline(dit(**changes), vae, DDIMScheduler(clip_sample=False), id2label=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_dit(pipe, guidance_scale: float = 1.0, count: int = 2, steps: int = 4):
    """Images (count, 3, 8, 8) in [0, 1] for `count` classes and seeds."""
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    return pipe([7 * (i + 1) for i in range(count)], guidance_scale, generators, steps, output_type="pt").images
