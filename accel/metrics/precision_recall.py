"""Precision and recall of feature sets (Kynkaanniemi et al. 2019), with their intervals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from accel.errors import check_int
from accel.metrics import half_samples
from accel.metrics.features import (
    Reference,
    as_reference,
    check_count,
    checked,
    row_blocks,
    sizes_that_leave,
    squared_distances,
)
from accel.metrics.statistics import Estimate, group_sizes

NEIGHBOURS = 3


def precision_recall(
    features: Tensor | np.ndarray, reference: Tensor | np.ndarray | Reference, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of features (N, D) inside the reference's manifold, and of references (M, D) inside the features'.

    The manifold of a set is the union of balls about its points z, each reaching z's k-th nearest neighbour in the set
    (itself excluded, boundary included). Kynkaanniemi et al. 2019. Recall depends on N: compare at equal N.
    """
    reference = as_reference(reference)
    x = _checked_for_manifold(features, reference, k)
    inside, covered, _ = _memberships(x, reference, k, [len(x)], np.empty((0, 1), dtype=int))
    return float(inside.double().mean()), float(covered.double().mean())


def precision_recall_estimate(
    features: Tensor | np.ndarray, reference, k: int = NEIGHBOURS, count: int = 20, period: int = 1
) -> tuple[Estimate, Estimate]:
    """`precision_recall` with intervals; each distance is computed once for all of them.

    Precision's is a delete-group jackknife. Recall's comes from balanced half-samples
    (`accel.metrics.half_samples`): the recall of each half alone, whose balls reach the k-th neighbour in that half.
    A jackknife's interval of recall was 1.4 to 2 times as wide as needed; half-samples alone gave 0.73 to 0.95 of what
    sets of Gaussian features fitted to digits' spread (M = 1285, n = 250 to 2000, pairs of alike recipes too), the less
    the larger n, because recall's variance does not fall as 1 / n: it is widened for the M points of the reference, to
    0.90 to 1.1. `accel bench coverage` measures it on a suite.
    The reference's manifold stays. Raises ConfigError for fewer than k + 1 samples in a half, or outside
    any group, and for fewer than 4 groups.
    """
    reference = as_reference(reference)
    x = _checked_for_manifold(features, reference, k)
    sizes = torch.tensor(sizes_that_leave(k + 1, len(x), count, period))
    splits = half_samples.splits(half_samples.order(len(x), count, period))
    own = group_sizes(len(x), splits.shape[1], period)
    halves = np.stack([(splits > 0) @ own, (splits < 0) @ own], axis=1)
    check_count("the features of one half", int(halves.min()), k + 1)
    inside, covered, by_half = _memberships(x, reference, k, own.tolist(), splits)

    hits = torch.stack([part.sum() for part in inside.split(sizes.tolist())]).double()
    without = (hits.sum() - hits) / (len(x) - sizes)
    precision = Estimate.from_replicates(float(hits.sum()) / len(x), without.tolist(), len(x), period)
    recalls = by_half.double().mean(2).numpy()
    value, points = float(covered.double().mean()), len(reference.features)
    return precision, half_samples.halves_estimate(value, recalls, len(x), period, points)


def _checked_for_manifold(features: Tensor | np.ndarray, reference: Reference, k: int) -> Tensor:
    check_int("k", k, 1)
    return checked("the features", features, k + 1, reference.features.shape[1])


def _centre(y: Tensor) -> Tensor:
    """Mean reference feature (D,); distances are taken about it, which loses fewer digits to cancellation."""
    return y.mean(0)


def _reference_radii(y: Tensor, k: int) -> Tensor:
    """Squared distance (M,) of each reference to its k-th nearest other reference."""
    check_count("the reference", len(y), k + 1)
    return _neighbour_radii(y - _centre(y), k, [len(y)], np.empty((0, 1), dtype=int))[:, 0]


def _neighbour_radii(x: Tensor, k: int, sizes: list[int], splits: np.ndarray) -> Tensor:
    """Squared distance to the k-th nearest other sample: of all (column 0), and of its own half in split r (1 + r).

    Shape (N, 1 + R) for splits (R, G), 1 or -1, of contiguous groups. The k nearest of each group are enough to know
    the k-th nearest of any union of groups.
    """
    radii = torch.empty(len(x), 1 + len(splits), dtype=torch.float64)
    for g, start, stop in _within_groups(sizes, len(x)):
        distances = squared_distances(x[start:stop], x)
        distances.diagonal(start).fill_(torch.inf)
        nearest = [part.topk(min(k, part.shape[1]), 1, largest=False).values for part in distances.split(sizes, 1)]
        radii[start:stop, 0] = torch.cat(nearest, 1).kthvalue(k).values
        for r, split in enumerate(splits):
            half = [part for part, side in zip(nearest, split, strict=True) if side == split[g]]
            radii[start:stop, 1 + r] = torch.cat(half, 1).kthvalue(k).values
    return radii


def _memberships(
    x: Tensor, reference: Reference, k: int, sizes: list[int], splits: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Which features lie in the reference's manifold (N,), which references in that of the features (M,), and in that
    of each half alone, (R, 2, M): of the groups with 1, and of those with -1, in each split (R, G)."""
    centre = reference.of(_centre)
    x, y = x - centre, reference.features - centre
    x_radii, y_radii = _neighbour_radii(x, k, sizes, splits), reference.of(_reference_radii, k)
    inside = torch.empty(len(x), dtype=torch.bool)
    covered, by_half = torch.zeros(len(y), dtype=torch.bool), torch.zeros(len(splits), 2, len(y), dtype=torch.bool)
    for g, start, stop in _within_groups(sizes, len(y)):
        distances, radii = squared_distances(x[start:stop], y), x_radii[start:stop]
        inside[start:stop] = (distances <= y_radii).any(1)
        covered |= (distances <= radii[:, :1]).any(0)
        for r, split in enumerate(splits):
            by_half[r, int(split[g] < 0)] |= (distances <= radii[:, 1 + r, None]).any(0)
    return inside, covered, by_half


def _within_groups(sizes: list[int], columns: int):
    """(group, start, stop) of blocks of rows, none of which crosses a group; see `row_blocks`."""
    first = 0
    for g, size in enumerate(sizes):
        for rows in row_blocks(size, columns):
            yield g, first + rows.start, first + rows.stop
        first += size
