"""What the trainings of all digits networks share: the train split, the loop, and how weights are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from accel.suites.digits import data
from accel.suites.digits.models import NULL_LABEL
from accel.suites.training.loop import OnStep, TrainConfig, quiet, train

__all__ = ["OnStep", "conditional", "fit", "quiet", "save_half"]

Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


def fit(
    make: Callable[[], nn.Module],
    loss: Loss,
    cfg: TrainConfig,
    checkpoint: Path,
    device: str,
    on_step: OnStep,
    prepare: Callable[[torch.Tensor], torch.Tensor] = data.to_model,
    strict: bool = True,
) -> nn.Module:
    """The network that `make` builds, trained on the train split and ready for inference on the CPU; resumes from
    `checkpoint`. `prepare`: images (N, 1, 16, 16) as the network takes them. `strict`: it has no weights but trained
    ones."""
    images, labels = data.load("train")
    torch.manual_seed(cfg.seed)
    net = make()
    weights = train(net, loss, prepare(images), labels, cfg, checkpoint, device, on_step)
    net.cpu().eval().load_state_dict(weights, strict=strict)
    return net


def conditional(error: Callable[..., torch.Tensor], scheduler: Any, cfg: TrainConfig) -> Loss:
    """`error` (velocity_loss, flow_loss) of a conditional denoiser as a loss; `cfg`: the share of labels to drop."""

    def loss(net: nn.Module, x0: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return error(net, scheduler, x0, labels, generator, NULL_LABEL, cfg.label_dropout)

    return loss


def save_half(net: nn.Module, path: Path) -> None:
    """Write the network's weights as fp16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}, path)
