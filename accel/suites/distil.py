"""How a student of any embedded suite is trained and written: from a stage to weights, contract and bill."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from accel.core.macs import count_macs
from accel.core.student import Contract, contract_of
from accel.digests import weights_hex
from accel.errors import ConfigError
from accel.files import write_atomic
from accel.samplers.noise_schedule import noise_schedule
from accel.suites.shipped import save
from accel.suites.students import folder_of, load
from accel.suites.training.loop import OnStep, TrainConfig, run
from accel.suites.training.task import STUDENT, Draw, Lesson, Task, settings


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


class Batches(Protocol):
    """Batches for a stage: of `assets`, the teacher's folder, and `work`, for what is kept between commands."""

    def __call__(self, stage: Stage, assets: Path, work: Path, device: str) -> Draw: ...


@dataclass(frozen=True)
class Family:
    """The students of one network: the suite's name, the class of what is in a student's folder (a pipeline, or a
    network alone) and what makes it of a network; the network itself, by its assets; the settings of its scheduler; the
    batches of a stage; one evaluation of one image, whose MACs are the bill's; the stages by name. `seen`: what the
    suite calls what a task has seen."""

    suite: str
    original: str
    cls: type
    packed: Callable[[nn.Module], Any]
    network: Callable[[Path], nn.Module]
    config: Mapping[str, Any]
    batches: Batches
    once: Callable[[nn.Module], Any]
    parts: Mapping[str, Stage]
    seen: Mapping[str, str] = field(default_factory=dict)


def distil(family: Family, part: str, work: Path, assets: Path, device: str, on_step: OnStep) -> nn.Module:
    """Train one student of a family; its fp16 weights and contract go beside the folder `assets` of its teacher.
    ConfigError without the students that it needs, or where a checkpoint in `work` is of other settings."""
    stage, folder = family.parts[part], folder_of(assets)
    original = family.network(assets)

    def network(name: str) -> nn.Module:
        if name == family.original:
            return original
        if not (folder / name).is_dir():
            raise ConfigError(f"{part} is distilled from {name}, which is not in {folder}; train that first.")
        return load(folder / name, family.cls, family.suite)

    parent = network(stage.parent)
    before, digest = contract_of(parent), weights_hex(original)
    teacher = copy.deepcopy(network(stage.teacher or stage.parent)).eval().requires_grad_(False)
    guidance = _built_in(part, stage.task, contract_of(teacher))
    from_whom = {"teacher": weights_hex(teacher), "parent": weights_hex(parent)}
    spent = Spent(work / f"{part}.seconds", stage.training.checkpoint_every)

    def told(step: int, loss: float) -> None:
        spent(step)
        on_step(step, loss)

    net, draw = parent.float().requires_grad_(True), family.batches(stage, assets, work, device)
    lesson = Lesson(net, teacher.to(device), noise_schedule(family.config), draw, stage.training, device)
    kept, turn = stage.task.begin(lesson)
    run(kept, turn, stage.training, work / f"{part}.safetensors", told, settings(stage.task) | from_whom)
    net.cpu().eval().load_state_dict((kept.get(STUDENT) or kept[""]).averaged())
    bill = with_parent(_bill(family, stage, original, spent.total), before.bill if before else None)
    contract = Contract(stage.task.kind, stage.task.times, digest, guidance, bill)
    save(family.packed(net.half()), contract, folder / part)
    return net


def _built_in(part: str, task: Task, teacher: Contract | None) -> Any:
    """The guidance that a student has in the end: its task's, or that of a teacher which has it built in."""
    if teacher is None or teacher.guidance == 1:
        return task.guidance
    if task.guidance != 1:
        raise ConfigError(
            f"{part} is distilled at guidance {task.guidance} from a student with guidance {teacher.guidance} built "
            "in, which would multiply; use a task of guidance 1."
        )
    return teacher.guidance


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


def _bill(family: Family, stage: Stage, net: nn.Module, seconds: float) -> dict[str, Any]:
    """What a stage costs: evaluations are of one image each, `macs` those of all of them."""
    _, one = count_macs(lambda: family.once(net.cpu()))
    each = stage.task.spent(stage.training.steps)
    whole = {name: round(count * stage.training.batch) for name, count in each.items()}
    macs = one * sum(count for name, count in whole.items() if name != "samples")
    saw = family.seen.get(stage.task.data, stage.task.data)
    return {"seconds": round(seconds, 1), "steps": stage.training.steps, **whole, "macs": macs, "data": saw}


def with_parent(bill: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """A stage's bill and that of the stages before it as one: numbers add, and what any of them saw was seen."""
    if before is None:
        return dict(bill)
    seen = list(dict.fromkeys([*str(before["data"]).split(", "), *str(bill["data"]).split(", ")]))
    names = list(dict.fromkeys([*before, *bill]))
    return {name: before.get(name, 0) + bill.get(name, 0) for name in names if name != "data"} | {
        "data": ", ".join(seen)
    }
