"""Differential evolution by scipy, on integers (Storn & Price 1997): no dependency beyond what accel has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel.errors import AccelError, check_int
from accel.search.optimisers.base import Evaluate, Optimiser, sole
from accel.search.spaces import Space


@dataclass(frozen=True)
class DifferentialEvolution(Optimiser):
    """scipy.optimize.differential_evolution(integrality=True); the first generation holds the space's seeds."""

    seed: int = 0
    population: int = 12
    name: str = "evolution"

    def __post_init__(self) -> None:
        check_int("optimiser.seed", self.seed, 0)
        check_int("optimiser.population", self.population, 5)

    def minimise(self, space: Space, evaluate: Evaluate, teacher=None) -> None:
        from scipy.optimize import differential_evolution

        rng = np.random.default_rng(self.seed)
        first = list(space.seeds)[: self.population]
        first += [space.random(rng) for _ in range(self.population - len(first))]

        def generation(function, population) -> list[float]:
            # scipy's `workers`: all candidates of a generation at once.
            return sole(evaluate([space.canonical(np.round(x).astype(int)) for x in population]), self.name)

        try:
            differential_evolution(
                lambda x: 0.0,  # never called: `generation` takes its place
                list(space.bounds),
                integrality=np.ones(len(space.bounds), bool),
                init=np.array(first, float),
                seed=self.seed,
                updating="deferred",
                workers=generation,
                maxiter=10**6,
                tol=0,
                polish=False,
            )
        except RuntimeError as error:  # scipy takes any ValueError of ours for a mistake in `workers`
            raise (error.__cause__ if isinstance(error.__cause__, AccelError) else error) from None
