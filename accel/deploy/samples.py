"""The first images of a recipe, as its file keeps them, and what they were made in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from accel.core.environment import environment, instruction_set

DECIDES = ("device_name", "threads", "system", "isa")  # of an environment, beside the versions of VERSIONS
VERSIONS = ("torch", "diffusers", "numpy")


@dataclass(frozen=True)
class Samples:
    """Samples 0.. of base seed `seed`, made in one call: `images` (N, C, H, W) as shards keep them (`Suite.stored`)."""

    images: torch.Tensor
    seed: int
    environment: Mapping[str, Any]

    @property
    def digests(self) -> list[str]:
        """sha256 of each image's type, shape and bytes."""
        return [tensor_digest(image) for image in self.images]

    def said(self) -> dict[str, Any]:
        """What a recipe file says of them."""
        return {"seed": self.seed, "images": self.digests, "environment": dict(self.environment)}


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's type, shape and bytes."""
    raw = tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + raw).hexdigest()


def made_in(device: str) -> dict[str, Any]:
    """What decides the bytes of an image beside model and recipe."""
    found = environment(device) | {"isa": instruction_set(device)}
    return {name: found[name] for name in DECIDES} | {"packages": {name: found["packages"][name] for name in VERSIONS}}


def elsewhere(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, each way in which two environments differ; empty: images are the same, byte for byte."""
    pairs = [(name, then.get(name), now.get(name)) for name in DECIDES]
    pairs += [(name, then.get("packages", {}).get(name), now["packages"][name]) for name in VERSIONS]
    return [f"{name} {_text(own)} then, {_text(here)} here" for name, own, here in pairs if own != here]


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
