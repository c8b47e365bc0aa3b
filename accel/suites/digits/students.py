"""The students of the digits, and `make train SUITE=digits PART=pd4`: few-step networks distilled from `large`.

`pd4` learns four segments from four evaluations of DPM-Solver++(2M) each; `pd2` and `pd1` are halved from it and from
each other (progressive distillation). Times are 999, 550, 350 and 170 (sigma / alpha = 157, 4.6, 1.6 and 0.6), nested.
Pictures seen: the training images, noised.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import nn

from accel.core.macs import count_macs
from accel.core.student import Contract, contract_of
from accel.digests import weights_hex
from accel.errors import ConfigError
from accel.files import write_atomic
from accel.samplers.noise_schedule import noise_schedule
from accel.suites.base import ASSETS, load_pipeline
from accel.suites.digits import data
from accel.suites.digits.fit import OnStep, fit, quiet
from accel.suites.digits.models import SCHEDULER
from accel.suites.pipeline import PixelPipeline
from accel.suites.students import folder_of, load, save
from accel.suites.training.loop import TrainConfig
from accel.suites.training.segments import Segments, segment_loss

BACKWARD = 2  # a backward pass in forward passes


@dataclass(frozen=True)
class Stage:
    """One student: its task, its training, and whose weights it begins with and learns from."""

    task: Segments
    training: TrainConfig
    parent: str = "large"

    @property
    def steps(self) -> int:
        return self.training.steps


_TRAINING = TrainConfig(
    batch=32, lr=3e-4, warmup=20, weight_decay=0.0, ema_decay=0.99, label_dropout=0.0, checkpoint_every=50,
    decay="linear", dropout=False, beta2=0.99,
)  # fmt: skip
PARTS = {
    "pd4": Stage(Segments((999, 550, 350, 170)), replace(_TRAINING, steps=600, seed=11)),
    "pd2": Stage(
        Segments((999, 350), order=1, through=(999, 550, 350, 170)), replace(_TRAINING, steps=300, seed=12), "pd4"
    ),
    "pd1": Stage(Segments((999,), order=1, through=(999, 350)), replace(_TRAINING, steps=400, seed=13), "pd2"),
}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train one student (see PARTS); its fp16 weights and contract go beside the folder `assets` of its teacher."""
    stage, folder = PARTS[part], folder_of(assets)
    original = load_pipeline(PixelPipeline, assets / "large").unet
    if stage.parent != "large" and not (folder / stage.parent).is_dir():
        raise ConfigError(f"{part} is distilled from {stage.parent}, which is not in {folder}; train that first.")
    parent = original if stage.parent == "large" else load(folder / stage.parent, PixelPipeline, "digits")
    schedule, before = noise_schedule(SCHEDULER), contract_of(parent)

    teacher = copy.deepcopy(parent).to(device).eval().requires_grad_(False)

    def loss(net: nn.Module, x0: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return segment_loss(net, teacher, schedule, stage.task, x0, generator, class_labels=labels)

    teacher_digest, spent = weights_hex(original), Spent(work / f"{part}.seconds", stage.training.checkpoint_every)

    def told(step: int, loss: float) -> None:
        spent(step)
        on_step(step, loss)

    begun = parent.float().requires_grad_(True)
    net = fit(lambda: begun, loss, stage.training, work / f"{part}.safetensors", device, told)
    bill = _bill(stage, original, spent.total)
    if before is not None:
        bill |= {key: before.bill[key] + bill[key] for key in bill if key != "data"}
    pipe = PixelPipeline(unet=net.half(), scheduler=DDPMScheduler(**SCHEDULER))
    save(pipe, Contract("endpoint", stage.task.times, teacher_digest, 1.0, bill), folder / part)
    return net


class Spent:
    """Seconds of a training over all its commands: `total`; kept in a file whenever a checkpoint is."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self._begin = path, every, time.perf_counter()
        checkpoint = path.with_suffix(".safetensors")
        self._before = float(path.read_text()) if path.exists() and checkpoint.exists() else 0.0

    @property
    def total(self) -> float:
        return self._before + time.perf_counter() - self._begin

    def __call__(self, step: int) -> None:
        if step % self.every == 0:
            write_atomic(self.path, f"{self.total:.1f}".encode())


def _bill(stage: Stage, net: nn.Module, seconds: float) -> dict[str, float | str]:
    """What a stage costs: evaluations are of one image each, `macs` those of all of them."""
    samples = stage.training.steps * stage.training.batch
    x = torch.zeros(1, 1, data.SIZE, data.SIZE)
    _, one = count_macs(lambda: net.cpu()(x, torch.tensor([0]), class_labels=torch.tensor([0])))
    teacher, student = samples * stage.task.evaluations, samples * (1 + BACKWARD)
    return {"seconds": round(seconds, 1), "steps": stage.training.steps, "samples": samples,
            "teacher_evaluations": teacher, "student_evaluations": student, "macs": (teacher + student) * one,
            "data": "training images"}  # fmt: skip
