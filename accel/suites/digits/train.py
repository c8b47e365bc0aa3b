"""`make train SUITE=digits`: every weight that suite `digits` ships, with progress, checkpoints and resume."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import nn

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits import data, students
from accel.suites.digits.fit import OnStep, conditional, fit, quiet, save_half
from accel.suites.digits.models import SCHEDULER, DigitClassifier, build_unet
from accel.suites.digits.suite import data_hash
from accel.suites.pipeline import PixelPipeline
from accel.suites.training.loop import TrainConfig, velocity_loss

PARTS = {
    "classifier": TrainConfig(steps=3000, batch=128, lr=2e-3, weight_decay=0.05, label_dropout=0.0, seed=3),
    "small": TrainConfig(steps=9000, batch=128, lr=1.5e-3, seed=2),
    "large": TrainConfig(steps=8000, batch=64, lr=6e-4, seed=1),
    **students.PARTS,
}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train one part (see PARTS) on the train split and write its fp16 weights under `assets`."""
    if part in students.PARTS:
        return students.train_part(part, work, assets, device, on_step)
    cfg, checkpoint = PARTS[part], work / f"{part}.safetensors"
    if part == "classifier":
        net = fit(DigitClassifier, classifier_loss, cfg, checkpoint, device, on_step, lambda images: images.float())
        save_half(net, assets / "classifier.safetensors")
    else:
        scheduler = DDPMScheduler(**SCHEDULER)
        loss = conditional(velocity_loss, scheduler, cfg)
        net = fit(lambda: build_unet(part), loss, cfg, checkpoint, device, on_step)
        PixelPipeline(unet=net.half(), scheduler=scheduler).save_pretrained(assets / part)
    write_manifest(assets, {"data:train": data_hash("train")})
    return net


def classifier_loss(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator):
    """Cross-entropy under random shifts (<= 1.5 px), rotations (<= 9 degrees), zooms (<= 8 %) and faint noise."""
    b = len(images)
    u = torch.rand(4, b, generator=generator) * 2 - 1
    angle, zoom = u[0] * 0.16, 1 + u[1] * 0.08
    shift = u[2:4] * (1.5 / (data.SIZE / 2))
    row1 = torch.stack([zoom * torch.cos(angle), -torch.sin(angle), shift[0]], 1)
    row2 = torch.stack([torch.sin(angle), zoom * torch.cos(angle), shift[1]], 1)
    grid = nn.functional.affine_grid(torch.stack([row1, row2], 1), list(images.shape), align_corners=False)
    images = nn.functional.grid_sample(images, grid, align_corners=False)
    images = (images + 6 * torch.randn(images.shape, generator=generator)).clamp(0, 255)
    device = next(net.parameters()).device
    return nn.functional.cross_entropy(net(images.to(device)), labels.to(device), label_smoothing=0.05)
