"""Bit allocation against brute force, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from accel.errors import ConfigError
from accel.precision.simulated.allocation import allocate, mean_bits

BITS = (2, 4, 8)


def problem(seed: int, layers: int = 6):
    rng = np.random.default_rng(seed)
    sizes = {f"l{i}": int(n) for i, n in enumerate(rng.lognormal(5, 1.5, layers).astype(int) + 1)}
    loss = {name: rng.lognormal(0, 1.5) for name in sizes}
    return {n: {b: -loss[n] * 4.0**-b for b in BITS} for n in sizes}, sizes


@pytest.mark.parametrize("budget", [2.0, 3.0, 4.7, 8.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_is_that_of_all_allocations(seed, budget):
    scores, sizes = problem(seed)
    found = allocate(scores, sizes, budget)
    assert set(found) == set(sizes)
    assert mean_bits(found, sizes) <= budget + 1e-9
    best = -np.inf
    for choice in itertools.product(BITS, repeat=len(sizes)):
        bits = dict(zip(sizes, choice, strict=True))
        if mean_bits(bits, sizes) <= budget + 1e-9:
            best = max(best, sum(scores[n][b] for n, b in bits.items()))
    assert sum(scores[n][b] for n, b in found.items()) == pytest.approx(best, rel=1e-9)


def test_hundreds_of_layers_are_allocated_within_the_budget():
    scores, sizes = problem(9, layers=300)
    found = allocate(scores, sizes, 4.0)
    assert 3.9 < mean_bits(found, sizes) <= 4.0 + 1e-9
    sensitive = max(scores, key=lambda n: -scores[n][2] / sizes[n])
    assert found[sensitive] == 8


def test_layers_may_have_candidates_of_their_own():
    scores = {"a": {8: 0.0}, "b": {2: 0.0, 4: 1.0}}
    assert allocate(scores, {"a": 10, "b": 10}, 6.0) == {"a": 8, "b": 4}
    assert allocate(scores, {"a": 10, "b": 10}, 5.5) == {"a": 8, "b": 2}


def test_an_infeasible_budget_names_the_nearest_feasible_one():
    scores, sizes = problem(0)
    with pytest.raises(ConfigError, match=r"a mean of 1.5 bits cannot be met; allowed: at least 2, .*budget"):
        allocate(scores, sizes, 1.5)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match="score of 'a' at 4 bits is not finite"):
        allocate({"a": {2: 1.0, 4: float("nan")}}, {"a": 3}, 4.0)
