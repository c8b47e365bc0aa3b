"""How long a study may take: an upper bound, from two short plain trajectories on this device now."""

from __future__ import annotations

from dataclasses import replace

from accel.core.recipe import Recipe, accelerate
from accel.evaluation.generate import generate
from accel.evaluation.timing import stopwatch
from accel.studies.runner import Runner


def rows_per_image(recipe: Recipe) -> int:
    """Upper bound of denoiser rows for an image: evaluations, twice under guidance."""
    guiding = len(recipe.guidance.models) if recipe.guidance else 0
    return recipe.sampler.evaluations * ((2 if recipe.guidance_scale > 1 else 1) + guiding)


def seconds_per_row(runner: Runner) -> float:
    """Seconds of one denoiser row on this device now, from two short plain trajectories."""
    recipe = runner.suite.converged(None)
    recipe = replace(recipe, sampler=replace(recipe.sampler, steps=2))
    batch = 1 if runner.suite.unscored else min(runner.evaluation.batch, runner.evaluation.n)

    def once() -> None:
        with accelerate(runner.pipe, recipe):
            generate(runner.pipe, runner.suite, recipe, 0, 0, batch, batch)

    once()
    return stopwatch(once, runner.device) / (2 * batch)
