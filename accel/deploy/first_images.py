"""The first images of a recipe: made, and held against those that its file keeps.

Their bytes are the same wherever device, threads and versions are. Elsewhere kernels sum in another order, and a
trajectory carries that on: then the root mean square difference of each image, on the scale -1..1, must be within
TOLERANCE, a fortieth of that scale. Other weights, or another recipe, are many times as far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from accel.core.recipe import Recipe, accelerate
from accel.deploy.samples import Samples, made_in
from accel.evaluation.generate import generate
from accel.evaluation.score import distances
from accel.suites.base import Suite

COUNT = 4  # images, in one call of the pipeline
TOLERANCE = 0.05


def first_samples(
    pipe: Any,
    suite: Suite,
    recipe: Recipe,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Any] | None = None,
    seed: int = 0,
    count: int = COUNT,
) -> Samples:
    """The first images of a recipe: `count` of them, up to whole groups of its sampler. Whatever the recipe cannot run
    on raises ConfigError or IncompatibleError."""
    group = recipe.sampler.group(suite.period) if recipe.sampler else 1
    whole = -(-count // group) * group
    with accelerate(pipe, recipe, models=models, artefacts=artefacts):
        images = generate(pipe, suite, recipe, seed, 0, whole, whole, "--images ")
    return Samples(suite.stored(images), seed, made_in(str(pipe.device)))


def furthest(images: torch.Tensor, kept: torch.Tensor) -> float:
    """The largest root mean square difference of an image to the kept one of its sample, on the scale -1..1; infinite
    where sizes differ, or an image is not finite."""
    if images.shape != kept.shape or images.dtype != kept.dtype:
        return float("inf")
    far = distances(images, kept)
    return float(far.max()) if bool(torch.isfinite(far).all()) else float("inf")
