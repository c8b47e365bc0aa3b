"""The unbiased squared maximum mean discrepancy (MMD) of two feature sets in a kernel, for KID and CMMD."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel.evaluation.statistics import Estimate
from accel.metrics.features import group_sizes, row_blocks

Kernel = Callable[[Tensor, Tensor], Tensor]  # k(x_i, y_j) of x (N, D) and y (M, D): a new tensor (N, M)


def kernel_sums(
    x: Tensor, y: Tensor, x_sizes: list[int], y_sizes: list[int], kernel: Kernel, skip_diagonal: bool = False
) -> Tensor:
    """Sums of a kernel over contiguous groups: out[g, h] = sum_{i in g, j in h} k(x_i, y_j), float64."""
    by_row = torch.empty(len(x), len(y_sizes), dtype=torch.float64)
    for rows in row_blocks(len(x), len(y)):
        values = kernel(x[rows], y)
        if skip_diagonal:
            values.diagonal(rows.start).zero_()
        by_row[rows] = torch.stack([part.sum(1) for part in values.split(y_sizes, 1)], 1)
    return torch.stack([part.sum(0) for part in by_row.split(x_sizes)])


def pair_mean(y: Tensor, kernel: Kernel) -> float:
    """mean_{i != j} k(y_i, y_j)."""
    m = len(y)
    return float(kernel_sums(y, y, [m], [m], kernel, skip_diagonal=True)) / (m * (m - 1))


def mmd(x: Tensor, y: Tensor, yy_mean: float, kernel: Kernel) -> float:
    """mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j); the second is given."""
    xx = kernel_sums(x, x, [len(x)], [len(x)], kernel, skip_diagonal=True).sum()
    xy = kernel_sums(x, y, [len(x)], [len(y)], kernel).sum()
    return float(_mmd_of_sums(xx, xy, len(x), len(y), yy_mean))


def mmd_estimate(x: Tensor, y: Tensor, yy_mean: float, kernel: Kernel, count: int, scale: float = 1.0) -> Estimate:
    """scale * `mmd` with its interval.

    With B_gh the sum of k(x_i, x_j), i != j, over groups g and h, the kept sum without group g is
    sum B - 2 sum_h B_gh + B_gg.
    """
    sizes = group_sizes(len(x), count, needed=2)
    xx = kernel_sums(x, x, sizes, sizes, kernel, skip_diagonal=True)
    xy = kernel_sums(x, y, sizes, [len(y)], kernel)[:, 0]

    value = scale * _mmd_of_sums(xx.sum(), xy.sum(), len(x), len(y), yy_mean)
    kept_xx, kept_n = xx.sum() - 2 * xx.sum(1) + xx.diagonal(), len(x) - torch.tensor(sizes)
    replicates = scale * _mmd_of_sums(kept_xx, xy.sum() - xy, kept_n, len(y), yy_mean)
    return Estimate.from_replicates(float(value), replicates.tolist(), len(x))


def _mmd_of_sums(xx: Tensor, xy: Tensor, n: int | Tensor, m: int, yy_mean: float) -> Tensor:
    return xx / (n * (n - 1)) + yy_mean - 2 * xy / (n * m)
