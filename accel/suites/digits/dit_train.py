"""`make train SUITE=digits_dit`: the transformers of suite `digits_dit`, with progress, checkpoints and resume."""

from __future__ import annotations

from pathlib import Path

from diffusers import DDPMScheduler
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits.fit import OnStep, conditional, fit, quiet
from accel.suites.digits.models import SCHEDULER, build_dit
from accel.suites.pipeline import PixelTransformerPipeline
from accel.suites.training.loop import TrainConfig, lowered, velocity_loss

PARTS = {
    "large": TrainConfig(steps=5000, batch=64, lr=1e-3, muon_lr=0.01, seed=6),
    "small": TrainConfig(steps=5000, batch=64, lr=1e-3, muon_lr=0.01, seed=7),
}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits_dit", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train one transformer on the train split and write its fp16 weights (with its scheduler) under `assets`."""
    scheduler = DDPMScheduler(**SCHEDULER)
    plain = conditional(velocity_loss, scheduler, PARTS[part])

    def loss(net, x0, labels, generator):
        with lowered(device, transformer=True):
            return plain(net, x0, labels, generator)

    checkpoint = work / f"{part}.safetensors"
    net = fit(lambda: _undropped(build_dit(part)), loss, PARTS[part], checkpoint, device, on_step, strict=False)
    PixelTransformerPipeline(transformer=net.half(), scheduler=scheduler).save_pretrained(assets / part)
    write_manifest(assets)
    return net


def _undropped(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0  # every block would drop labels of its own; `velocity_loss` drops them for all
    return net
