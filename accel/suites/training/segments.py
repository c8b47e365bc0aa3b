"""Distillation of trajectory segments: one loss for progressive distillation, phased consistency and trajectory ends.

A student learns where the teacher's probability-flow ODE leads from time t to an earlier one s. With the teacher's
solver from t to u (s <= u < t) and the student's own DDIM step from u to s, held fixed,

    x_u = Solve(x_t; t -> u),   x_s = DDIM(x_u, x0_theta-(x_u, u); u -> s)   (x_s = x_u where u = s)

the x_0 that one DDIM step from t to s would need to end there, and its velocity, are

    x~ = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t),   v~ = (alpha_t x_t - x~) / sigma_t

and the loss is || v_theta(x_t, t, c) - v~ ||^2, which at fixed x_t is (SNR + 1) || x0_theta - x~ ||^2. For a flow v is
the network's own output and v~ = (x_t - x~) / t, the same formula with alpha = 1 - sigma. Which (t, u, s) are drawn is
the method (`DRAWS`):

* `edges`: t and s are neighbours of the student's grid, u = s. Progressive distillation (Salimans & Ho 2022,
  arXiv:2202.00512, eq. 8 in this form) with any solver as the teacher, also one that takes more than two steps.
* `phases`: t anywhere in a segment, u one fine step below, s its lower edge. Phased consistency models (Wang et al.
  2024, arXiv:2405.18407, eq. 12; here the squared error in place of Huber's, and the network itself in place of its
  EMA).
* `ends`: as `phases`, but s anywhere from the lower edge to u. Trajectory segmented consistency (Ren et al. 2024,
  arXiv:2404.13686, eq. 6, without the adversarial part).

x_t is a noised training image, or, with `start="own"`, what the student itself makes of pure noise by its DDIM steps
down to t: no image is seen, each segment is learned where the one before it really ends, and what that did wrong is
made good by the next (backward distillation, Kohler et al. 2024, arXiv:2405.05224). A teacher that is guided, by
u + s (c - u) of two evaluations, builds the guidance in (Meng et al. 2023, arXiv:2210.03142, whose two stages are one
here).

Networks must predict v (variance preserving) or the flow's velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from accel.errors import ConfigError, check_float, check_int, unknown
from accel.suites.training.learner import Kept
from accel.suites.training.noising import END, Level, Levels, clean, column, ddim, renoised
from accel.suites.training.task import (
    BACKWARD,
    CONDITIONS,
    IMAGES,
    Condition,
    Lesson,
    Predict,
    Turn,
    guided,
    predicting,
)


def check_times(times: Sequence[float]) -> None:
    """ConfigError unless a student's times are one or more, largest first."""
    if len(times) < 1 or any(a <= b for a, b in pairwise(times)):
        raise ConfigError(f"times of a student are {list(times)}; allowed: one or more, largest first.")


@dataclass(frozen=True)
class Segments:
    """The student's task: `times`, its grid, largest first (the last segment ends at sigma = 0); `draw`: which triples;
    `calls`: the teacher's evaluations from t to u; `order`: of its solver, 1 (DDIM) or 2 (DPM-Solver++(2M));
    `fine`: fine steps of a segment, of which `phases` and `ends` go one down; `through`: the times of a teacher that is
    a student itself and knows no others, equally many in each segment, in the place of `calls`; `guidance`: scale of
    the teacher's; `start`: where x_t comes from, noised `images` or the student's `own` steps; `parts`: updates
    that are made of one batch that the teacher was asked about, each of its share; `passes`: how often."""

    times: Sequence[float]
    draw: str = "edges"
    calls: int = 4
    order: int = 2
    fine: int = 8
    through: Sequence[float] = ()
    guidance: float = 1.0
    start: str = "images"
    parts: int = 1
    passes: int = 1

    kind: ClassVar[str] = "endpoint"

    def __post_init__(self) -> None:
        if self.draw not in DRAWS:
            raise unknown("draw of segments", self.draw, DRAWS)
        check_int("calls", self.calls, 1)
        for name in ("fine", "parts", "passes"):
            check_int(name, getattr(self, name), 1)
        if self.order not in (1, 2):
            raise ConfigError(f"the order of a segment's solver is {self.order}; allowed: 1 or 2.")
        check_times(self.times)
        check_float("guidance", self.guidance, 0.0)
        if self.start not in STARTS:
            raise unknown("start of segments", self.start, STARTS)
        if self.start == "own" and self.draw != "edges":
            raise ConfigError(
                f"draw of segments is {self.draw!r}, whose times a student does not come by; use draw='edges' with "
                "start='own'."
            )
        inside = [self.inner(t, u) for t, u in zip(self.times, [*self.times[1:], END], strict=True)]
        strange = self.through and not {*self.times} <= {*self.through}
        if self.through and (strange or self.draw != "edges" or len({len(own) for own in inside}) > 1):
            raise ConfigError(
                f"a teacher of the times {list(self.through)} is asked for draw={self.draw!r} and times "
                f"{list(self.times)}; allowed: draw='edges', times of its own, equally many in each segment."
            )

    @property
    def evaluations(self) -> int:
        """The teacher's evaluations of one image in a segment."""
        first, second = [*self.times, END][:2]
        return 1 + len(self.inner(first, second)) if self.through else self.calls

    @property
    def data(self) -> str:
        return IMAGES if self.start == "images" else CONDITIONS

    def begin(self, lesson: Lesson) -> tuple[Mapping[str, Kept], Turn]:
        learner = lesson.learner()

        def turn(step: int, generator: torch.Generator) -> float:
            told = told_of(self, lesson, generator)
            losses = [learner.descend(part.error(lesson), step) for part in self.shared(told, generator)]
            return float(np.mean(losses))

        return {"": learner}, turn

    def spent(self, steps: int) -> dict[str, float]:
        teacher = self.evaluations * (1 if self.guidance == 1 else 2)
        before = (len(self.times) - 1) / 2 if self.start == "own" else 0  # steps down to t, on the average
        return {"samples": steps, "teacher_evaluations": steps * teacher,
                "student_evaluations": steps * (self.passes * (1 + BACKWARD) + before)}  # fmt: skip

    def shared(self, told: Told, generator: torch.Generator) -> list[Told]:
        """What each update of a step is made of."""
        if self.parts == self.passes == 1:
            return [told]
        orders = [torch.randperm(len(told.t), generator=generator) for _ in range(self.passes)]
        return [told.of(rows) for order in orders for rows in order.chunk(self.parts)]

    def inner(self, t: float, u: float) -> list[float]:
        """The teacher's own times strictly between t and u, largest first."""
        return sorted((time for time in self.through if u < time < t), reverse=True)

    def route(self, t: np.ndarray, u: np.ndarray, levels: Levels) -> np.ndarray:
        """The times at which the teacher is evaluated, and u: (calls + 1, B)."""
        if not self.through:
            return levels.between(t, u, self.calls)
        return np.array([[a, *self.inner(a, b), b] for a, b in zip(t, u, strict=True)]).T


def _edges(task: Segments, levels: Levels, generator: torch.Generator, count: int) -> tuple[np.ndarray, ...]:
    top, bottom = _segment(task, generator, count)
    return top, bottom, bottom


def _phases(task: Segments, levels: Levels, generator: torch.Generator, count: int) -> tuple[np.ndarray, ...]:
    top, bottom = _segment(task, generator, count)
    fine = levels.between(top, bottom, task.fine)
    place = torch.randint(0, task.fine, (count,), generator=generator).numpy()
    rows = np.arange(count)
    return fine[place, rows], fine[place + 1, rows], bottom


def _ends(task: Segments, levels: Levels, generator: torch.Generator, count: int) -> tuple[np.ndarray, ...]:
    t, u, bottom = _phases(task, levels, generator, count)
    fine = levels.between(u, bottom, task.fine)
    place = torch.randint(0, task.fine + 1, (count,), generator=generator).numpy()
    return t, u, np.where(u == bottom, bottom, fine[place, np.arange(count)])


def _segment(task: Segments, generator: torch.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.array([*task.times, END], np.float64)
    place = torch.randint(0, len(task.times), (count,), generator=generator).numpy()
    return edges[place], edges[place + 1]


STARTS = ("images", "own")
DRAWS: Mapping[str, Callable[..., tuple[np.ndarray, ...]]] = {"edges": _edges, "phases": _phases, "ends": _ends}


def endpoint(x: torch.Tensor, x_s: torch.Tensor, now: Level, then: Level) -> Any:
    """The x_0 with which one DDIM step from x_t ends at x_s, the inverse of `ddim`."""
    (alpha, sigma), (alpha_s, sigma_s) = now, then
    ratio = sigma_s / sigma
    return (x_s - column(ratio, x) * x) / column(alpha_s - ratio * alpha, x)


def solve(predict: Predict, x: torch.Tensor, times: np.ndarray, levels: Levels, order: int) -> torch.Tensor:
    """x (B, ...) at the last of `times` (calls + 1, B) from that at the first, along the ODE of `predict`: by DDIM, or
    DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, alg. 2). A step to sigma = 0 is of first order."""
    flow = levels.schedule.flow
    before: torch.Tensor | None = None
    log_before: np.ndarray | None = None
    for now, then in pairwise(times):
        here, there = levels.at(now), levels.at(then)
        x0 = clean(x, predict(x, torch.as_tensor(now)), *here, flow)
        with np.errstate(divide="ignore"):
            step = np.log(here[1] / here[0]) - np.log(there[1] / there[0])  # of lambda; infinite to sigma = 0
        used = x0
        if order == 2 and before is not None:
            ratio = np.where(np.isfinite(step), step, 0.0) / (2 * log_before)
            used = x0 + column(ratio, x) * (x0 - before)
        x = ddim(x, used, here, there)
        before, log_before = x0, step
    return x


def target(
    x: torch.Tensor, t: np.ndarray, u: np.ndarray, s: np.ndarray, teacher: Predict, student: Predict, levels: Levels,
    task: Segments,
) -> torch.Tensor:  # fmt: skip
    """v~ of the module's head for x_t (B, ...) and times (B,) t > u >= s."""
    flow, now, end = levels.schedule.flow, levels.at(t), levels.at(s)
    x_s = x_u = solve(teacher, x, task.route(t, u, levels), levels, task.order)
    if (further := u > s).any():
        middle = levels.at(np.where(further, u, t))  # rows that are there already take no step, whatever this says
        inner = student(x_u, torch.as_tensor(np.where(further, u, t)))
        onward = ddim(x_u, clean(x_u, inner, *middle, flow), middle, end)
        x_s = torch.where(column(further, x) > 0, onward, x_u)
    x0 = endpoint(x, x_s, now, end)
    return ((x if flow else column(now[0], x) * x) - x0) / column(now[1], x)


def reached(
    net: nn.Module, device: torch.device | str, condition: Condition, noise: torch.Tensor, t: np.ndarray,
    times: Sequence[float], levels: Levels,
) -> torch.Tensor:  # fmt: skip
    """x_t (B, ...) that a student's DDIM steps down its `times` make of pure noise, for t (B,) among these."""
    x = noise.clone()
    for now, then in pairwise(times):
        rows = np.flatnonzero(t < now)
        if not len(rows):
            break
        place = torch.as_tensor(rows)
        predict = predicting(net, device, {name: value[place.to(value.device)] for name, value in condition.items()})
        here, there = (levels.at(np.full(len(rows), float(time))) for time in (now, then))
        own = x[place.to(x.device)]
        v = predict(own, torch.full((len(rows),), float(now), dtype=torch.float64))
        x[place.to(x.device)] = ddim(own, clean(own, v, *here, levels.schedule.flow), here, there)
    return x


@dataclass(frozen=True)
class Told:
    """What a student is told of a batch: x_t (B, ...) at times t (B,) under a condition, and the velocity there."""

    x: torch.Tensor
    t: torch.Tensor
    condition: Condition
    wanted: torch.Tensor

    def of(self, rows: torch.Tensor) -> Told:
        """That of some rows."""
        given = {name: value[rows.to(value.device)] for name, value in self.condition.items()}
        there = rows.to(self.x.device)
        return Told(self.x[there], self.t[rows], given, self.wanted[there])

    def error(self, lesson: Lesson) -> torch.Tensor:
        """Mean squared error of the student's velocity."""
        own = predicting(lesson.student, lesson.device, self.condition)
        return nn.functional.mse_loss(own(self.x, self.t), self.wanted)


def told_of(task: Segments, lesson: Lesson, generator: torch.Generator) -> Told:
    """A batch of the module's loss. The teacher, and the student where it is its own target or makes x_t, are held
    fixed."""
    levels, device = Levels(lesson.schedule), lesson.device
    x0, condition, absent = lesson.draw(generator)
    t, u, s = DRAWS[task.draw](task, levels, generator, len(x0))
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    own = predicting(lesson.student, device, condition)
    with torch.no_grad():
        if task.start == "own":
            x = reached(lesson.student, device, condition, noise.to(device), t, task.times, levels)
        else:
            x = renoised(x0, noise, levels.at(t)).to(device)
        teacher = guided(lesson.teacher, device, condition, absent, task.guidance)
        wanted = target(x, t, u, s, teacher, own, levels, task)
    return Told(x, torch.as_tensor(t), condition, wanted)


def segment_loss(task: Segments, lesson: Lesson, generator: torch.Generator) -> torch.Tensor:
    """The module's loss of one batch, the mean over pixels."""
    return told_of(task, lesson, generator).error(lesson)
