"""A network in training: its settings, its weights with their moving average and optimizer, and the file they rest in.

Several networks may be trained together (a student, the critic of its samples, the head of a discriminator): one
checkpoint holds all of them, each under its name. Checkpoints are safetensors.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from accel.errors import ConfigError
from accel.suites.training.optimizer import Optimizer


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of one training run; part of the checkpoint, so that a changed one is not silently resumed."""

    steps: int = 6000
    batch: int = 128
    lr: float = 6e-4
    warmup: int = 200
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    label_dropout: float = 0.1
    grad_clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 250
    muon_lr: float = 0.0  # of the hidden layers' matrices (see accel/suites/training/optimizer.py); 0: AdamW for all
    time_power: float = 1.0  # timesteps are T u^time_power, u uniform: below 1, more of them at high noise
    # What is below is part of a checkpoint where it is not what it is here.
    decay: str = "cosine"  # of the learning rate: cosine | linear (to 0) | constant
    dropout: bool = True  # of the network's own layers
    beta2: float = 0.999  # of AdamW
    beta1: float = 0.9


LATER = ("decay", "dropout", "beta2", "beta1")


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to 2 % of the peak, linear decay to 0, or none."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    if cfg.decay == "constant":
        return cfg.lr
    if cfg.decay == "linear":
        return cfg.lr * (1 - progress)
    return cfg.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Kept(Protocol):
    """What a checkpoint holds a part of."""

    def tensors(self) -> dict[str, torch.Tensor]: ...

    def finite(self) -> bool: ...

    def load(self, tensors: Mapping[str, torch.Tensor]) -> str | None:
        """Take back what `tensors` gave; the name of what is missing there, if anything is."""


class Learner:
    """`net` on `device` in training under `cfg`: its parameters, their moving average and its optimizer."""

    def __init__(self, net: nn.Module, cfg: TrainConfig, device: torch.device | str = "cpu") -> None:
        net.to(device).train(cfg.dropout)
        self.net, self.cfg, self.params = net, cfg, dict(net.named_parameters())
        self.optimizer = Optimizer(self.params, cfg.lr, cfg.weight_decay, cfg.muon_lr, cfg.beta2, cfg.beta1)
        self.ema = {k: p.detach().clone() for k, p in self.params.items()}
        # Such as BatchNorm's statistics.
        self.buffers = {k: v for k, v in net.named_buffers() if k in net.state_dict()}

    def descend(self, loss: torch.Tensor, step: int) -> float:
        """One step, number `step` of its own, down the gradient of `loss`, whose value comes back. Other networks that
        the loss goes through must be `still`."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.params.values(), self.cfg.grad_clip)
        self.optimizer.step(learning_rate(self.cfg, step) / self.cfg.lr if self.cfg.lr else 0.0)
        decay = min(self.cfg.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.params.values()], 1 - decay)
        return float(loss.detach())

    def averaged(self) -> dict[str, torch.Tensor]:
        """The moving average of its weights, and its buffers, on the CPU."""
        return {k: v.cpu() for k, v in (self.ema | self.buffers).items()}

    def averaging(self) -> nn.Module:
        """A copy of the network whose weights are the moving average, now and later: in the same memory."""
        other = copy.deepcopy(self.net).requires_grad_(False)
        for name, p in other.named_parameters():
            p.data = self.ema[name]
        return other

    def finite(self) -> bool:
        """Whether all its weights are numbers."""
        return all(bool(p.detach().isfinite().all()) for p in self.params.values())

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"buffer.{name}": b for name, b in self.buffers.items()}
        for name, p in self.params.items():
            found |= {f"net.{name}": p.detach(), f"ema.{name}": self.ema[name]}
            found |= {f"{key}/{name}": v for key, v in self.optimizer.state(name).items()}
        return found

    def load(self, tensors: Mapping[str, torch.Tensor]) -> str | None:
        states: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if "/" in key:
                part, name = key.split("/")
                states.setdefault(name, {})[part] = tensor
        wanted = {f"{kind}.{name}" for kind in ("net", "ema") for name in self.params}
        missing = (wanted | {f"buffer.{name}" for name in self.buffers}) - set(tensors)
        if states:  # none yet of a network whose first step is to come
            missing |= set(self.params) - set(states)
        if missing:
            return min(missing)
        with torch.no_grad():
            for name, b in self.buffers.items():
                b.copy_(tensors[f"buffer.{name}"])
            for name, p in self.params.items():
                p.copy_(tensors[f"net.{name}"])
                self.ema[name].copy_(tensors[f"ema.{name}"])
            for name, state in states.items():
                self.optimizer.load(name, state)
        return None


@contextmanager
def still(net: nn.Module) -> Iterator[nn.Module]:
    """`net`, which gets no gradients from what is computed inside."""
    moving = [p for p in net.parameters() if p.requires_grad]
    for p in moving:
        p.requires_grad_(False)
    try:
        yield net
    finally:
        for p in moving:
            p.requires_grad_(True)


def save(path: Path, kept: Mapping[str, Kept], step: int, identity: Mapping[str, str]) -> None:
    """Write the checkpoint of `step`, whole or not at all. Names are prefixes, `name:`; that of a single network is
    empty."""
    tensors = {_prefix(name) + key: v for name, own in kept.items() for key, v in own.tensors().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"step": str(step), **identity})
    os.replace(temporary, path)


def resume(path: Path, kept: Mapping[str, Kept], identity: Mapping[str, str]) -> int:
    """Take back what `save` wrote, and its step; ConfigError for another `identity`, or where something is missing."""
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    if {k: v for k, v in meta.items() if k != "step"} != identity:
        raise ConfigError(
            f"{path} was made with other training settings: {meta}, now {dict(identity)}. "
            "Delete it to start again, or restore the settings to resume."
        )
    parts: dict[str, dict[str, torch.Tensor]] = {_prefix(name): {} for name in kept}
    for key, tensor in load_file(path).items():
        name, colon, rest = key.rpartition(":")
        parts.get(name + colon, {})[rest] = tensor
    missing = [found for name, own in kept.items() if (found := own.load(parts[_prefix(name)]))]
    if missing:
        raise ConfigError(f"{path} is of an older version: it lacks {missing[0]}. Delete it to start again.")
    return int(meta["step"])


def identity(cfg: TrainConfig, task: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a checkpoint says of the settings that it was made with: those of `cfg` that decide the result, and `task`,
    whatever else does."""
    later = {f.name: f.default for f in fields(cfg) if f.name in LATER}
    told = {k: v for k, v in asdict(cfg).items() if k != "checkpoint_every" and later.get(k, ...) != v}
    return {k: str(v) for k, v in told.items()} | dict(task or {})


def _prefix(name: str) -> str:
    return f"{name}:" if name else ""
