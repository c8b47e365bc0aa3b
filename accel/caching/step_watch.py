"""What a step cache would compare with its threshold, for who looks for one: seen while the whole network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Protocol

from accel.core.denoiser import Denoise, Node
from accel.core.method import Method
from accel.core.threshold import ThresholdRule

LONGEST = 3  # evaluations in a row whose indicators are added up
ALWAYS = 1e9  # above every sum of indicators

Row = tuple[int, int, str, int]  # slot, call, part, sample
Told = Callable[[Sequence[Row], Sequence[float]], None]


@dataclass(frozen=True)
class Below(ThresholdRule):
    """A threshold that is reached by what lies below it."""

    def reached(self, residual: float, threshold: float) -> bool:
        return residual < threshold


class Watchable(Protocol):
    """A step cache: `attached` with somebody who is told each indicator runs everything."""

    def attached(self, node: Node, inner: Denoise, told: Told | None) -> Denoise: ...


class Watching(Method):
    """Attached in the place of a step cache: the plain network, and in `found` each indicator, alone and added to those
    of up to LONGEST - 1 evaluations before it."""

    uneven: ClassVar[bool] = True

    def __init__(self, cache: Watchable) -> None:
        self.cache = cache
        self.found: list[float] = []
        self._last: dict[Row, list[float]] = {}

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        node.clock.on_reset(self._last.clear)
        return self.cache.attached(node, inner, self._note)

    def _note(self, rows: Sequence[Row], values: Sequence[float]) -> None:
        for row, value in zip(rows, values, strict=True):
            last = self._last.setdefault(row, [])
            if not isfinite(value):  # nothing could be said, and so it ran
                last.clear()
                continue
            last[:] = [value, *last][:LONGEST]
            self.found += sums(last)


def sums(values: Sequence[float]) -> list[float]:
    """Of the first one, the first two, ... of `values`."""
    return [sum(values[: count + 1]) for count in range(len(values))]
