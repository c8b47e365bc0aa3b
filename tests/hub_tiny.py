"""Tiny random pipelines of classes that suite `hub` runs (more are in hub_modern), saved as a user has them on disk."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

KINDS = ("sd", "sdxl", "pixart_alpha", "pixart_sigma", "dit", "sd3", "flux", "ddpm")
PROMPTS = ("a red cat", "two blue dogs on a boat", "the sea", "an old man and a tree")
LIMIT = 16  # tokens that the CLIP text encoders take; their words are single letters here


def save(kind: str, folder: Path, **changes: Any) -> Path:
    """Save the tiny pipeline `kind`; `changes` go to its denoiser."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = builder(kind)(**changes)
        for network in pipe.components.values():
            if isinstance(network, torch.nn.Module):
                network.eval().requires_grad_(False)
        pipe.save_pretrained(folder)
    return folder


def builder(kind: str) -> Callable[..., Any]:
    """What makes a pipeline of one of KINDS, or of hub_modern.MODERN."""
    if kind in KINDS:
        return globals()[f"_{kind}"]
    import hub_modern

    return getattr(hub_modern, kind)


def _clip_tokenizer():
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + ",.-'"
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({w: i for i, w in enumerate(words)}, [], model_max_length=LIMIT)


def _clip_encoder(projected: bool = False, positions: int = LIMIT):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokens = len(_clip_tokenizer())
    config = CLIPTextConfig(
        vocab_size=tokens, hidden_size=8, intermediate_size=8, projection_dim=8, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=positions, bos_token_id=tokens - 2, eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5_tokenizer():
    from transformers import T5Tokenizer

    letters = string.ascii_lowercase + string.digits + ",.-'▁"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -2.0) for c in letters)]
    return T5Tokenizer(vocab, extra_ids=0, model_max_length=512)


def _t5_encoder(width: int = 8):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(_t5_tokenizer()), d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def _vae(channels: int = 4, **settings: Any) -> AutoencoderKL:
    plain = {"block_out_channels": (4, 4), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
             "up_block_types": ("UpDecoderBlock2D",) * 2, "mid_block_add_attention": False}  # fmt: skip
    return AutoencoderKL(latent_channels=channels, **plain | settings)


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
          "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip


_EULER = {k: v for k, v in _BETAS.items() if k not in ("clip_sample", "set_alpha_to_one")}


def _unet(**settings: Any) -> UNet2DConditionModel:
    plain = {
        "sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**plain | settings)


def _sd(**changes: Any):
    scheduler = PNDMScheduler(skip_prk_steps=True, **{k: v for k, v in _BETAS.items() if k != "clip_sample"})
    return StableDiffusionPipeline(
        _vae(), _clip_encoder(), _clip_tokenizer(), _unet(**changes), scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(**changes: Any):
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4,
             "projection_class_embeddings_input_dim": 6 * 4 + 8, "cross_attention_dim": 16}  # fmt: skip
    return StableDiffusionXLPipeline(
        _vae(), _clip_encoder(), _clip_encoder(True), _clip_tokenizer(), _clip_tokenizer(), _unet(**added | changes),
        EulerDiscreteScheduler(timestep_spacing="leading", **_EULER), add_watermarker=False,
    )  # fmt: skip


def _pixart(cls: type, **changes: Any):
    settings = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "cross_attention_dim": 8,
                "sample_size": 8, "caption_channels": 8, "use_additional_conditions": False}  # fmt: skip
    transformer = PixArtTransformer2DModel(**settings | changes)
    return cls(_t5_tokenizer(), _t5_encoder(), _vae(), transformer, DPMSolverMultistepScheduler())


def _pixart_alpha(**changes: Any):
    return _pixart(PixArtAlphaPipeline, **changes)


def _pixart_sigma(**changes: Any):
    return _pixart(PixArtSigmaPipeline, **changes)


def _dit(**changes: Any):
    settings = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 8,
                "num_layers": 2, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000}  # fmt: skip
    return DiTPipeline(DiTTransformer2DModel(**settings | changes), _vae(), DDIMScheduler(clip_sample=False))


def _sd3(**changes: Any):
    settings = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
                "attention_head_dim": 4, "num_attention_heads": 2, "joint_attention_dim": 16,
                "caption_projection_dim": 8, "pooled_projection_dim": 16, "pos_embed_max_size": 8}  # fmt: skip
    transformer = SD3Transformer2DModel(**settings | changes)
    vae = _vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, _clip_encoder(True), _clip_tokenizer(),
        _clip_encoder(True), _clip_tokenizer(), _t5_encoder(16), _t5_tokenizer(),
    )  # fmt: skip


def _flux(**changes: Any):
    settings = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8,
                "axes_dims_rope": (4, 4, 8), "guidance_embeds": True}  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    vae = _vae(shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False)
    return FluxPipeline(
        scheduler, vae, _clip_encoder(), _clip_tokenizer(), _t5_encoder(), _t5_tokenizer(),
        FluxTransformer2DModel(**settings | changes),
    )  # fmt: skip


def _ddpm(**changes: Any):
    settings = {
        "sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4,
        "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return DDPMPipeline(UNet2DModel(**settings | changes), DDPMScheduler())
