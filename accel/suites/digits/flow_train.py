"""`make train SUITE=digits_flow`: the rectified-flow denoiser of suite `digits_flow`, with progress and resume."""

from __future__ import annotations

from pathlib import Path

import torch

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits import data
from accel.suites.digits.models import FLOW_SCHEDULER, NULL_LABEL, build_unet
from accel.suites.training.loop import TrainConfig, flow_loss, train

PARTS = {"flow": TrainConfig(steps=10000, batch=64, lr=8e-4, seed=4)}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits_flow", device: str = "cpu", on_step=lambda step, loss: None
):
    """Train the flow UNet on the train split and write its fp16 weights (with its scheduler) under `assets`."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from accel.suites.pipeline import PixelPipeline

    images, labels = data.load("train")
    torch.manual_seed(PARTS[part].seed)
    net, scheduler = build_unet(part), FlowMatchEulerDiscreteScheduler(**FLOW_SCHEDULER)

    def loss(net, x0, labels, generator):
        return flow_loss(net, scheduler, x0, labels, generator, NULL_LABEL, PARTS[part].label_dropout)

    x = data.to_model(images)
    weights = train(net, loss, x, labels, PARTS[part], work / f"{part}.safetensors", device, on_step)
    net.cpu().eval().load_state_dict(weights)
    PixelPipeline(unet=net.half(), scheduler=scheduler).save_pretrained(assets / part)
    write_manifest(assets)
    return net
