"""`make train SUITE=digits_dit`: the transformers of suite `digits_dit`, with progress, checkpoints and resume."""

from __future__ import annotations

from pathlib import Path

import torch

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits import data
from accel.suites.digits.models import NULL_LABEL, SCHEDULER, build_dit
from accel.suites.training.loop import TrainConfig, lowered, train, velocity_loss

PARTS = {
    "large": TrainConfig(steps=5000, batch=64, lr=1e-3, muon_lr=0.01, seed=6),
    "small": TrainConfig(steps=5000, batch=64, lr=1e-3, muon_lr=0.01, seed=7),
}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits_dit", device: str = "cpu", on_step=lambda step, loss: None
):
    """Train one transformer on the train split and write its fp16 weights (with its scheduler) under `assets`."""
    from diffusers import DDPMScheduler
    from diffusers.models.embeddings import LabelEmbedding

    from accel.suites.pipeline import PixelTransformerPipeline

    images, labels = data.load("train")
    torch.manual_seed(PARTS[part].seed)
    net, scheduler = build_dit(part), DDPMScheduler(**SCHEDULER)
    for module in net.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0  # every block would drop labels of its own; `velocity_loss` drops them for all

    def loss(net, x0, labels, generator):
        with lowered(device, transformer=True):
            return velocity_loss(net, scheduler, x0, labels, generator, NULL_LABEL, PARTS[part].label_dropout)

    weights = train(
        net, loss, data.to_model(images), labels, PARTS[part], work / f"{part}.safetensors", device, on_step
    )
    net.cpu().eval().load_state_dict(weights, strict=False)
    PixelTransformerPipeline(transformer=net.half(), scheduler=scheduler).save_pretrained(assets / part)
    write_manifest(assets)
    return net
