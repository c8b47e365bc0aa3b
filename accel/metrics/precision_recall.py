"""Precision and recall of feature sets (Kynkaanniemi et al. 2019), with their intervals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from accel.errors import check_int
from accel.metrics.features import (
    Reference,
    as_reference,
    check_count,
    checked,
    group_sizes,
    row_blocks,
    squared_distances,
)
from accel.metrics.statistics import Estimate

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
    inside, covered = _memberships(x, reference, k, [len(x)])
    return float(inside.double().mean()), float(covered[0].double().mean())


def precision_recall_estimate(
    features: Tensor | np.ndarray, reference, k: int = NEIGHBOURS, count: int = 20
) -> tuple[Estimate, Estimate]:
    """`precision_recall` with intervals; each distance is computed once for all delete-group values.

    Without group g the features' manifold has no balls about g, and the other balls reach the k-th neighbour outside g.
    The reference's manifold stays. Recall is not smooth in its samples, and a jackknife then errs on the wide side:
    its interval was measured 1.4 to 1.8 times as wide as needed (coverage 99 %), so more is undecided than need be.
    """
    reference = as_reference(reference)
    x = _checked_for_manifold(features, reference, k)
    sizes = group_sizes(len(x), count, needed=k + 1)
    inside, covered = _memberships(x, reference, k, sizes)

    hits = torch.stack([part.sum() for part in inside.split(sizes)]).double()
    without = (hits.sum() - hits) / (len(x) - torch.tensor(sizes))
    precision = Estimate.from_replicates(float(hits.sum()) / len(x), without.tolist(), len(x))
    recall = covered.double().mean(1).tolist()
    return precision, Estimate.from_replicates(recall[0], recall[1:], len(x))


def _checked_for_manifold(features: Tensor | np.ndarray, reference: Reference, k: int) -> Tensor:
    check_int("k", k, 1)
    return checked("the features", features, k + 1, reference.features.shape[1])


def _centre(y: Tensor) -> Tensor:
    """Mean reference feature (D,); distances are taken about it, which loses fewer digits to cancellation."""
    return y.mean(0)


def _reference_radii(y: Tensor, k: int) -> Tensor:
    """Squared distance (M,) of each reference to its k-th nearest other reference."""
    check_count("the reference", len(y), k + 1)
    return _neighbour_radii(y - _centre(y), k, [len(y)])[:, 0]


def _neighbour_radii(x: Tensor, k: int, sizes: list[int]) -> Tensor:
    """Squared distance to the k-th nearest other sample: of all (column 0), and of those outside group g (1 + g).

    Shape (N, 1 + G). A sample has radius -1 where its own group is left out: its ball then holds nothing. The k nearest
    of each group are enough to know the k-th nearest of any union of groups.
    """
    radii = torch.empty(len(x), 1 + len(sizes), dtype=torch.float64)
    for rows in row_blocks(len(x), len(x)):
        distances = squared_distances(x[rows], x)
        distances.diagonal(rows.start).fill_(torch.inf)
        nearest = [part.topk(min(k, part.shape[1]), 1, largest=False).values for part in distances.split(sizes, 1)]
        radii[rows, 0] = torch.cat(nearest, 1).kthvalue(k).values
        for g in range(len(sizes)):
            if outside := nearest[:g] + nearest[g + 1 :]:  # empty only where there is a single group
                radii[rows, 1 + g] = torch.cat(outside, 1).kthvalue(k).values
    for g, members in enumerate(torch.arange(len(x)).split(sizes)):
        radii[members, 1 + g] = -1.0
    return radii


def _memberships(x: Tensor, reference: Reference, k: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Which features lie in the reference's manifold (N,), which references in that of the features (1 + G, M).

    Row 0 of the second is with all features, row 1 + g without group g.
    """
    centre = reference.of(_centre)
    x, y = x - centre, reference.features - centre
    x_radii, y_radii = _neighbour_radii(x, k, sizes), reference.of(_reference_radii, k)
    inside = torch.empty(len(x), dtype=torch.bool)
    covered = torch.zeros(1 + len(sizes), len(y), dtype=torch.bool)
    for rows in row_blocks(len(x), len(y)):
        distances = squared_distances(x[rows], y)
        inside[rows] = (distances <= y_radii).any(1)
        for row, radius in zip(covered, x_radii[rows].T, strict=True):
            row |= (distances <= radius[:, None]).any(0)
    return inside, covered
