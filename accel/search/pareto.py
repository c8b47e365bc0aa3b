"""Which candidates beat which, in one objective or in several; all of them are better when lower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def layers(points: Sequence[Sequence[float]]) -> np.ndarray:
    """Layer of each point (n, m): 0 for those that no other dominates, 1 for those that only layer 0 does, ... (n,).

    a dominates b if it is nowhere worse and somewhere better. Infinite values never dominate. Deb et al. 2002, NSGA-II.
    """
    values = np.array([tuple(p) for p in points], np.float64).reshape(len(points), -1 if len(points) else 1)
    finite = np.isfinite(values).all(1)
    beaten = np.zeros((len(values), len(values)), bool)  # [i, j]: j dominates i
    for i, value in enumerate(values):
        beaten[i] = (values <= value).all(1) & (values < value).any(1) & finite
    layer, left, depth = np.full(len(values), -1), np.ones(len(values), bool), 0
    while left.any():
        now = left & ~(beaten & left).any(1)
        layer[now], depth = depth, depth + 1
        left &= ~now
    return layer


def order(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices from best to worst: by layer, then by the first objective, then by position."""
    layer = layers(points)
    return sorted(range(len(points)), key=lambda i: (layer[i], points[i][0], i))


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other dominates, by the second objective if there is one, else by the first."""
    layer = layers(points)
    kept = [i for i in range(len(points)) if layer[i] == 0 and np.isfinite(points[i]).all()]
    return sorted(kept, key=lambda i: (points[i][-1], points[i][0], i))
