"""`make train SUITE=digits`: every weight that suite `digits` ships, with progress, checkpoints and resume."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits import data
from accel.suites.digits.models import NULL_LABEL, SCHEDULER, DigitClassifier, build_unet
from accel.suites.digits.suite import data_hash
from accel.suites.training.loop import TrainConfig, train, velocity_loss

PARTS = {
    "classifier": TrainConfig(steps=3000, batch=128, lr=2e-3, weight_decay=0.05, label_dropout=0.0, seed=3),
    "small": TrainConfig(steps=9000, batch=128, lr=1.5e-3, seed=2),
    "large": TrainConfig(steps=8000, batch=64, lr=6e-4, seed=1),
}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits", device: str = "cpu", on_step=lambda step, loss: None
):
    """Train one part (see PARTS) on the train split and write its fp16 weights under `assets`."""
    images, labels = data.load("train")
    torch.manual_seed(PARTS[part].seed)
    if part == "classifier":
        net, x, loss = DigitClassifier(), images.float(), classifier_loss
    else:
        from diffusers import DDPMScheduler

        net, x, scheduler = build_unet(part), data.to_model(images), DDPMScheduler(**SCHEDULER)

        def loss(net, x0, labels, generator):
            return velocity_loss(net, scheduler, x0, labels, generator, NULL_LABEL, PARTS[part].label_dropout)

    weights = train(net, loss, x, labels, PARTS[part], work / f"{part}.safetensors", device, on_step)
    net.cpu().eval().load_state_dict(weights)
    save_part(part, net, assets)
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


def save_part(part: str, net: nn.Module, assets: Path) -> None:
    """Write fp16 safetensors: the classifier as one file, a denoiser as a diffusers folder (with its scheduler)."""
    assets.mkdir(parents=True, exist_ok=True)
    if part == "classifier":
        save_file({k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()},
                  assets / "classifier.safetensors")  # fmt: skip
        return
    from diffusers import DDPMScheduler

    from accel.suites.pipeline import PixelPipeline

    PixelPipeline(unet=net.half(), scheduler=DDPMScheduler(**SCHEDULER)).save_pretrained(assets / part)
