"""Straightened flows: a flow that leads from noise to where its teacher's trajectories do, in straighter lines.

Reflow (Liu et al. 2022, arXiv:2209.03003). With pairs of noise z and the teacher's image x of it,

    x = Solve(z; T -> 0),   loss = || (z - x) - v_theta((1 - s) x + s z, s, c) ||^2,   s in (0, 1]

whose minimum is a flow between the same two distributions with less transport, so that fewer steps of a solver suffice.
It is a flow as its teacher is: any sampler of flows runs it, in any number of steps. Distilled into one step afterwards
(`Segments` with it as the teacher), it is InstaFlow (Liu et al. 2023, arXiv:2309.06380).

Deviations: pairs are drawn anew for every step, where the papers store them (a stored set is learned by heart), so that
no training image is seen, but labels; s is stratified over the batch, as in the teacher's own training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from accel.errors import ConfigError, IncompatibleError, check_int
from accel.suites.training.learner import Kept
from accel.suites.training.noising import END, Levels
from accel.suites.training.segments import solve
from accel.suites.training.task import BACKWARD, CONDITIONS, Lesson, Turn, predicting


@dataclass(frozen=True)
class Reflow:
    """The task: `calls` evaluations of the teacher for each pair, by a solver of `order` 1 (Euler) or 2
    (DPM-Solver++(2M))."""

    calls: int = 10
    order: int = 2

    kind: ClassVar[str] = "straightened"
    times: ClassVar[Sequence[float]] = ()
    guidance: ClassVar[float] = 1.0
    data: ClassVar[str] = CONDITIONS

    def __post_init__(self) -> None:
        check_int("calls", self.calls, 1)
        if self.order not in (1, 2):
            raise ConfigError(f"the order of the pairs' solver is {self.order}; allowed: 1 or 2.")

    def begin(self, lesson: Lesson) -> tuple[Mapping[str, Kept], Turn]:
        if not lesson.schedule.flow:
            raise IncompatibleError(
                "the teacher predicts no flow, whose trajectories alone are made straight; distil it by segments."
            )
        learner = lesson.learner()

        def turn(step: int, generator: torch.Generator) -> float:
            return learner.descend(reflow_loss(self, lesson, generator), step)

        return {"": learner}, turn

    def spent(self, steps: int) -> dict[str, float]:
        return {"samples": steps, "teacher_evaluations": steps * self.calls,
                "student_evaluations": steps * (1 + BACKWARD)}  # fmt: skip


def pairs(task: Reflow, lesson: Lesson, z: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The teacher's images of noise z (B, ...), on the device of z; its times are even in t, as flows' are."""
    route = np.linspace(lesson.schedule.t_max, 0.0, task.calls + 1)
    route[-1] = END
    teacher = predicting(lesson.teacher, lesson.device, condition)
    with torch.no_grad():
        return solve(teacher, z, np.tile(route[:, None], len(z)), Levels(lesson.schedule), task.order)


def reflow_loss(task: Reflow, lesson: Lesson, generator: torch.Generator) -> torch.Tensor:
    """The module's loss of one batch, the mean over pixels."""
    x0, condition, _ = lesson.draw(generator)
    z = torch.randn(x0.shape, generator=generator).to(x0).to(lesson.device)
    s = 1 - (torch.rand(1, generator=generator) + torch.arange(len(x0)) / len(x0)) % 1
    x = pairs(task, lesson, z, condition)
    time, s = s * lesson.schedule.total, s.to(z).reshape(-1, *[1] * (z.dim() - 1))
    found = predicting(lesson.student, lesson.device, condition)((1 - s) * x + s * z, time)
    return nn.functional.mse_loss(found, z - x)
