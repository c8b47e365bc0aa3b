"""Networks of the device benchmark in miniature: the same classes and calls, a few thousand weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from accel.benches.device_networks import NETWORKS, Network, _latent_ids


def _text(tokens: int = 5, width: int = 12) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": torch.empty(1, tokens, width)}


_LAYER = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
_UNET = {"sample_size": 8, "cross_attention_dim": 12, "norm_num_groups": 4, "layers_per_block": 1}
SIZES = {
    "Stable Diffusion 1.5": (
        _UNET | {"block_out_channels": (8, 16), "attention_head_dim": 2,
                 "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                 "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
        (4, 8, 8), _text,
    ),
    "Stable Diffusion XL": (
        _UNET | {"block_out_channels": (8, 16, 16), "attention_head_dim": (1, 2, 2),
                 "transformer_layers_per_block": (1, 1, 1), "addition_time_embed_dim": 4,
                 "projection_class_embeddings_input_dim": 32},
        (4, 8, 8),
        lambda: _text() | {"added_cond_kwargs": {"text_embeds": torch.empty(1, 8), "time_ids": torch.empty(1, 6)}},
    ),
    "DiT-XL/2 512": (_LAYER, (4, 8, 8), None),
    "PixArt-alpha XL/2 512": (
        _LAYER | {"cross_attention_dim": 16, "caption_channels": 12}, (4, 8, 8),
        lambda: _text() | {"encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
                           "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "Stable Diffusion 3 medium": (
        _LAYER | {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 6,
                  "pos_embed_max_size": 8},
        (16, 8, 8), lambda: _text() | {"pooled_projections": torch.empty(1, 6)},
    ),
    "Flux.1-dev": (
        {"num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
         "joint_attention_dim": 12, "pooled_projection_dim": 6, "axes_dims_rope": (4, 6, 6)},
        (16, 64),
        lambda: _text() | {"pooled_projections": torch.empty(1, 6), "guidance": torch.empty(1),
                           "txt_ids": torch.zeros(5, 3), "img_ids": _latent_ids(4)},
    ),
}  # fmt: skip


def tiny(name: str) -> Network:
    """The network of that name, small."""
    config, shape, condition = SIZES[name]
    known = NETWORKS[name].architecture
    made = replace(known, config=known.config | config, shape=shape, condition=condition or known.condition)
    return replace(NETWORKS[name], architecture=made)
