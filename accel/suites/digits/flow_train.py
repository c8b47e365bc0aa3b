"""`make train SUITE=digits_flow`: the rectified-flow denoiser of suite `digits_flow`, with progress and resume."""

from __future__ import annotations

from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits.fit import OnStep, conditional, fit, quiet
from accel.suites.digits.models import FLOW_SCHEDULER, build_unet
from accel.suites.pipeline import PixelPipeline
from accel.suites.training.loop import TrainConfig, flow_loss

PARTS = {"flow": TrainConfig(steps=10000, batch=64, lr=8e-4, seed=4)}


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits_flow", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train the flow UNet on the train split and write its fp16 weights (with its scheduler) under `assets`."""
    scheduler = FlowMatchEulerDiscreteScheduler(**FLOW_SCHEDULER)
    loss = conditional(flow_loss, scheduler, PARTS[part])
    net = fit(lambda: build_unet(part), loss, PARTS[part], work / f"{part}.safetensors", device, on_step)
    PixelPipeline(unet=net.half(), scheduler=scheduler).save_pretrained(assets / part)
    write_manifest(assets)
    return net
