"""`make train SUITE=digits_flow`: the rectified-flow denoiser of suite `digits_flow` and its students, with progress
and resume.

`reflow` is the flow with straighter trajectories, `reflow1` one step of that (InstaFlow). Neither sees a picture.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from accel.suites.base import ASSETS, write_manifest
from accel.suites.digits.distil import family
from accel.suites.digits.fit import OnStep, conditional, fit, quiet
from accel.suites.digits.models import FLOW_SCHEDULER, build_unet
from accel.suites.digits.students import TRAINING
from accel.suites.distil import Stage, distil
from accel.suites.pipeline import PixelPipeline
from accel.suites.training.loop import TrainConfig, flow_loss
from accel.suites.training.reflow import Reflow
from accel.suites.training.segments import Segments

ORIGINAL = "flow"
_FOUR = (1000, 750, 500, 250)
STUDENTS = {
    "reflow": Stage(Reflow(calls=10), replace(TRAINING, steps=1500, seed=21), ORIGINAL),
    "reflow1": Stage(Segments((1000,), through=_FOUR), replace(TRAINING, steps=1000, seed=22), "reflow"),
}
PARTS = {"flow": TrainConfig(steps=10000, batch=64, lr=8e-4, seed=4), **STUDENTS}
FAMILY = family("digits_flow", ORIGINAL, FlowMatchEulerDiscreteScheduler, FLOW_SCHEDULER, STUDENTS)


def train_part(
    part: str, work: Path, assets: Path = ASSETS / "digits_flow", device: str = "cpu", on_step: OnStep = quiet
) -> nn.Module:
    """Train the flow UNet on the train split and write its fp16 weights (with its scheduler) under `assets`, or one of
    its students, which goes beside that folder."""
    if part in STUDENTS:
        return distil(FAMILY, part, work, assets, device, on_step)
    scheduler = FlowMatchEulerDiscreteScheduler(**FLOW_SCHEDULER)
    loss = conditional(flow_loss, scheduler, PARTS[part])
    net = fit(lambda: build_unet(part), loss, PARTS[part], work / f"{part}.safetensors", device, on_step)
    PixelPipeline(unet=net.half(), scheduler=scheduler).save_pretrained(assets / part)
    write_manifest(assets)
    return net
