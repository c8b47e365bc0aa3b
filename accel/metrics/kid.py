"""KID, with its interval: the squared MMD of features in the cubic kernel.

torchmetrics' KID draws random subsets of equal sizes; this is the full-sample estimator.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from accel.metrics.features import Reference, as_reference, checked
from accel.metrics.mmd import Strata, mmd, mmd_estimate
from accel.metrics.statistics import Estimate


def kid(
    features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference, strata: Strata | None = None
) -> float:
    """Unbiased squared MMD of all features (N, D) and references (M, D) in the cubic kernel; not scaled by 1000.

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
    k(a, b) = (a . b / D + 1)^3. Binkowski et al. 2018. N and M may differ; being unbiased it may be negative.
    `strata`: the class of each sample, of a class-stratified draw against a reference with strata (`mmd`).
    """
    reference = as_reference(reference)
    x = checked("the features", features, 2, reference.features.shape[1])
    return mmd(x, reference, _cubic, strata=strata)


def kid_estimate(
    features: Tensor | np.ndarray, reference, count: int = 20, period: int = 1, strata: Strata | None = None
) -> Estimate:
    """`kid` with its interval; each kernel value is computed once for all delete-group values."""
    reference = as_reference(reference)
    x = checked("the features", features, 2, reference.features.shape[1])
    return mmd_estimate(x, reference, _cubic, strata=strata, count=count, period=period)


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    """KID's (x_i . y_j / D + 1)^3."""
    kernel = (x @ y.T).div_(x.shape[1]).add_(1)
    return kernel * kernel * kernel  # far faster than pow(3)
