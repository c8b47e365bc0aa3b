"""Search spaces: every candidate is a vector of integers within bounds, and every such vector is a candidate.

`Subset` encodes K of T things as a sorted vector (the strictly increasing encoding):

    y in [0, T - K]^K sorted   <->   t_i = y_i + i, i = 0..K-1, strictly increasing in 0..T-1

a bijection, so that no optimiser can leave the space, no candidate has two names, and nothing needs repair.
AutoDiffusion's released code works on unsorted lists instead: equal candidates are evaluated again and duplicates
silently lose steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from accel.core.recipe import Recipe
from accel.errors import ConfigError, check_int
from accel.samplers.grids import ExplicitGrid, Grid
from accel.samplers.noise_schedule import NoiseSchedule

Vector = tuple[int, ...]


@dataclass(frozen=True)
class Subset:
    """Subsets of `size` of the numbers 0..total-1; ConfigError unless 0 <= size <= total."""

    size: int
    total: int

    def __post_init__(self) -> None:
        check_int("the size of a subset", self.size, 0, self.total)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(low, high), inclusive, of each coordinate."""
        return ((0, self.total - self.size),) * self.size

    def decode(self, y: Sequence[int]) -> Vector:
        """The numbers, rising, of a vector y in any order."""
        return tuple(int(v) + i for i, v in enumerate(sorted(y)))

    def encode(self, numbers: Sequence[int]) -> Vector:
        """The sorted vector of different numbers in any order."""
        return tuple(int(v) - i for i, v in enumerate(sorted(numbers)))

    def random(self, rng: np.random.Generator) -> Vector:
        """The vector of a subset drawn uniformly."""
        return self.encode(rng.choice(self.total, self.size, replace=False))


class Space(ABC):
    """What an optimiser sees of a search: bounds, where to begin, and which vectors are the same candidate."""

    bounds: tuple[tuple[int, int], ...]  # (low, high), inclusive
    seeds: tuple[Vector, ...]  # known good candidates; the first is what all are held against
    ordered = True  # whether neighbouring numbers are alike, so that small steps make sense

    def check(self) -> None:
        """ConfigError where there is nothing to choose."""
        if all(low == high for low, high in self.bounds):
            raise ConfigError(
                "the search has one candidate alone, so there is nothing to choose; allowed: fewer steps than the "
                "model's schedule has timesteps, more than one with search.start=last, and an axis with alternatives."
            )

    @abstractmethod
    def canonical(self, vector: Sequence[int]) -> Vector:
        """The one name of a candidate."""

    @abstractmethod
    def random(self, rng: np.random.Generator) -> Vector:
        """A candidate drawn uniformly."""

    @abstractmethod
    def recipe(self, vector: Vector) -> Recipe:
        """What a canonical vector stands for."""

    def label(self, vector: Vector) -> str:
        """The candidate in one line, for the progress bar."""
        return self.recipe(vector).label


@dataclass(frozen=True)
class TimestepSpace(Space):
    """Timesteps of `base`'s sampler: `base.sampler.steps` different integers of `schedule`, any order of vector.

    A trajectory starts at the first of them from noise of unit variance, so a first timestep below the schedule's last
    one leaves out the noisiest levels; `start` = `last` fixes it there, `free` (as in AutoDiffusion) lets it be found.
    `grids`: the hand-made ones to begin with. ConfigError for more steps than timesteps.
    """

    base: Recipe
    schedule: NoiseSchedule
    grids: tuple[Grid, ...] = (Grid("trailing"),)
    start: str = "free"

    def __post_init__(self) -> None:
        if self.start not in ("free", "last"):
            raise ConfigError(f"search.start is {self.start!r}; allowed: free, or last (the schedule's last timestep).")
        if self.steps > self.total:
            raise ConfigError(
                f"a search for {self.steps} timesteps, but the model's schedule has {self.total}; allowed: "
                f"sampler.steps=1..{self.total}."
            )

    @property
    def steps(self) -> int:
        return self.base.sampler.steps

    @property
    def total(self) -> int:
        return int(self.schedule.t_max) - int(np.ceil(self.schedule.t_min)) + 1

    @property
    def _free(self) -> Subset:
        fixed = self.start == "last"
        return Subset(self.steps - fixed, self.total - fixed)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        return self._free.bounds

    @property
    def seeds(self) -> tuple[Vector, ...]:
        return tuple(dict.fromkeys(self.vector(grid.times(self.schedule, self.steps)) for grid in self.grids))

    def canonical(self, vector: Sequence[int]) -> Vector:
        return tuple(sorted(int(v) for v in vector))

    def random(self, rng: np.random.Generator) -> Vector:
        return self._free.random(rng)

    def timesteps(self, vector: Vector) -> Vector:
        """The timesteps of a candidate, largest first."""
        least = int(np.ceil(self.schedule.t_min))
        last = (self.total - 1,) if self.start == "last" else ()
        return tuple(least + t for t in sorted((*self._free.decode(vector), *last), reverse=True))

    def vector(self, times: Sequence[float]) -> Vector:
        """The candidate nearest to timesteps that may be fractional: rounded, and kept apart."""
        least = int(np.ceil(self.schedule.t_min))
        rounded = np.sort(np.round(times).astype(int)) - least
        size = self._free.size
        kept = rounded[:size]  # rising: what `start` fixes is the last one
        y = np.clip(kept - np.arange(size), 0, self._free.total - size)
        return tuple(np.maximum.accumulate(y).tolist())

    def recipe(self, vector: Vector) -> Recipe:
        return replace(self.base, grid=ExplicitGrid(timesteps=self.timesteps(vector)))

    def label(self, vector: Vector) -> str:
        return " ".join(map(str, self.timesteps(vector)))
