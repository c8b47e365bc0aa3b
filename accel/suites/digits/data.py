"""The data of suite `digits`: scikit-learn's 1,797 scanned handwritten digits, enlarged to 16x16.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (CC BY 4.0), the 8x8 test
set that ships inside scikit-learn. Each image is scaled from 0..16 to 0..255 and enlarged by Pillow's bicubic filter,
which works in integers, so the arrays (and their hash) are the same on every platform.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from accel.errors import needs
from accel.suites.base import to_uint8  # noqa: F401 (the inverse of to_model)

SIZE = 16
CLASSES = 10
HELD_OUT = 512
TRAIN = 1285


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits: images uint8 (1797, 16, 16) and labels int64 (1797,)."""
    from PIL import Image

    data = needs("sklearn.datasets", "bench", "the data of the digits").load_digits()
    small = np.round(data.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(x).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for x in small]
    return np.stack(large), data.target.astype(np.int64)


@lru_cache(maxsize=1)
def split() -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held_out); stratified by class and decided by each image's sha256, so free of any RNG."""
    images, labels = digits()
    key = np.empty(len(labels))
    for c in range(CLASSES):
        members = np.flatnonzero(labels == c)
        order = sorted(members, key=lambda i: hashlib.sha256(images[i].tobytes()).digest())
        key[order] = (np.arange(len(order)) + 0.5) / len(order)
    ranked = np.argsort(key, kind="stable")
    return np.sort(ranked[HELD_OUT:]), np.sort(ranked[:HELD_OUT])


def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (N, 1, 16, 16) and labels (N,) of part `train` (1,285) or `held_out` (512)."""
    images, labels = digits()
    index = split()[("train", "held_out").index(part)]
    return torch.from_numpy(images[index])[:, None], torch.from_numpy(labels[index])


def to_model(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1, the range that the denoiser sees."""
    return images.float() / 127.5 - 1
