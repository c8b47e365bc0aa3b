"""A calibration under way: it tells how far it is and keeps its finished parts, so that an interrupted one goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from accel.files import Tensors, load_tensors, save_tensors

SECONDS = "seconds"


class Job:
    """`folder`: where parts are kept until `finish` (none: nowhere); `on_step(done, total)` is told the progress."""

    def __init__(
        self, folder: Path | None = None, on_step: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.folder, self.on_step = folder, on_step
        self.start = time.perf_counter()
        kept = self.load(SECONDS)
        self.before = float(kept[SECONDS]) if kept else 0.0

    @property
    def seconds(self) -> float:
        """Time spent, that of interrupted attempts until they last saved included."""
        return self.before + time.perf_counter() - self.start

    def load(self, name: str) -> Tensors | None:
        """What was saved under `name`; None if nothing was, or if its file is damaged."""
        path = self._path(name)
        return None if path is None else load_tensors(path)

    def save(self, name: str, tensors: Tensors) -> None:
        """Keep `tensors` under `name` in place of what was there."""
        if self.folder is not None:
            save_tensors(self._path(name), tensors)
            save_tensors(self._path(SECONDS), {SECONDS: torch.tensor(self.seconds)})

    def part(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """`make()`, kept, on the CPU: the second time it is what was kept."""
        kept = self.load(name)
        if kept is None:
            kept = {k: v.detach().cpu() for k, v in make().items()}
            self.save(name, kept)
        return kept

    def state(self, name: str, optimizer: torch.optim.Optimizer, done: int) -> None:
        """Keep an optimiser's parameters and moments after `done` iterations."""
        tensors = {"done": torch.tensor(done)}
        for i, parameter in enumerate(_parameters(optimizer)):
            tensors[f"parameter/{i}"] = parameter
            tensors |= {f"{key}/{i}": value for key, value in optimizer.state.get(parameter, {}).items()}
        self.save(name, tensors)

    def resume(self, name: str, optimizer: torch.optim.Optimizer) -> int:
        """Put an optimiser and its parameters where `state` kept them; returns the iterations done (0: none kept)."""
        kept = self.load(name)
        if kept is None:
            return 0
        done = int(kept.pop("done"))
        parameters = _parameters(optimizer)
        for key, value in kept.items():
            kind, _, i = key.rpartition("/")
            parameter = parameters[int(i)]
            if kind == "parameter":
                parameter.data.copy_(value)
            else:
                optimizer.state[parameter][kind] = value.to(parameter.device) if value.dim() else value
        return done

    def finish(self) -> None:
        """Drop all parts: the calibration's own artefact holds what it made."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name.replace('/', '_')}.safetensors"


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
