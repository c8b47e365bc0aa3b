"""The networks of suite `shapes`: Stable Diffusion's own classes in miniature, and the detector that judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from accel.suites.shapes.captions import vocabulary
from accel.suites.shapes.scene import COLOURS, SHAPES, SIZE, SIZES, TEXTURES

MAX_TOKENS = 40  # the longest caption has 33
WIDTH = 128  # of the text encoder
LATENT, CHANNELS = SIZE // 8, 12

# Stable Diffusion's betas; the velocity, as in Stable Diffusion 2, keeps x_0 well conditioned where noise dominates.
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}
_UNET = {
    "sample_size": LATENT,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "cross_attention_dim": WIDTH,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 4,  # the number of heads, as in Stable Diffusion's config
}
UNETS = {
    "large": {"layers_per_block": 1, "block_out_channels": (48, 64)},
    "small": {"layers_per_block": 1, "block_out_channels": (16, 24)},
}
# Text that the tokenizer must also take: a user's own words are spelled letter by letter.
_SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}


def build_vae() -> nn.Module:
    """An untrained AutoencoderKL, 64 x 64 x 3 to 8 x 8 x 12 (1.7 M parameters)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=SIZE,
    )


def build_unet(size: str) -> nn.Module:
    """An untrained UNet2DConditionModel: `large`, 1.4 M parameters and 43 M MACs a row, or `small`, 0.2 M and 7 M."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**_UNET, **UNETS[size])


def build_clip(tokenizer: Any) -> nn.Module:
    """An untrained CLIPModel whose text encoder is that of the pipeline."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "num_hidden_layers": 4}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **common,
    )
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=8, **common)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def build_tokenizer(folder: Path) -> Any:
    """CLIP's byte-pair tokenizer in which each word of the captions is one token; writes its files to `folder`."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Whitespace
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = Whitespace()
    # Pairs are merged until every word is whole; words are repeated by rank, so that no two pairs are equally frequent.
    words = [word for i, word in enumerate(vocabulary()) for _ in range(i + 1)]
    learner.train_from_iterator(words, BpeTrainer(vocab_size=4000, show_progress=False, end_of_word_suffix="</w>"))
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *dict.fromkeys(a + b for a, b in merges)]
    tokens = list(dict.fromkeys(tokens)) + list(_SPECIAL.values())
    folder.mkdir(parents=True, exist_ok=True)
    vocab, rules = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    rules.write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n")
    made = CLIPTokenizer(
        str(vocab), str(rules), model_max_length=MAX_TOKENS, pad_token=_SPECIAL["eos_token"], **_SPECIAL
    )
    made.save_pretrained(folder)
    return made


class ShapeDetector(nn.Module):
    """Finds objects and says what they are: one cell of a 16 x 16 map for each 4 x 4 pixels.

    Zhou et al. 2019, "Objects as Points" (arXiv:1904.07850), without box sizes. Input: uint8 or float images
    (B, 3, 64, 64) in 0..255. Maps (B, 1 + 2 + 6 + 8 + 2 + 3, 16, 16): heat, offset of the centre within the cell, then
    logits of shape, colour, size and texture. `features` (B, 96): what the feature metrics compare, mean and standard
    deviation over the picture of 48 channels.
    """

    num_features = 96
    HEADS: ClassVar = {
        "heat": 1,
        "offset": 2,
        "shape": len(SHAPES),
        "colour": len(COLOURS),
        "size": len(SIZES),
        "texture": len(TEXTURES),
    }

    def __init__(self) -> None:
        super().__init__()

        def layer(a, b, stride=1, dilation=1):
            return nn.Sequential(
                nn.Conv2d(a, b, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(b), nn.SiLU(inplace=True)
            )

        self.body = nn.Sequential(
            layer(3, 32, 2), layer(32, 64, 2), layer(64, 64), layer(64, 64, dilation=2), layer(64, 64, dilation=3),
            layer(64, 64), layer(64, 48),
        )  # fmt: skip
        self.head = nn.Conv2d(48, sum(self.HEADS.values()), 1)
        nn.init.constant_(self.head.bias.data[:1], -2.2)  # objects are rare: begin with heat 0.1 everywhere

    def _body(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.to(self.head.weight.dtype) / 127.5 - 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        cells = self._body(images).flatten(2)
        return torch.cat([cells.mean(2), cells.std(2)], 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps by name of the head."""
        maps = self.head(self._body(images)).split(list(self.HEADS.values()), 1)
        return dict(zip(self.HEADS, maps, strict=True))
