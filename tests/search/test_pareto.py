"""Layers of points that do not dominate each other, against their definition."""

from __future__ import annotations

import math

import numpy as np

from accel.search.pareto import front, layers, order


def dominates(a, b) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b and all(map(math.isfinite, a))


def test_layers_against_their_definition():
    points = [tuple(map(float, p)) for p in np.random.default_rng(0).integers(0, 6, (30, 2))]
    left, wanted, depth = set(range(30)), {}, 0
    while left:
        now = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        wanted |= dict.fromkeys(now, depth)
        left, depth = left - now, depth + 1
    assert layers(points).tolist() == [wanted[i] for i in range(30)]


def test_one_objective_is_sorting_and_infinite_comes_last():
    assert order([(3.0,), (1.0,), (math.inf,), (2.0,)]) == [1, 3, 0, 2]
    assert front([(3.0,), (1.0,), (math.inf,)]) == [1]
    assert front([]) == []


def test_front_is_in_the_order_of_cost():
    assert front([(1.0, 9.0), (5.0, 2.0), (5.0, 3.0), (9.0, 1.0), (0.0, math.inf)]) == [3, 1, 0]
