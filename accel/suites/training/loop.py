"""Training of the embedded suites' denoisers: velocity or flow prediction, EMA, checkpoints, exact resume.

Losses: || v - v_theta(alpha x_0 + sigma eps, t, c) ||^2 with v = alpha eps - sigma x_0 (Salimans & Ho 2022, app. D), or
v = eps - x_0 on the straight path alpha = 1 - sigma (rectified flow, Liu et al. 2022, arXiv:2209.03003), and label
dropout for classifier-free guidance (Ho & Salimans 2022). Every random draw of step s comes from a generator
seeded by (seed, s), so a resumed run repeats an uninterrupted one without stored RNG states. Checkpoints are
safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.errors import DivergedError
from accel.suites.training.learner import Kept, Learner, TrainConfig, identity, learning_rate, resume, save

__all__ = ["TrainConfig", "flow_loss", "learning_rate", "lowered", "run", "train", "velocity_error", "velocity_loss"]

OnStep = Callable[[int, float], None]


def quiet(step: int, loss: float) -> None:
    """The default listener: nothing."""


def lowered(device: torch.device | str, transformer: bool = False) -> Any:
    """bfloat16 matrix products on a GPU. On a processor the casts around small convolutions cost more than they save:
    there only transformers have them, if it has such instructions."""
    kind = torch.device(device).type
    able = transformer and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" or able)


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
    on_step: OnStep = quiet,
) -> dict[str, torch.Tensor]:
    """Train `net` and return its EMA weights (float32, CPU); resumes from `checkpoint` when that file exists.

    images (N, C, H, W) in model range, labels (N,). `on_step(step, loss)` is called after every step.
    """
    learner = Learner(net, cfg, device)

    def turn(step: int, generator: torch.Generator) -> float:
        index = torch.randint(0, len(images), (cfg.batch,), generator=generator)
        return learner.descend(loss_fn(net, images[index], labels[index], generator), step)

    run({"": learner}, turn, cfg, checkpoint, on_step)
    return learner.averaged()


def run(
    kept: Mapping[str, Kept],
    turn: Callable[[int, torch.Generator], float],
    cfg: TrainConfig,
    checkpoint: Path,
    on_step: OnStep = quiet,
    task: Mapping[str, str] | None = None,
) -> None:
    """Take `turn(step, generator)`, which trains the networks of `kept` and gives the loss to show, `cfg.steps` times,
    from the step of `checkpoint` where that file exists. `task`: further settings that must be the same to resume.

    DivergedError where a turn raises it, or weights are no numbers any more: the last good checkpoint is kept.
    """
    told = identity(cfg, task)
    good = start = resume(checkpoint, kept, told) if checkpoint.exists() else 0
    for step in range(start, cfg.steps):
        generator = torch.Generator().manual_seed(cfg.seed * 1_000_003 + step)
        torch.manual_seed(cfg.seed * 1_000_003 + step)  # dropout layers draw from the global generator
        due = (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps
        try:
            loss = turn(step, generator)
            if due and (lost := [name or "network" for name, own in kept.items() if not own.finite()]):
                raise DivergedError(f"weights of the {lost[0]} are no numbers any more")
        except DivergedError as error:
            rest = f"the last good checkpoint, of step {good}, is kept in {checkpoint}" if good else "none is kept yet"
            raise DivergedError(
                f"training stopped at step {step + 1}: {error}; {rest}. Train anew with a lower learning rate, or with "
                "more updates of the critic a step; a checkpoint of other settings is to be deleted first."
            ) from error
        on_step(step + 1, loss)
        if due:
            save(checkpoint, kept, step + 1, told)
            good = step + 1
