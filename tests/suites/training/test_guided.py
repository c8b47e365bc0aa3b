"""Guidance in one evaluation: what the student is told, at one scale and at many."""

from __future__ import annotations

import pytest
import torch
from gaussians import SCHEDULES
from torch import nn

from accel.errors import ConfigError
from accel.students.told import guidance_embedding
from accel.suites.training.guided import Guided, guidance_loss
from accel.suites.training.learner import TrainConfig
from accel.suites.training.loop import run
from accel.suites.training.task import Lesson, settings
from accel.testing.elsewhere import DEVICE, Elsewhere
from accel.testing.suites import unet

CONFIG = TrainConfig(
    steps=40, batch=8, lr=0.1, warmup=0, weight_decay=0.0, ema_decay=0.5, dropout=False, decay="linear"
)
LABELS = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])


def draw(generator):
    x0 = torch.rand(8, 1, 2, 2, generator=generator) * 2 - 1
    return x0, {"class_labels": LABELS}, {"class_labels": torch.zeros(8)}


class Teacher(nn.Module):
    """v = (1 + label) x: linear in the label, so that guidance of scale s is label times s."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x, t, class_labels, return_dict):
        self.seen.append(t)
        return ((1 + class_labels.reshape(-1, 1, 1, 1)) * x,)


class Student(nn.Module):
    """v = (1 + label gain s) x, where s is what it is told, or 1."""

    config = {"time_cond_proj_dim": 8}  # noqa: RUF012

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.told = nn.Parameter(torch.tensor(gain)), None

    def forward(self, x, t, class_labels, return_dict, timestep_cond=None):
        self.told, scale = timestep_cond, 1.0
        if timestep_cond is not None:  # the slowest sine is 1000 (s - 1) / 10^4
            scale = (1 + timestep_cond[:, 3].asin() * 10).reshape(-1, 1, 1, 1)
        return ((1 + class_labels.reshape(-1, 1, 1, 1) * self.gain * scale) * x,)


def lesson(gain: float) -> Lesson:
    return Lesson(Student(gain), Teacher(), SCHEDULES["betas"], draw, CONFIG)


def loss_of(task: Guided, own: Lesson) -> float:
    return float(guidance_loss(task, own, torch.Generator().manual_seed(0)).detach())


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.5])
def test_the_network_that_is_classifier_free_guidance_has_no_loss(scale):
    assert loss_of(Guided(scale), lesson(scale)) < 1e-10
    assert loss_of(Guided(scale), lesson(scale + 0.5)) > 0.1


def test_what_is_told_the_scale_is_guided_at_each():
    own = lesson(1.0)
    assert loss_of(Guided((1.0, 5.0)), own) < 1e-6
    assert len({tuple(row) for row in own.student.told.tolist()}) == 8, "a scale for each image"
    loss_of(Guided((3.0, 3.0)), own)
    assert torch.equal(own.student.told, guidance_embedding(torch.full((8,), 3.0), 8))
    assert loss_of(Guided((3.0, 3.0)), own) == pytest.approx(0, abs=1e-6)


def test_it_learns_it_at_all_times(tmp_path):
    own = lesson(1.0)
    kept, turn = Guided(2.0).begin(own)
    run(kept, turn, own.cfg, tmp_path / "a.safetensors", task=settings(Guided(2.0)))
    assert float(kept[""].averaged()["gain"]) == pytest.approx(2.0, abs=0.05)
    times = torch.cat(own.teacher.seen)
    assert times.min() < 60
    assert times.max() > 940
    assert (times == times.round()).all()
    with pytest.raises(ConfigError, match="made with other training settings"):
        run(kept, turn, own.cfg, tmp_path / "a.safetensors", task=settings(Guided(2.5)))


def test_its_bill_and_bad_ranges():
    own = lesson(1.0)
    loss_of(Guided(2.0), own)
    assert len(own.teacher.seen) == Guided(2.0).spent(1)["teacher_evaluations"] == 2
    assert Guided(1.0).spent(5)["teacher_evaluations"] == 5
    for wrong in ((5.0, 2.0), (1.0, 2.0, 3.0)):
        with pytest.raises(ConfigError, match="a scale, or two, the smaller first"):
            Guided(wrong)


def test_it_trains_on_a_device_as_on_the_cpu():
    def pictures(generator):
        labels = torch.randint(0, 10, (2,), generator=generator)
        return torch.rand(2, 1, 8, 8, generator=generator), {"class_labels": labels}, {"class_labels": labels * 0 + 10}

    def loss(device: str) -> float:
        own = Lesson(unet(1).to(device), unet(0).to(device), SCHEDULES["flow"], pictures, CONFIG, device)
        return loss_of(Guided(2.0), own)

    here = loss("cpu")
    with Elsewhere():
        assert loss(DEVICE) == here
