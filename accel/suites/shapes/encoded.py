"""What the denoisers of suite `shapes` are trained on: pictures and captions, by its frozen networks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from accel.errors import ConfigError
from accel.files import file_hash
from accel.suites.shapes import data
from accel.suites.shapes.models import MAX_TOKENS
from accel.suites.training.loop import lowered

ENCODERS = {"vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
ORDER = ("vae", "detector", "clip", "large", "small")  # in which parts are trained


def encoded(assets: Path, work: Path, device: str, workers: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents (N, 12, h, w) of the training pictures, and hidden states (2 N + 1, tokens, D) of their captions,
    of which the last is of the empty caption; float16, kept in `work` for both denoisers and for a resumed run."""
    folder = assets / "large"
    networks = _encoders(folder)
    made_for = "".join(file_hash(path) for path in networks) + str(data.TRAIN)
    kept = work / f"encoded-{hashlib.sha256(made_for.encode()).hexdigest()[:12]}.safetensors"
    if not kept.exists():
        latents, texts = _encode(folder, device, workers)
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}.tmp")
        save_file({"latents": latents, "texts": texts}, temporary)
        os.replace(temporary, kept)
    tensors = load_file(kept)
    return tensors["latents"].float(), tensors["texts"]


def _encoders(folder: Path) -> list[Path]:
    networks = [folder / part / name for part, name in ENCODERS.items()]
    if missing := [path for path in networks if not path.exists()]:
        raise ConfigError(f"{missing[0]} is missing; train the parts in order: {', '.join(ORDER)}.")
    return networks


def _encode(folder: Path, device: str, workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device).eval()
    reader = Reader(folder, device)
    with torch.inference_mode(), lowered(device):
        images = data.pictures("train", data.TRAIN, workers)
        latents = [vae.encode(to_model(x.to(device))).latent_dist.mean.cpu() for x in images.split(256)]
        captions = [c for s in data.samples("train", data.TRAIN, data.CAPTIONS, workers) for c in s.captions]
        texts = [reader.states(x).cpu().half() for x in reader.ids([*captions, ""]).split(512)]
    return (torch.cat(latents) * vae.config.scaling_factor).half().contiguous(), torch.cat(texts)


class Reader:
    """The text encoder in `folder`, in float32 on `device`: captions to the hidden states that denoisers get."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer

        _encoders(folder)
        self.net: nn.Module = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        self.net.to(device).eval().requires_grad_(False)
        self.tokenizer, self.device = CLIPTokenizer.from_pretrained(folder / "tokenizer"), device

    def ids(self, captions: list[str]) -> torch.Tensor:
        """Token ids (N, MAX_TOKENS)."""
        return tokens(self.tokenizer, captions).long()

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, MAX_TOKENS, D) of token ids."""
        return self.net(input_ids=ids.to(self.device)).last_hidden_state

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        return self.states(self.ids(captions))


def to_model(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def tokens(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """Token ids (N, MAX_TOKENS), padded as the pipeline pads them, int16."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS).input_ids
    return torch.tensor(ids, dtype=torch.int16)
