"""Random search: the baseline that any search must beat at the same budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel.errors import check_int
from accel.search.optimisers.base import Evaluate, Optimiser
from accel.search.spaces import Space


@dataclass(frozen=True)
class RandomSearch(Optimiser):
    """Candidates drawn uniformly, `batch` at a time, after the space's seeds."""

    seed: int = 0
    batch: int = 8
    name: str = "random"
    several = True

    def __post_init__(self) -> None:
        check_int("optimiser.seed", self.seed, 0)
        check_int("optimiser.batch", self.batch, 1)

    def minimise(self, space: Space, evaluate: Evaluate, teacher=None) -> None:
        rng = np.random.default_rng(self.seed)
        evaluate(space.seeds)
        while True:
            evaluate([space.random(rng) for _ in range(self.batch)])
