"""What an optimiser is: it proposes candidates, is told their scores, and stops when the budget is spent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accel.errors import ConfigError
from accel.search.spaces import Space, Vector

Evaluate = Callable[[Sequence[Vector]], list[tuple[float, ...]]]


class Optimiser(ABC):
    """A frozen dataclass: its settings, `seed` among them. Raise EPOCH when a change alters what it proposes.

    `several`: whether it can minimise more than one objective at once.
    """

    EPOCH = 1
    name: str
    several = False

    @abstractmethod
    def minimise(self, space: Space, evaluate: Evaluate, teacher: Teacher | None = None) -> Vector | None:
        """Search `space` until `evaluate` raises BudgetSpent; that goes through to the caller.

        `evaluate(vectors)` -> one tuple of objectives each, lower is better. A deterministic function of the space,
        the settings and what `evaluate` has returned. Returns a candidate if it decides for one by itself, else None:
        then the best scored one is taken.
        """

    @property
    def label(self) -> str:
        """Short, for tables."""
        return self.name


@dataclass(frozen=True)
class Teacher:
    """The converged trajectory, for optimisers that look at it: see `accel.search.teacher`."""

    jumps: Callable[..., Any]


def sole(points: list[tuple[float, ...]], name: str) -> list[float]:
    """The only objective of each point; ConfigError if there are several."""
    if any(len(point) > 1 for point in points):
        raise ConfigError(f"optimiser {name} minimises one objective; for several use optimiser=nsga2 or random.")
    return [point[0] for point in points]
