"""Which solver steps are full: the schedules that caches share.

`full(num_steps)` gives the indices of the steps that run the whole network; 0 is always one of them. Caches refresh
there and reuse what they stored elsewhere.
"""

from __future__ import annotations

import cmath
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from accel.errors import ConfigError, check_float, check_int, unknown


class Schedule(ABC):
    """A set of full steps for any number of solver steps; frozen dataclasses, so that records hold their settings."""

    @abstractmethod
    def full(self, num_steps: int) -> frozenset[int]:
        """Indices of the full steps among 0..num_steps - 1; ConfigError if this schedule has none for num_steps."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for tables."""


@dataclass(frozen=True)
class Uniform(Schedule):
    """1:interval, full iff step % interval == 0: ceil(T / interval) full steps."""

    interval: int = 3

    def __post_init__(self) -> None:
        check_int("cache.schedule.interval", self.interval, 1)

    def full(self, num_steps: int) -> frozenset[int]:
        return frozenset(range(0, num_steps, self.interval))

    @property
    def label(self) -> str:
        return str(self.interval)


def signed_powers(count: int, below: int, above: int, power: float) -> list[float]:
    """sgn(l) |l|^p of `count` knots l, evenly spaced from -below^(1/p) to above^(1/p) without the end."""
    last, first = above ** (1 / power), below ** (1 / power)
    knots = [-first + (last + first) * j / count for j in range(count)]
    return [math.copysign(abs(knot) ** power, knot) for knot in knots]


def released_powers(count: int, below: int, above: int, power: float) -> list[float]:
    """Re l^p of `count` complex knots l, evenly spaced from (-below)^(1/p) to above^(1/p) without the end."""
    last, first = above ** (1 / power), below ** (1 / power)
    root = first * cmath.exp(1j * math.pi / power)
    return [((root + (last - root) * j / count) ** power).real for j in range(count)]


# Ma, Fang & Wang 2024 (arXiv:2312.00858), eq. 7: l -> l^power for knots l on both sides of 0.
READINGS = {"signed": signed_powers, "released": released_powers}


@dataclass(frozen=True)
class NonUniform(Schedule):
    """DeepCache's non-uniform 1:N: k = ceil(T / interval) full steps, dense about step `centre`.

    k knots l_j are evenly spaced from (-c)^(1/p) to (T - c)^(1/p), without the end; step_j = int(l_j^p) + c, the first
    is 0. Where steps collide, p is lowered by 0.02 until all k differ. c = centre, p = power > 1.
    `signed` reads the power as sgn(l) |l|^p, which is dense about c as the paper says. `released` is what its code
    does: a fractional power of a negative number is complex, and the real part is taken; that is hardly dense there.
    """

    interval: int = 5
    centre: int = 10
    power: float = 1.4
    reading: str = "signed"

    def __post_init__(self) -> None:
        check_int("cache.schedule.interval", self.interval, 1)
        check_int("cache.schedule.centre", self.centre, 1)
        check_float("cache.schedule.power", self.power, 1.0)
        if self.reading not in READINGS:
            raise unknown("cache.schedule.reading", str(self.reading), READINGS)

    def full(self, num_steps: int) -> frozenset[int]:
        if self.centre >= num_steps:
            raise ConfigError(
                f"cache.schedule.centre is {self.centre}, but the sampler has {num_steps} steps; allowed: "
                f"1..{num_steps - 1}."
            )
        count, power = math.ceil(num_steps / self.interval), self.power
        while power > 1:
            powers = READINGS[self.reading](count, self.centre, num_steps - self.centre, power)
            steps = {0, *(int(value) + self.centre for value in powers[1:])}
            if len(steps) == count:
                return frozenset(steps)
            power -= 0.02
        raise ConfigError(
            f"DeepCache's non-uniform schedule has no {count} different steps of {num_steps} for centre {self.centre} "
            f"and power {self.power:g}; use a larger cache.schedule.interval, or cache.schedule.power nearer to 1."
        )

    @property
    def label(self) -> str:
        return f"{self.interval}c{self.centre}p{self.power:g}" + ("r" if self.reading == "released" else "")


@dataclass(frozen=True)
class Squares(Schedule):
    """Full at 0, 2, 5, 9, 14, ...: the triangular numbers less one, ever rarer (9 + 8 i is a perfect square).

    The `pro` key steps of Li et al. 2023, "Faster Diffusion" (arXiv:2312.09608), in its code.
    """

    def full(self, num_steps: int) -> frozenset[int]:
        return frozenset(i for i in range(num_steps) if math.isqrt(9 + 8 * i) ** 2 == 9 + 8 * i) | {0}

    @property
    def label(self) -> str:
        return "squares"


@dataclass(frozen=True)
class Explicit(Schedule):
    """Exactly these steps, such as a paper's list or what a search has found; the first must be 0."""

    steps: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        for step in self.steps:
            check_int("cache.schedule.steps", step, 0)
        steps = tuple(int(step) for step in self.steps)
        object.__setattr__(self, "steps", steps)
        if not steps or steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise ConfigError(
                f"cache.schedule.steps is {list(steps)}; allowed: rising step numbers from 0, as the first step has "
                "nothing to reuse."
            )

    def full(self, num_steps: int) -> frozenset[int]:
        if self.steps[-1] >= num_steps:
            raise ConfigError(
                f"cache.schedule.steps has {self.steps[-1]}, but the sampler has {num_steps} steps; allowed: "
                f"0..{num_steps - 1}."
            )
        return frozenset(self.steps)

    @property
    def label(self) -> str:
        return f"{len(self.steps)}steps(" + ",".join(map(str, self.steps)) + ")"
