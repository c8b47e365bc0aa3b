"""Straightened flows: what they are told, and that they lead where their teacher's trajectories do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussians import SCHEDULES, Normal, Point, gaussian, normal
from torch import nn

from accel.errors import ConfigError, IncompatibleError
from accel.suites.training.learner import TrainConfig
from accel.suites.training.loop import run
from accel.suites.training.noising import END, Levels
from accel.suites.training.reflow import Reflow, pairs, reflow_loss
from accel.suites.training.task import Lesson, settings
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.suites import unet

CONFIG = TrainConfig(steps=60, batch=64, lr=0.03, warmup=0, weight_decay=0.0, ema_decay=0.5, decay="linear")
FLOW = SCHEDULES["flow"]
LEVELS = Levels(FLOW)


def numbers(generator):
    return torch.zeros(64, 1, dtype=torch.float64), {}, {}


class Straight(nn.Module):
    """The flow of N(mean, std^2) whose trajectories are lines: z ends at mean + std z, so that at time s
    x = ((1 - s) std + s) z + (1 - s) mean, and v = z - (mean + std z)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (mean, std))

    def forward(self, x, t, return_dict=False):
        s = (t / 1000).reshape(-1, 1)
        z = (x - (1 - s) * self.mean) / ((1 - s) * self.std + s)
        return (z - self.mean - self.std * z,)


def lesson(student: nn.Module, teacher: nn.Module, schedule=FLOW) -> Lesson:
    return Lesson(student, teacher, schedule, numbers, CONFIG)


def loss_of(task: Reflow, own: Lesson) -> float:
    return float(reflow_loss(task, own, torch.Generator().manual_seed(0)).detach())


def test_pairs_are_the_teachers_trajectories():
    """Of normal data, whose exact map is known: an error that falls with the steps; of one point exactly."""
    z, own = normal(8, 1), lesson(Straight(0.0, 1.0), Normal(0.3, 0.5, LEVELS))
    exact = gaussian(0.3, 0.5, LEVELS)[1](z, np.full(8, 1000.0), np.full(8, END))
    errors = [float((pairs(Reflow(calls), own, z, {}) - exact).abs().max()) for calls in (20, 40)]
    assert errors[1] < 0.01
    assert errors[0] / errors[1] > 2
    assert (pairs(Reflow(3), lesson(own.student, Point(0.3, LEVELS)), z, {}) - 0.3).abs().max() < 1e-9


def test_the_straight_flow_has_no_loss():
    own = lesson(Straight(0.3, 0.5), Normal(0.3, 0.5, LEVELS))
    assert loss_of(Reflow(60), own) < 1e-4
    assert loss_of(Reflow(60), lesson(Straight(0.2, 0.5), own.teacher)) > 5e-3
    point = lesson(Point(0.3, LEVELS), Point(0.3, LEVELS))
    assert loss_of(Reflow(1, order=1), point) < 1e-12, "what is straight stays as it is"


def test_it_learns_the_teachers_ends_by_straight_lines(tmp_path):
    own = lesson(Straight(0.0, 1.0), Normal(0.3, 0.5, LEVELS))
    kept, turn = Reflow(20).begin(own)
    run(kept, turn, own.cfg, tmp_path / "a.safetensors", task=settings(Reflow(20)))
    found = kept[""].averaged()
    assert float(found["mean"]) == pytest.approx(0.3, abs=0.03)
    assert float(found["std"]) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ConfigError, match="made with other training settings"):
        run(kept, turn, own.cfg, tmp_path / "a.safetensors", task=settings(Reflow(21)))


def test_bad_tasks_and_other_models_are_refused():
    for wrong in ({"calls": 0}, {"order": 3}):
        with pytest.raises(ConfigError, match=r"calls|order"):
            Reflow(**wrong)
    with pytest.raises(IncompatibleError, match="predicts no flow"):
        Reflow().begin(lesson(Straight(0.0, 1.0), Normal(0.3, 0.5, LEVELS), SCHEDULES["betas"]))


def test_its_bill_and_that_it_trains_on_a_device_as_on_the_cpu():
    calls = []

    def pictures(generator):
        labels = torch.randint(0, 10, (2,), generator=generator)
        return torch.rand(2, 1, 8, 8, generator=generator), {"class_labels": labels}, {"class_labels": labels * 0 + 10}

    def loss(device: str) -> float:
        teacher = unet(0).to(device)
        teacher.register_forward_hook(lambda *_: calls.append(device))
        return loss_of(Reflow(3), Lesson(unet(1).to(device), teacher, FLOW, pictures, CONFIG, device))

    here = loss("cpu")
    assert len(calls) == 3 == Reflow(3).spent(1)["teacher_evaluations"]
    with Elsewhere():
        assert loss(DEVICE) == here
