"""Images of a run: sample i always starts from noise of its own CPU generator, whatever batch, rank or order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from accel.core.environment import out_of_memory
from accel.core.recipe import Recipe
from accel.core.run import run_pipeline
from accel.core.seeds import generators
from accel.errors import AccelError, ConfigError, DivergedError
from accel.suites.base import Suite

BATCH = "evaluation.batch="


class Shown(Protocol):
    """What is asked of a suite here: which conditions samples have, and after how many they repeat."""

    @property
    def period(self) -> int: ...

    def conditions(self, start: int, stop: int) -> dict[str, Any]: ...

    def guidance_arguments(self, recipe: Recipe) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Asked:
    """A suite's model, asked for `words` (labels or prompts, one or more): sample i shows words[i mod their number].
    ConfigError for words that it cannot show."""

    suite: Suite
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        self.suite.asked(self.words)

    @property
    def period(self) -> int:
        """After so many samples the words repeat."""
        return len(self.words)

    def conditions(self, start: int, stop: int) -> dict[str, Any]:
        """Pipeline arguments for samples start..stop-1."""
        return self.suite.asked([self.words[i % self.period] for i in range(start, stop)])

    def guidance_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Those of the suite."""
        return self.suite.guidance_arguments(recipe)


def batches(start: int, stop: int, batch: int) -> Iterator[tuple[int, int]]:
    for a in range(start, stop, batch):
        yield a, min(a + batch, stop)


def generate(
    pipe: Any, suite: Shown, recipe: Recipe, seed: int, start: int, stop: int, batch: int, setting: str = BATCH
) -> torch.Tensor:
    """Final images (stop - start, C, H, W), or videos (stop - start, F, C, H, W), unclipped, on the CPU; `pipe` must be
    accelerated with `recipe` already.

    `setting`: what a caller is told to lower where memory runs out."""
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
            remedy = f"try {setting}{batch // 2}" if batch > 1 else "use a device with more memory"
            kept = " Batch and device do not change a run's id, so finished shards are kept." * (setting == BATCH)
            raise AccelError(f"out of memory with {setting}{batch}; {remedy}.{kept}") from error
        images.append((result.frames if hasattr(result, "frames") else result.images).cpu())
    stacked = torch.cat(images)
    if not torch.isfinite(stacked).all():
        bad = int((~torch.isfinite(stacked)).flatten(1).any(1).sum())
        raise DivergedError(f"{recipe.label}: {bad} of {len(stacked)} images are not finite; the recipe diverges.")
    return stacked
