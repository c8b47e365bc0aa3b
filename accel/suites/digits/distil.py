"""Students of any digits network: the train split, and a pipeline of pixels around what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.suites.base import load_pipeline
from accel.suites.digits import data
from accel.suites.digits.models import NULL_LABEL
from accel.suites.distil import Family, Stage
from accel.suites.pipeline import PixelPipeline
from accel.suites.training.task import Condition, Draw


def family(suite: str, original: str, scheduler: type, config: Mapping[str, Any], parts: Mapping[str, Stage]) -> Family:
    """The students of a network of pixels: the suite's name, the network's folder, the class and the settings of its
    scheduler, and the stages by name."""
    return Family(
        suite, original, PixelPipeline,
        packed=lambda net: PixelPipeline(unet=net, scheduler=scheduler(**config)),
        network=partial(_network, original), config=config, batches=_batches, once=_once, parts=parts,
    )  # fmt: skip


def _network(original: str, assets: Path) -> nn.Module:
    return load_pipeline(PixelPipeline, assets / original).unet


def _batches(stage: Stage, assets: Path, work: Path, device: str) -> Draw:
    images, labels = data.load("train")
    images, batch = data.to_model(images), stage.training.batch

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, Condition, Condition]:
        index = torch.randint(0, len(images), (batch,), generator=generator)
        chosen = labels[index]
        return images[index], {"class_labels": chosen}, {"class_labels": torch.full_like(chosen, NULL_LABEL)}

    return draw


def _once(net: nn.Module) -> Any:
    x = torch.zeros(1, 1, data.SIZE, data.SIZE)
    return net(x, torch.tensor([0]), class_labels=torch.tensor([0]))
