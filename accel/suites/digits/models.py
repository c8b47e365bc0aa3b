"""The networks of the digits: UNets, transformers (suite `digits_dit`), and the feature classifier."""

from __future__ import annotations

import torch
from torch import nn

from accel.suites.digits.data import CLASSES, SIZE

NULL_LABEL = CLASSES  # the eleventh class embedding: "no class", used by classifier-free guidance

# Linear betas reach sigma / alpha = 157: noise without a trace of the image, as sampling starts from. Predicting the
# velocity keeps x_0 well conditioned there; of a predicted noise, an error of 1 % would be one of 157 % in x_0.
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}

# The rectified flow of suite `digits_flow`: sigma is the time itself, uniform steps.
FLOW_SCHEDULER = {"num_train_timesteps": 1000, "shift": 1.0}

_COMMON = {
    "sample_size": SIZE,
    "in_channels": 1,
    "out_channels": 1,
    "num_class_embeds": CLASSES + 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
UNETS = {
    "large": {"layers_per_block": 2, "block_out_channels": (32, 64, 96), "attention_head_dim": 32, "dropout": 0.1},
    "small": {"layers_per_block": 1, "block_out_channels": (16, 32, 32), "attention_head_dim": 16, "dropout": 0.0},
    "flow": {"layers_per_block": 1, "block_out_channels": (32, 64, 64), "attention_head_dim": 32, "dropout": 0.1},
}
# Patches of 2 x 2 pixels, 64 tokens.
DITS = {
    "large": {"num_layers": 6, "num_attention_heads": 4, "attention_head_dim": 24, "dropout": 0.1},
    "small": {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 24, "dropout": 0.0},
}


def build_unet(size: str) -> nn.Module:
    """An untrained UNet2DModel of the named size (`large`: 2.6 M parameters, `small`: 0.28 M)."""
    from diffusers import UNet2DModel

    return UNet2DModel(**_COMMON, **UNETS[size])


def build_dit(size: str) -> nn.Module:
    """An untrained DiTTransformer2DModel on pixels, `large` or `small`, that begins as the DiT paper's does: with
    blocks that change nothing and an output of zero (Peebles & Xie 2023, arXiv:2212.09748, section 3.2)."""
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(
        in_channels=1, sample_size=SIZE, patch_size=2, num_embeds_ada_norm=CLASSES, **DITS[size]
    )
    for layer in (*(block.norm1.linear for block in net.transformer_blocks), net.proj_out_1, net.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


class DigitClassifier(nn.Module):
    """Small convolutional classifier; its penultimate layer is the feature space of `fid_digits`.

    Input: uint8 or float images (B, 1, 16, 16) in 0..255; `features` returns (B, 64), `forward` logits (B, 10).
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.SiLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.SiLU(),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 4 * 4, self.num_features),
        )  # fmt: skip
        self.head = nn.Sequential(nn.SiLU(), nn.Dropout(0.2), nn.Linear(self.num_features, CLASSES))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.to(self.head[-1].weight.dtype) / 127.5 - 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


class PixelClassifier(nn.Module):
    """`DigitClassifier` on what a denoiser predicts: logits (B, 10) of images (B, 1, 16, 16) in -1..1, not rounded."""

    def __init__(self, net: DigitClassifier) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net((images + 1) * 127.5)
