"""Short tensors that name what an artefact was made for, to be kept in it and compared later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from accel.records import canonical, describe


def settings_digest(config: Any) -> torch.Tensor:
    """Sixteen bytes (uint8) that change with a method's class, EPOCH or settings."""
    return _sixteen(hashlib.sha256(canonical(describe(config)).encode()))


def weights_digest(net: nn.Module) -> torch.Tensor:
    """Sixteen bytes (uint8) that change with a network's weights: names, shapes and 64 values of each tensor."""
    return tensors_digest(net.state_dict())


def weights_hex(net: nn.Module) -> str:
    """The same in hex, by which files and records know a network."""
    return in_hex(weights_digest(net))


def in_hex(digest: torch.Tensor) -> str:
    """A digest (uint8) as text."""
    return bytes(digest.tolist()).hex()


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sixteen bytes (uint8) that change with named tensors: names, shapes and 64 values of each."""
    digest = hashlib.sha256()
    plain = {own: part for name, tensor in tensors.items() for own, part in stored(name, tensor).items()}
    for name, tensor in plain.items():
        flat = tensor.detach().flatten()
        few = flat[:: max(1, len(flat) // 64)].float().cpu() if flat.numel() else flat
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + few.numpy().tobytes())
    return _sixteen(digest)


def stored(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The plain tensors by name that `tensor` is kept as: itself, or what a quantised one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return {name: tensor}
    names, _ = tensor.__tensor_flatten__()
    return {own: part for each in names for own, part in stored(f"{name}.{each}", getattr(tensor, each)).items()}


def _sixteen(digest: Any) -> torch.Tensor:
    return torch.tensor(list(digest.digest()[:16]), dtype=torch.uint8)
