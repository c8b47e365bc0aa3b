"""What a few-step student is trained for, in general, and networks as functions of x_t and t.

A task (`Segments`, `Distribution`, `Consistency`) says which networks are in training, what one step of it is, what
that evaluates, and how the student may be run afterwards. It is frozen data, so that a checkpoint can say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn

from accel.core.branches import classifier_free
from accel.samplers.noise_schedule import NoiseSchedule
from accel.suites.training.learner import Kept, Learner, TrainConfig

BACKWARD = 2  # a backward pass in forward passes
STUDENT = "student"
IMAGES, CONDITIONS = "training images", "labels"  # what a task sees; of captions a suite says so

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x (B, C, H, W), t (B,) -> v, of the same shape
Condition = Mapping[str, torch.Tensor]  # what a network gets beside x and t, with B rows
Turn = Callable[[int, torch.Generator], float]


class Draw(Protocol):
    """A batch of the data: x0 (B, C, H, W) in -1..1, its condition, and that of nothing (for guidance)."""

    def __call__(self, generator: torch.Generator) -> tuple[torch.Tensor, Condition, Condition]: ...


@dataclass(frozen=True)
class Lesson:
    """What a task is carried out with: the student before training, the frozen teacher, both on `device`, the noise
    schedule, the data, and the settings of the student's training."""

    student: nn.Module
    teacher: nn.Module
    schedule: NoiseSchedule
    draw: Draw
    cfg: TrainConfig
    device: torch.device | str = "cpu"

    def learner(self) -> Learner:
        """The student in training."""
        return Learner(self.student, self.cfg, self.device)


class Task(Protocol):
    """A way to train a student. `kind`, `times`, `guidance`: those of its contract; `data`: what it sees."""

    times: Sequence[float]

    @property
    def kind(self) -> str: ...

    @property
    def guidance(self) -> float | tuple[float, float]: ...

    @property
    def data(self) -> str: ...

    def begin(self, lesson: Lesson) -> tuple[Mapping[str, Kept], Turn]:
        """The networks in training, the student as `STUDENT` or the only one, and one step of it."""

    def spent(self, steps: int) -> dict[str, float]:
        """Of `steps` steps with one image a batch: `samples`, and evaluations of each network (`teacher_evaluations`,
        ...), a backward pass as two."""


def settings(task: Any) -> dict[str, str]:
    """What a checkpoint says of `task`."""
    return {"task": type(task).__name__} | {f"task.{name}": str(value) for name, value in asdict(task).items()}


def predicting(net: nn.Module, device: torch.device | str, condition: Condition) -> Predict:
    """`net` under a condition, as a function of x and t on `device`; predictions in float32 or what is wider."""
    there = {name: value.to(device) for name, value in condition.items()}

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found = net(x, t.to(device, x.dtype), **there, return_dict=False)[0]
        return found if found.dtype == torch.float64 else found.float()

    return predict


def guided(
    net: nn.Module, device: torch.device | str, condition: Condition, absent: Condition, scale: float | torch.Tensor
) -> Predict:
    """u + s (c - u) of `net` (Ho & Salimans 2022, arXiv:2207.12598), one evaluation where s = 1; `scale`: s, or one for
    each row (B,)."""
    cond = predicting(net, device, condition)
    if isinstance(scale, (int, float)) and scale == 1:
        return cond
    uncond = predicting(net, device, absent)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s = torch.as_tensor(scale).to(x).reshape(-1, *[1] * (x.dim() - 1))
        return classifier_free(uncond(x, t), cond(x, t), s)

    return predict
