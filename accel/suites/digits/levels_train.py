"""`make train SUITE=digits_levels`: the noise-level classifier of suite `digits`, with progress and resume."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits import data
from accel.suites.digits.levels import FILE, LEVELS, LevelNet, sigmas
from accel.suites.training.loop import TrainConfig, train

PARTS = {"levels": TrainConfig(steps=4000, batch=128, lr=3e-3, label_dropout=0.0, seed=6)}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits_levels", device: str = "cpu", on_step=lambda step, loss: None
):
    """Train the classifier on the train split with noise and write its fp16 weights under `assets`."""
    images, labels = data.load("train")
    torch.manual_seed(PARTS[part].seed)
    net = LevelNet()
    checkpoint = work / f"{part}.safetensors"
    weights = train(net, level_loss, data.to_model(images), labels, PARTS[part], checkpoint, device, on_step)
    net.cpu().eval().load_state_dict(weights)
    assets.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half() for k, v in net.state_dict().items()}, assets / FILE)
    write_manifest(assets)
    return net


def level_loss(net: nn.Module, x0: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cross-entropy of the level's index at x_0 + sigma_k eps; k uniform, stratified over the batch."""
    offset = torch.rand(1, generator=generator)
    k = ((offset + torch.arange(len(x0)) / len(x0)) % 1 * LEVELS).long().clamp(max=LEVELS - 1)
    noise = torch.randn(x0.shape, generator=generator)
    x = x0 + sigmas().float()[k].reshape(-1, 1, 1, 1) * noise
    device = next(net.parameters()).device
    return nn.functional.cross_entropy(net(x.to(device)), k.to(device))
