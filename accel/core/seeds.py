"""Noise that belongs to a sample: the same whatever the batch, the rank or the order."""

from __future__ import annotations

import hashlib

import torch


def sample_seed(base: int, index: int) -> int:
    """63-bit seed of sample `index` of base seed `base`; neighbouring seeds give unrelated streams."""
    return int.from_bytes(hashlib.sha256(f"{base}:{index}".encode()).digest()[:8], "big") >> 1


def generators(base: int, start: int, stop: int) -> list[torch.Generator]:
    """One CPU generator for each of samples start..stop-1; it draws the initial noise and then any step noise."""
    return [torch.Generator().manual_seed(sample_seed(base, i)) for i in range(start, stop)]
