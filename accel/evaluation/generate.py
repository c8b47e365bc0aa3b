"""Images of a run: sample i always starts from noise of its own CPU generator, whatever batch, rank or order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from accel.core.environment import out_of_memory
from accel.core.recipe import Recipe, run_pipeline
from accel.core.seeds import generators
from accel.errors import AccelError, ConfigError, DivergedError
from accel.suites.base import Suite


def batches(start: int, stop: int, batch: int) -> Iterator[tuple[int, int]]:
    for a in range(start, stop, batch):
        yield a, min(a + batch, stop)


def generate(pipe: Any, suite: Suite, recipe: Recipe, seed: int, start: int, stop: int, batch: int) -> torch.Tensor:
    """Final images (stop - start, C, H, W), unclipped, on the CPU; `pipe` must be accelerated with `recipe` already."""
    group = recipe.sampler.group(suite.period) if recipe.sampler else 1
    if start % group or (batch % group and batch < stop - start):
        raise ConfigError(
            f"{recipe.label} makes samples in groups of {group}; allowed: evaluation.batch, evaluation.shard and "
            f"evaluation.timing_batch that are multiples of {group}."
        )
    images = []
    for a, b in batches(start, stop, batch):
        call = suite.conditions(a, b) | {
            "generator": generators(seed, a, b),
            "output_type": "pt",
        }
        call |= suite.guidance_arguments(recipe)
        try:
            result = run_pipeline(pipe, recipe, call)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            remedy = f"try evaluation.batch={batch // 2}" if batch > 1 else "use a device with more memory"
            raise AccelError(
                f"out of memory with evaluation.batch={batch}; {remedy}. "
                "Batch and device do not change a run's id, so finished shards are kept."
            ) from error
        images.append(result.images.cpu())
    stacked = torch.cat(images)
    if not torch.isfinite(stacked).all():
        bad = int((~torch.isfinite(stacked)).flatten(1).any(1).sum())
        raise DivergedError(f"{recipe.label}: {bad} of {len(stacked)} images are not finite; the recipe diverges.")
    return stacked
