"""What a cache that learns from trajectories learns on: those of its sampler and its guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from accel.core.denoiser import Sample
from accel.core.recipe import Recipe, accelerate


def record(
    pipe: Any, recipe: Recipe, artefacts: Mapping[str, Any] | None, recorder: Any, sample: Sample, count: int
) -> None:
    """Let `recorder` stand in the cache's place while `count` samples of what it learns on are generated."""
    plain = replace(learned_on(pipe, recipe, artefacts), cache=recorder)
    with accelerate(pipe, plain):
        sample(plain, 0, count)


def learned_on(pipe: Any, recipe: Recipe, artefacts: Mapping[str, Any] | None) -> Recipe:
    """`recipe` with the numbers that its sampler's search found (`artefacts`) and, in the place of a guidance that is a
    shortcut, which leaves rows out or is fitted itself, what it is a shortcut of."""
    sampler, guidance = recipe.sampler, recipe.guidance
    if sampler is not None:
        sampler = sampler.prepared(pipe, recipe, (artefacts or {}).get("sampler"))
    return replace(recipe, sampler=sampler, guidance=guidance.exact if guidance and guidance.shortcut else guidance)
