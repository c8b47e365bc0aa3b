"""Guidance as one evaluation: a student that predicts what u + s (c - u) of its teacher is.

Meng et al. 2023 (arXiv:2210.03142), stage 1. At x_t of noised training images and any t,

    loss = || v_theta(x_t, t, c[, s]) - (v_u + s (v_c - v_u)) ||^2

in velocities, which is their error of x_0 weighed by SNR + 1 (theirs: at least 1). There is no jump in time, so that
the student does what its teacher does, under every sampler and cache, at half the evaluations. A scale is built in; of
a range one is drawn for each image, and told to the network as its `timestep_cond` (accel.students.told makes such a
network of a teacher).

Deviations: velocities; times are whole and uniform; the embedding of s is that of diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from accel.students.told import guidance_embedding, width_of
from accel.suites.training.consistency import check_scales, drawn_scales
from accel.suites.training.learner import Kept
from accel.suites.training.noising import Levels, draw_times, renoised
from accel.suites.training.task import BACKWARD, IMAGES, Lesson, Turn, guided, predicting


@dataclass(frozen=True)
class Guided:
    """The task: `guidance`, the teacher's scale, or a range of scales that the network is told."""

    guidance: float | tuple[float, float]

    times: ClassVar[Sequence[float]] = ()
    data: ClassVar[str] = IMAGES

    def __post_init__(self) -> None:
        check_scales(self.guidance)

    @property
    def kind(self) -> str:
        return "guided" if isinstance(self.guidance, (int, float)) else "told"

    def begin(self, lesson: Lesson) -> tuple[Mapping[str, Kept], Turn]:
        learner = lesson.learner()

        def turn(step: int, generator: torch.Generator) -> float:
            return learner.descend(guidance_loss(self, lesson, generator), step)

        return {"": learner}, turn

    def spent(self, steps: int) -> dict[str, float]:
        teacher = 1 if self.guidance == 1 else 2
        return {"samples": steps, "teacher_evaluations": steps * teacher,
                "student_evaluations": steps * (1 + BACKWARD)}  # fmt: skip


def guidance_loss(task: Guided, lesson: Lesson, generator: torch.Generator) -> torch.Tensor:
    """The module's loss of one batch, the mean over pixels."""
    levels, device = Levels(lesson.schedule), lesson.device
    x0, condition, absent = lesson.draw(generator)
    t = draw_times(levels, (0.0, 1.0), len(x0), generator)
    x = renoised(x0, torch.randn(x0.shape, generator=generator).to(x0), levels.at(t)).to(device)
    scale, told = task.guidance, condition
    if not isinstance(task.guidance, (int, float)):
        scale = drawn_scales(task.guidance, len(x0), generator)
        told = {**condition, "timestep_cond": guidance_embedding(scale, width_of(lesson.student))}
    time = torch.as_tensor(t)
    with torch.no_grad():
        wanted = guided(lesson.teacher, device, condition, absent, scale)(x, time)
    return nn.functional.mse_loss(predicting(lesson.student, device, told)(x, time), wanted)
