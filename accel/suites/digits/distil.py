"""How a student of any digits network is trained and written: from a stage to weights, contract and bill."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.core.macs import count_macs
from accel.core.student import Contract, contract_of
from accel.digests import weights_hex
from accel.errors import ConfigError
from accel.files import write_atomic
from accel.samplers.noise_schedule import noise_schedule
from accel.suites.base import load_pipeline
from accel.suites.digits import data
from accel.suites.digits.fit import OnStep
from accel.suites.digits.models import NULL_LABEL
from accel.suites.pipeline import PixelPipeline
from accel.suites.students import folder_of, load, save
from accel.suites.training.loop import TrainConfig, run
from accel.suites.training.task import STUDENT, Condition, Draw, Lesson, Task, settings


@dataclass(frozen=True)
class Stage:
    """One student: its task, its training, whose weights it begins with, and whom it learns from (unless it says
    otherwise the same network)."""

    task: Task
    training: TrainConfig
    parent: str
    teacher: str = ""

    @property
    def steps(self) -> int:
        return self.training.steps


@dataclass(frozen=True)
class Family:
    """The students of one network: the suite's name, the network's folder, the class and the settings of its scheduler,
    and the stages by name."""

    suite: str
    original: str
    scheduler: type
    config: Mapping[str, Any]
    parts: Mapping[str, Stage]


def distil(family: Family, part: str, work: Path, assets: Path, device: str, on_step: OnStep) -> nn.Module:
    """Train one student of a family; its fp16 weights and contract go beside the folder `assets` of its teacher.
    ConfigError without the students that it needs, or where a checkpoint in `work` is of other settings."""
    stage, folder = family.parts[part], folder_of(assets)
    original = load_pipeline(PixelPipeline, assets / family.original).unet

    def network(name: str) -> nn.Module:
        if name == family.original:
            return original
        if not (folder / name).is_dir():
            raise ConfigError(f"{part} is distilled from {name}, which is not in {folder}; train that first.")
        return load(folder / name, PixelPipeline, family.suite)

    parent = network(stage.parent)
    before, digest = contract_of(parent), weights_hex(original)
    teacher = copy.deepcopy(network(stage.teacher or stage.parent)).eval().requires_grad_(False)
    from_whom = {"teacher": weights_hex(teacher), "parent": weights_hex(parent)}
    spent = Spent(work / f"{part}.seconds", stage.training.checkpoint_every)

    def told(step: int, loss: float) -> None:
        spent(step)
        on_step(step, loss)

    net = parent.float().requires_grad_(True)
    lesson = Lesson(
        net, teacher.to(device), noise_schedule(family.config), _draw(stage.training), stage.training, device
    )
    kept, turn = stage.task.begin(lesson)
    run(kept, turn, stage.training, work / f"{part}.safetensors", told, settings(stage.task) | from_whom)
    net.cpu().eval().load_state_dict((kept.get(STUDENT) or kept[""]).averaged())
    bill = with_parent(_bill(stage, original, spent.total), before.bill if before else None)
    pipe = PixelPipeline(unet=net.half(), scheduler=family.scheduler(**family.config))
    save(pipe, Contract(stage.task.kind, stage.task.times, digest, stage.task.guidance, bill), folder / part)
    return net


def _draw(cfg: TrainConfig) -> Draw:
    images, labels = data.load("train")
    images = data.to_model(images)

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, Condition, Condition]:
        index = torch.randint(0, len(images), (cfg.batch,), generator=generator)
        chosen = labels[index]
        return images[index], {"class_labels": chosen}, {"class_labels": torch.full_like(chosen, NULL_LABEL)}

    return draw


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


def _bill(stage: Stage, net: nn.Module, seconds: float) -> dict[str, Any]:
    """What a stage costs: evaluations are of one image each, `macs` those of all of them."""
    x = torch.zeros(1, 1, data.SIZE, data.SIZE)
    _, one = count_macs(lambda: net.cpu()(x, torch.tensor([0]), class_labels=torch.tensor([0])))
    each = stage.task.spent(stage.training.steps)
    whole = {name: round(count * stage.training.batch) for name, count in each.items()}
    macs = one * sum(count for name, count in whole.items() if name != "samples")
    return {"seconds": round(seconds, 1), "steps": stage.training.steps, **whole, "macs": macs, "data": stage.task.data}


def with_parent(bill: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """A stage's bill and that of the stages before it as one: numbers add, and what any of them saw was seen."""
    if before is None:
        return dict(bill)
    seen = list(dict.fromkeys([*str(before["data"]).split(", "), *str(bill["data"]).split(", ")]))
    names = list(dict.fromkeys([*before, *bill]))
    return {name: before.get(name, 0) + bill.get(name, 0) for name in names if name != "data"} | {
        "data": ", ".join(seen)
    }
