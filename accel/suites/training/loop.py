"""Training of the embedded suites' denoisers: velocity or flow prediction, EMA, checkpoints, exact resume.

Losses: || v - v_theta(alpha x_0 + sigma eps, t, c) ||^2 with v = alpha eps - sigma x_0 (Salimans & Ho 2022, app. D), or
v = eps - x_0 on the straight path alpha = 1 - sigma (rectified flow, Liu et al. 2022, arXiv:2209.03003), and label
dropout for classifier-free guidance (Ho & Salimans 2022). Every random draw of step s comes from a generator
seeded by (seed, s), so a resumed run repeats an uninterrupted one without stored RNG states. Checkpoints are
safetensors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

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
    decay: str = "cosine"  # of the learning rate: cosine | linear (to 0)
    dropout: bool = True  # of the network's own layers
    beta2: float = 0.999  # of AdamW


def lowered(device: torch.device | str, transformer: bool = False) -> Any:
    """bfloat16 matrix products on a GPU. On a processor the casts around small convolutions cost more than they save:
    there only transformers have them, if it has such instructions."""
    kind = torch.device(device).type
    able = transformer and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" or able)


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to 2 % of the peak, or linear decay to 0."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    if cfg.decay == "linear":
        return cfg.lr * (1 - progress)
    return cfg.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def velocity_loss(net: nn.Module, scheduler, x0, labels, generator, null_label: int, dropout: float):
    """Mean squared error of the predicted velocity at uniformly drawn timesteps; x0 (B, C, H, W) in [-1, 1]."""
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x0),), generator=generator)
    labels = _drop(labels, null_label, dropout, generator)
    return velocity_error(net, scheduler, x0, noise, t, class_labels=labels)


def velocity_error(net: nn.Module, scheduler, x0, noise, t, **condition: torch.Tensor):
    """Mean squared error of the velocity that `net` predicts for x_t of x0 and noise (B, C, H, W), at t (B,)."""
    device = next(net.parameters()).device
    x0, noise, t = x0.to(device), noise.to(device), t.to(device)
    condition = {k: v.to(device) for k, v in condition.items()}
    predicted = net(scheduler.add_noise(x0, noise, t), t, **condition, return_dict=False)[0]
    return nn.functional.mse_loss(predicted.float(), scheduler.get_velocity(x0, noise, t))


def flow_loss(net: nn.Module, scheduler, x0, labels, generator, null_label: int, dropout: float):
    """Mean squared error of v = eps - x0 at x = (1 - s) x0 + s eps; s uniform in (0, 1], stratified over the batch.

    The network's timestep is s times `num_train_timesteps`, as `FlowMatchEulerDiscreteScheduler` passes it.
    """
    noise = torch.randn(x0.shape, generator=generator)
    s = 1 - (torch.rand(1, generator=generator) + torch.arange(len(x0)) / len(x0)) % 1
    labels = _drop(labels, null_label, dropout, generator)
    device = next(net.parameters()).device
    x0, noise, s, labels = x0.to(device), noise.to(device), s.to(device), labels.to(device)
    t, s = s * scheduler.config.num_train_timesteps, s.reshape(-1, 1, 1, 1)
    predicted = net((1 - s) * x0 + s * noise, t, class_labels=labels, return_dict=False)[0]
    return nn.functional.mse_loss(predicted.float(), noise - x0)


def _drop(labels: torch.Tensor, null_label: int, dropout: float, generator: torch.Generator) -> torch.Tensor:
    drop = torch.rand(len(labels), generator=generator) < dropout
    return torch.where(drop, torch.full_like(labels, null_label), labels)


def train(
    net: nn.Module,
    loss_fn: Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    cfg: TrainConfig,
    checkpoint: Path,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, torch.Tensor]:
    """Train `net` and return its EMA weights (float32, CPU); resumes from `checkpoint` when that file exists.

    images (N, C, H, W) in model range, labels (N,). `on_step(step, loss)` is called after every step.
    """
    net.to(device).train(cfg.dropout)
    params = dict(net.named_parameters())
    optimizer = Optimizer(params, cfg.lr, cfg.weight_decay, cfg.muon_lr, cfg.beta2)
    ema = {k: p.detach().clone() for k, p in params.items()}
    buffers = {k: v for k, v in net.named_buffers() if k in net.state_dict()}  # such as BatchNorm's statistics
    start = _resume(checkpoint, cfg, params, ema, optimizer, buffers) if checkpoint.exists() else 0
    for step in range(start, cfg.steps):
        generator = torch.Generator().manual_seed(cfg.seed * 1_000_003 + step)
        torch.manual_seed(cfg.seed * 1_000_003 + step)  # dropout layers draw from the global generator
        index = torch.randint(0, len(images), (cfg.batch,), generator=generator)
        loss = loss_fn(net, images[index], labels[index], generator)
        loss.backward()
        nn.utils.clip_grad_norm_(params.values(), cfg.grad_clip)
        optimizer.step(learning_rate(cfg, step) / cfg.lr)
        decay = min(cfg.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in params.values()], 1 - decay)
        on_step(step + 1, float(loss.detach()))
        if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:
            _save(checkpoint, cfg, step + 1, params, ema, optimizer, buffers)
    return {k: v.cpu() for k, v in (ema | buffers).items()}


def _save(path: Path, cfg: TrainConfig, step: int, params, ema, optimizer, buffers) -> None:
    tensors = {f"buffer.{name}": b for name, b in buffers.items()}
    for name, p in params.items():
        tensors |= {f"net.{name}": p.detach(), f"ema.{name}": ema[name]}
        tensors |= {f"{key}/{name}": v for key, v in optimizer.state(name).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"step": str(step), **_identity(cfg)})
    os.replace(temporary, path)


def _resume(path: Path, cfg: TrainConfig, params, ema, optimizer, buffers) -> int:
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    if {k: v for k, v in meta.items() if k != "step"} != _identity(cfg):
        raise ConfigError(
            f"{path} was made with other training settings: {meta}, now {_identity(cfg)}. "
            "Delete it to start again, or restore the settings to resume."
        )
    tensors = load_file(path)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if "/" in key:
            part, name = key.split("/")
            states.setdefault(name, {})[part] = tensor
    if missing := {f"buffer.{name}" for name in buffers} - set(tensors) | set(params) - set(states):
        raise ConfigError(f"{path} is of an older version: it lacks {min(missing)}. Delete it to start again.")
    step = int(meta["step"])
    with torch.no_grad():
        for name, b in buffers.items():
            b.copy_(tensors[f"buffer.{name}"])
        for name, p in params.items():
            p.copy_(tensors[f"net.{name}"])
            ema[name].copy_(tensors[f"ema.{name}"])
            optimizer.load(name, states[name])
    return step


def _identity(cfg: TrainConfig) -> dict[str, str]:
    later = {f.name: f.default for f in fields(cfg) if f.name in ("decay", "dropout", "beta2")}
    told = {k: v for k, v in asdict(cfg).items() if k != "checkpoint_every" and later.get(k, ...) != v}
    return {k: str(v) for k, v in told.items()}
