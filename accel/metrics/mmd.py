"""The unbiased squared maximum mean discrepancy (MMD) of two feature sets in a kernel, for KID and CMMD.

With strata both populations are mixtures of K classes of equal weight, P = mean_c P_c and Q = mean_c Q_c, and so many
of each class are drawn as were meant to (sample i of class i mod K), not as chance has it. Then

    MMD^2 = (1 / K^2) sum_{c, d} ( E k(x_c, x_d) + E k(y_c, y_d) - 2 E k(x_c, y_d) ),

and each expectation is estimated by the mean over its pairs, of different samples where c = d: without bias (Gretton et
al. 2012, lemma 6, within each class). The plain estimator is biased there: of N (N - 1) pairs of such samples too few
are of one class, a share (N / K - 1) / (N - 1) in place of 1 / K, and so it falls below 0 for equal distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.metrics.features import Reference, check_count, checked_strata, row_blocks
from accel.metrics.statistics import Estimate, groups

Kernel = Callable[[Tensor, Tensor], Tensor]  # k(x_i, y_j) of x (N, D) and y (M, D): a new tensor (N, M)
Space = Callable[[Tensor], Tensor]  # of the reference's features, where a kernel is not of the features themselves
Strata = Tensor | np.ndarray | Sequence[int]


def kernel_sums(
    x: Tensor, y: Tensor, x_sizes: Sequence[int], y_sizes: Sequence[int], kernel: Kernel, skip_diagonal: bool = False
) -> Tensor:
    """Sums of a kernel over contiguous groups: out[g, h] = sum_{i in g, j in h} k(x_i, y_j), float64."""
    by_row = torch.empty(len(x), len(y_sizes), dtype=torch.float64)
    for rows in row_blocks(len(x), len(y)):
        values = kernel(x[rows], y)
        if skip_diagonal:
            values.diagonal(rows.start).zero_()
        by_row[rows] = torch.stack([part.sum(1) for part in values.split(list(y_sizes), 1)], 1)
    return torch.stack([part.sum(0) for part in by_row.split(list(x_sizes))])


def same(features: Tensor) -> Tensor:
    """The features themselves."""
    return features


def mmd(x: Tensor, reference: Reference, kernel: Kernel, space: Space = same, strata: Strata | None = None) -> float:
    """mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j), y = `space` of the reference.

    `strata`: the class of each sample, shape (N,), where the reference has strata: the estimator of the module's head.
    Raises ConfigError where one side has strata and the other has none, or other ones.
    """
    xx, xy, n = _sums(x, reference, kernel, space, strata, np.zeros(len(x), dtype=np.int64))
    return float(_mmd(xx[0, :, 0], xy[0], n[0], reference, kernel, space))


def mmd_estimate(
    x: Tensor,
    reference: Reference,
    kernel: Kernel,
    space: Space = same,
    strata: Strata | None = None,
    count: int = 20,
    period: int = 1,
    scale: float = 1.0,
) -> Estimate:
    """scale * `mmd` with its interval; each kernel value is computed once for all delete-group values.

    With B_gc,hd the sum of k(x_i, x_j), i != j, over (group g, class c) and (h, d), the kept sum of classes c and d
    without group g is sum_{h, h'} B_hc,h'd - sum_h B_gc,hd - sum_h B_hc,gd + B_gc,gd.
    """
    xx, xy, n = _sums(x, reference, kernel, space, strata, groups(len(x), count, period))
    kept = n.sum(0) - n
    check_count("a class of features without one jackknife group" if n.shape[1] > 1 else
                "the features without one jackknife group", int(kept.min()), 2)  # fmt: skip
    rows, own = xx.sum(2), torch.einsum("gcgd->gcd", xx)
    without = xx.sum((0, 2)) - rows - rows.mT + own
    value = _mmd(xx.sum((0, 2)), xy.sum(0), n.sum(0), reference, kernel, space)
    replicates = _mmd(without, xy.sum(0) - xy, kept, reference, kernel, space)
    return Estimate.from_replicates(scale * float(value), (scale * replicates).tolist(), len(x), period)


def own_term(y: Tensor, kernel: Kernel, space: Space, sizes: tuple[int, ...] | None) -> float:
    """(1 / K^2) sum_{c, d} mean k(y_i, y_j) over i of class c and j of class d, i != j; y is ordered by class."""
    sizes = sizes or (len(y),)
    y = space(y)
    sums = kernel_sums(y, y, sizes, sizes, kernel, skip_diagonal=True)
    return float((sums / _pairs(torch.tensor(sizes))).mean())


def _sums(
    x: Tensor, reference: Reference, kernel: Kernel, space: Space, strata: Strata | None, group: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the kernel by group and class, without the diagonal: (G, K, G, K) among x, (G, K, K) of x and the
    reference; and the numbers of samples (G, K)."""
    if (strata is None) != (reference.sizes is None):
        sides = ("the reference", "the features")[:: 1 if strata is None else -1]
        raise ConfigError(f"{sides[0]}: found classes, but none of {sides[1]}; needed: those of both, or of neither.")
    y_sizes = reference.sizes or (len(reference.features),)
    classes = len(y_sizes)
    own = torch.zeros(len(x), dtype=torch.long)
    if strata is not None:
        own = checked_strata("the features", strata, len(x))
        if (found := int(own.max()) + 1) != classes:
            raise ConfigError(f"the features are of {found} classes, the reference of {classes}; needed: the same.")
    number = int(group[-1]) + 1
    block = torch.from_numpy(group) * classes + own
    x, n = x[block.argsort(stable=True)], block.bincount(minlength=number * classes)
    xx = kernel_sums(x, x, n.tolist(), n.tolist(), kernel, skip_diagonal=True)
    xy = kernel_sums(x, reference.of(space), n.tolist(), y_sizes, kernel)
    return xx.view(number, classes, number, classes), xy.view(number, classes, classes), n.view(number, classes)


def _mmd(xx: Tensor, xy: Tensor, n: Tensor, reference: Reference, kernel: Kernel, space: Space) -> Tensor:
    """The MMD of sums (..., K, K) over n (..., K) samples."""
    own = reference.of(own_term, kernel, space, reference.sizes)
    m = torch.tensor(reference.sizes or [len(reference.features)])
    return (xx / _pairs(n)).mean((-2, -1)) + own - 2 * (xy / (n[..., :, None] * m)).mean((-2, -1))


def _pairs(n: Tensor) -> Tensor:
    """Pairs of different samples of classes c and d, (..., K, K), of n (..., K) samples."""
    return n[..., :, None] * n[..., None, :] - torch.diag_embed(n)
