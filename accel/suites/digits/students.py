"""The students of the digits, few-step networks distilled from `large`: `make train SUITE=digits PART=pd4`.

`pd4` learns four segments from four evaluations of DPM-Solver++(2M) each; `pd2` and `pd1` are halved from it and from
each other (progressive distillation). Times are 999, 550, 350 and 170 (sigma / alpha = 157, 4.6, 1.6 and 0.6), nested.
`dmd1` begins as `pd1` and learns the distribution of its images from `large` (DMD2, without its discriminator). `ect2`
begins as `large` and becomes a consistency function on training images alone (ECT), sampled in two steps. `guided2`
predicts in one evaluation what two of `large` do under guidance of scale 2 (Meng et al., stage 1).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from accel.suites.digits.fit import OnStep, quiet
from accel.suites.digits.models import NULL_LABEL, SCHEDULER
from accel.suites.pipeline import PixelPipeline
from accel.suites.students import folder_of, load, save
from accel.suites.training.consistency import Consistency
from accel.suites.training.distribution import Distribution
from accel.suites.training.guided import Guided
from accel.suites.training.loop import TrainConfig, run
from accel.suites.training.segments import Segments
from accel.suites.training.task import STUDENT, Condition, Lesson, Task, settings

ORIGINAL = "large"


@dataclass(frozen=True)
class Stage:
    """One student: its task, its training, whose weights it begins with, and whom it learns from (unless it says
    otherwise the same network)."""

    task: Task
    training: TrainConfig
    parent: str = ORIGINAL
    teacher: str = ""

    @property
    def steps(self) -> int:
        return self.training.steps


_TRAINING = TrainConfig(
    batch=32, lr=3e-4, warmup=20, weight_decay=0.0, ema_decay=0.99, label_dropout=0.0, checkpoint_every=50,
    decay="linear", dropout=False, beta2=0.99,
)  # fmt: skip
_MATCHING = replace(_TRAINING, lr=1e-4, ema_decay=0.98, checkpoint_every=20, beta1=0.0)
PARTS = {
    "pd4": Stage(Segments((999, 550, 350, 170)), replace(_TRAINING, steps=600, seed=11)),
    "pd2": Stage(
        Segments((999, 350), order=1, through=(999, 550, 350, 170)), replace(_TRAINING, steps=300, seed=12), "pd4"
    ),
    "pd1": Stage(Segments((999,), order=1, through=(999, 350)), replace(_TRAINING, steps=400, seed=13), "pd2"),
    "dmd1": Stage(Distribution((999,), ratio=2, warm=40), replace(_MATCHING, steps=400, seed=14), "pd1", ORIGINAL),
    # Pixels from -1 to 1 spread about twice as wide as EDM's data, and noise is measured against them.
    "ect2": Stage(Consistency((999, 350), mean=-0.4), replace(_TRAINING, steps=900, seed=15)),
    "guided2": Stage(Guided(2.0), replace(_TRAINING, steps=600, seed=16)),
}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train one student (see PARTS); its fp16 weights and contract go beside the folder `assets` of its teacher."""
    stage, folder = PARTS[part], folder_of(assets)
    original = load_pipeline(PixelPipeline, assets / ORIGINAL).unet

    def network(name: str) -> nn.Module:
        if name == ORIGINAL:
            return original
        if not (folder / name).is_dir():
            raise ConfigError(f"{part} is distilled from {name}, which is not in {folder}; train that first.")
        return load(folder / name, PixelPipeline, "digits")

    parent = network(stage.parent)
    before, digest = contract_of(parent), weights_hex(original)
    teacher = copy.deepcopy(network(stage.teacher or stage.parent)).eval().requires_grad_(False)
    from_whom = {"teacher": weights_hex(teacher), "parent": weights_hex(parent)}
    spent = Spent(work / f"{part}.seconds", stage.training.checkpoint_every)

    def told(step: int, loss: float) -> None:
        spent(step)
        on_step(step, loss)

    net = parent.float().requires_grad_(True)
    lesson = Lesson(net, teacher.to(device), noise_schedule(SCHEDULER), _draw(stage.training), stage.training, device)
    kept, turn = stage.task.begin(lesson)
    run(kept, turn, stage.training, work / f"{part}.safetensors", told, settings(stage.task) | from_whom)
    learner = kept.get(STUDENT) or kept[""]
    net.cpu().eval().load_state_dict(learner.averaged())
    bill = with_parent(_bill(stage, original, spent.total), before.bill if before else None)
    pipe = PixelPipeline(unet=net.half(), scheduler=DDPMScheduler(**SCHEDULER))
    save(pipe, Contract(stage.task.kind, stage.task.times, digest, stage.task.guidance, bill), folder / part)
    return net


def _draw(cfg: TrainConfig):
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
