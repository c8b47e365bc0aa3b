"""`make train SUITE=digits_levels`: the noise-level classifier of suite `digits`, with progress and resume."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits.fit import OnStep, fit, quiet, save_half
from accel.suites.digits.levels import FILE, LEVELS, LevelNet, sigmas
from accel.suites.training.loop import TrainConfig

PARTS = {"levels": TrainConfig(steps=4000, batch=128, lr=3e-3, label_dropout=0.0, seed=6)}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits_levels", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train the classifier on the train split with noise and write its fp16 weights under `assets`."""
    net = fit(LevelNet, level_loss, PARTS[part], work / f"{part}.safetensors", device, on_step)
    save_half(net, assets / FILE)
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
