"""Coordinate descent: move one number at a time, in steps that shrink (a hill climb from the best seed).

For each coordinate in turn both neighbours at +-delta are scored and the better one is kept if it improves; after a
round without improvement delta is halved, and a round at delta = 1 without improvement ends the search. With the search
metric `distance` this is coordinate descent on trajectory error.
"""

from __future__ import annotations

from dataclasses import dataclass

from accel.errors import check_float
from accel.search.optimisers.base import Evaluate, Optimiser, sole
from accel.search.spaces import Space, Vector


@dataclass(frozen=True)
class CoordinateDescent(Optimiser):
    """`share`: the first delta as a share of a coordinate's range divided by the number of coordinates."""

    share: float = 0.5
    name: str = "coordinate"

    def __post_init__(self) -> None:
        check_float("optimiser.share", self.share, 0.0, 1.0)

    def minimise(self, space: Space, evaluate: Evaluate, teacher=None) -> None:
        values = sole(evaluate(space.seeds), self.name)
        best = min(range(len(values)), key=values.__getitem__)
        at, value = space.seeds[best], values[best]
        delta = self.share / max(1, len(space.bounds))
        while True:
            improved = False
            for i in range(len(space.bounds)):
                tried = _neighbours(space, at, i, delta)
                found = sole(evaluate(tried), self.name) if tried else []
                for vector, new in zip(tried, found, strict=True):
                    if new < value:
                        at, value, improved = vector, new, True
            if not improved:
                if all(_step(space, i, delta) == 1 for i in range(len(space.bounds))):
                    return
                delta /= 2


def _step(space: Space, i: int, delta: float) -> int:
    low, high = space.bounds[i]
    return max(1, round(delta * (high - low)))


def _neighbours(space: Space, at: Vector, i: int, delta: float) -> list[Vector]:
    (low, high), step = space.bounds[i], _step(space, i, delta)
    moved = {min(high, max(low, at[i] + sign * step)) for sign in (-1, 1)} - {at[i]}
    return [space.canonical((*at[:i], v, *at[i + 1 :])) for v in sorted(moved)]
