"""CMMD, with its interval: the squared MMD of CLIP image embeddings in the Gaussian kernel."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from accel.errors import ConfigError
from accel.metrics.features import Reference, as_reference, checked, squared_distances
from accel.metrics.mmd import mmd, mmd_estimate
from accel.metrics.statistics import Estimate

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


def cmmd(features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference) -> float:
    """1000 times the unbiased squared MMD of CLIP image embeddings (N, D) and references (M, D), Gaussian kernel.

    As KID with k(a, b) = exp(-|a - b|^2 / (2 sigma^2)), sigma = 10, of embeddings scaled to length 1 (here, so that
    fp16 storage does no harm). Jayasumana et al. 2024, arXiv:2401.09603. Being unbiased it may be negative. The
    authors' code and its ports keep the diagonals instead, which adds about 1000 (1 - mean k) (1 / N + 1 / M) to
    every value. Of embeddings of another network than CLIP it is not a CMMD. Raises ConfigError for an embedding of 0.
    """
    reference = as_reference(reference)
    x = checked("the features", features, 2, reference.features.shape[1])
    x = _directions("the features", x)
    return CMMD_SCALE * mmd(x, reference, _gaussian, _reference_directions)


def cmmd_estimate(features: Tensor | np.ndarray, reference, count: int = 20, period: int = 1) -> Estimate:
    """`cmmd` with its interval; each kernel value is computed once for all delete-group values."""
    reference = as_reference(reference)
    x = checked("the features", features, 2, reference.features.shape[1])
    x = _directions("the features", x)
    return mmd_estimate(x, reference, _gaussian, _reference_directions, None, count, period, CMMD_SCALE)


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    """CMMD's exp(-|x_i - y_j|^2 / (2 sigma^2))."""
    return squared_distances(x, y).mul_(-0.5 / CMMD_SIGMA**2).exp_()


def _directions(name: str, x: Tensor) -> Tensor:
    """x (N, D) scaled to rows of length 1."""
    lengths = x.norm(dim=1, keepdim=True)
    if (zeros := (lengths == 0).flatten().nonzero().flatten()).numel():
        raise ConfigError(f"{name}: {len(zeros)} of {len(x)} are 0, the first is sample {int(zeros[0])}; CMMD needs "
                          "a direction.")  # fmt: skip
    return x / lengths


def _reference_directions(y: Tensor) -> Tensor:
    return _directions("the reference", y)
