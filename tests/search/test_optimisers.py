"""Optimisers on cheap functions of integers: planted optima, equal seeds, sorted proposals, what they refuse."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest

from accel.errors import ConfigError
from accel.search.objective import BudgetSpent
from accel.search.optimisers import CoordinateDescent, DifferentialEvolution, OptunaSearch, RandomSearch
from accel.search.spaces import Space, Subset

TARGET = (30, 120, 400, 800)


class Planted(Space):
    """4 of 1000 numbers; the value of a candidate is the mean distance of its numbers to those of TARGET."""

    subset = Subset(4, 1000)
    bounds = subset.bounds
    seeds = (subset.encode((199, 399, 599, 799)),)

    def canonical(self, vector):
        return tuple(sorted(int(v) for v in vector))

    def random(self, rng):
        return self.subset.random(rng)

    def recipe(self, vector):
        raise NotImplementedError

    def value(self, vector) -> float:
        return float(np.abs(np.subtract(self.subset.decode(vector), TARGET)).mean())


def nsga2(**changes) -> OptunaSearch:
    pytest.importorskip("optuna")
    return OptunaSearch(**{"sampler": "NSGAIISampler", "population": 10, "options": {"population_size": 10},
                           "name": "nsga2"} | changes)  # fmt: skip


def tpe() -> OptunaSearch:
    pytest.importorskip("optuna")
    return OptunaSearch("TPESampler", population=4, options={"multivariate": True}, name="tpe")


OPTIMISERS = {
    "random": lambda: RandomSearch(),
    "coordinate": lambda: CoordinateDescent(),
    "evolution": lambda: DifferentialEvolution(),
    "nsga2": nsga2,
    "tpe": tpe,
}


def searched(optimiser, budget: int, function=None) -> tuple[list, list]:
    """The vectors that an optimiser asked for, and the points that it was told."""
    space, asked, told = Planted(), [], []

    def evaluate(vectors):
        if len(asked) >= budget:
            raise BudgetSpent
        points = [(function or (lambda v: (space.value(v),)))(v) for v in vectors]
        asked.extend(vectors)
        told.extend(points)
        return points

    with contextlib.suppress(BudgetSpent):
        optimiser.minimise(space, evaluate)
    return asked, told


@pytest.mark.parametrize("name", OPTIMISERS)
def test_same_seed_same_proposals_all_valid(name):
    first, again = (searched(OPTIMISERS[name](), 60)[0] for _ in range(2))
    assert first == again
    assert first[0] == Planted.seeds[0], "it begins with the uniform one"
    for vector in first:
        assert vector == Planted().canonical(vector), "proposals are sorted, so that crossover mixes like with like"
        assert all(lo <= v <= hi for v, (lo, hi) in zip(vector, Planted.bounds, strict=True))


@pytest.mark.parametrize(("name", "within"), [("coordinate", 0), ("evolution", 12), ("nsga2", 25), ("tpe", 60)])
def test_planted_optimum_is_found(name, within):
    budget = 100 if name == "tpe" else 400  # it is slow
    random = min(searched(OPTIMISERS["random"](), budget)[1])[0]
    found = min(searched(OPTIMISERS[name](), budget)[1])[0]
    assert found <= within
    assert found < random


def test_several_objectives():
    """Two planted optima: the front spreads between them."""
    other = (600, 700, 750, 990)

    def two(vector):
        numbers = Planted.subset.decode(vector)
        return tuple(float(np.abs(np.subtract(numbers, t)).mean()) for t in (TARGET, other))

    points = np.array(searched(nsga2(), 400, two)[1])
    assert points[:, 0].min() < 60
    assert points[:, 1].min() < 60
    for optimiser in (CoordinateDescent(), DifferentialEvolution()):
        with pytest.raises(ConfigError, match="minimises one objective; for several use optimiser=nsga2"):
            searched(optimiser, 40, two)


def test_a_candidate_that_was_refused_is_passed_over():
    values = iter(range(10_000))
    asked, told = searched(nsga2(), 60, lambda v: (float("inf") if next(values) % 3 == 0 else Planted().value(v),))
    assert len(asked) >= 60
    assert min(told)[0] < 200


def test_without_optuna_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"optimiser=nsga2 needs optuna .*accel-diffusion\[search\].*evolution"):
        OptunaSearch("NSGAIISampler", name="nsga2").minimise(Planted(), None)


def test_bad_settings():
    with pytest.raises(ConfigError, match=r"optimiser\.population is 2; allowed: an integer >= 5"):
        DifferentialEvolution(population=2)
    with pytest.raises(ConfigError, match=r"optimiser\.batch is 0"):
        RandomSearch(batch=0)
    with pytest.raises(ConfigError, match=r"optimiser\.share is 2"):
        CoordinateDescent(share=2)
    pytest.importorskip("optuna")
    with pytest.raises(ConfigError, match="optuna has no sampler 'NSGA'; use optimiser=nsga2"):
        searched(OptunaSearch("NSGA"), 20)
