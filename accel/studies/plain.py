"""The best plain samplers of a suite: what an accelerated recipe must beat, at equal MACs and at equal measured time.

A cache that beats a poor sampler has shown nothing. The front holds, for each number of steps, the sampler and grid
that lose least (`accel.results.comparison.Comparison.loss`) among all that `conf/experiment/plain_<suite>.yaml` tries,
chosen on a seed of its own, so that no seed that recipes are compared on has chosen their controls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from accel.core.recipe import Recipe
from accel.errors import ConfigError


@dataclass(frozen=True)
class PlainFront:
    """`recipes`: a sampler and grid each, one for each number of steps; `best`: the fewest steps that are non-inferior
    to the suite's conventional baseline in every value (None: none is)."""

    recipes: tuple[Recipe, ...]
    best: int | None = None

    def __post_init__(self) -> None:
        steps = [recipe.sampler.steps if recipe.sampler else 0 for recipe in self.recipes]
        if not steps or 0 in steps or len(set(steps)) < len(steps):
            raise ConfigError(
                f"a front of plain samplers has steps {steps}; needed: a sampler each, of different steps."
            )
        if self.best is not None and self.best not in steps:
            raise ConfigError(f"plain.best is {self.best}; allowed: steps of the front, {steps}, or null.")

    def at(self, recipe: Recipe, steps: int) -> Recipe:
        """The plain sampler of `steps` steps under the guidance of `recipe`: sampler and grid of the nearest of the
        front, by ratio; of two as near the one of fewer steps."""

        def far(one: Recipe) -> tuple[float, int]:
            return abs(math.log(one.sampler.steps / steps)), one.sampler.steps

        near = min(self.recipes, key=far)
        return replace(recipe.unaccelerated, sampler=replace(near.sampler, steps=steps), grid=near.grid)

    def best_for(self, recipe: Recipe) -> Recipe | None:
        """The best plain sampler under the guidance of `recipe`."""
        return None if self.best is None else self.at(recipe, self.best)


def own_front(recipe: Recipe) -> PlainFront:
    """The front of a suite that has none: the recipe's own sampler and grid."""
    return PlainFront((Recipe(sampler=recipe.sampler, grid=recipe.grid),))


def plain_steps(macs: float, per_step: float) -> int:
    """Steps of a plain sampler that cost `macs` an image, `per_step` each: the nearest whole number, at least 1."""
    return max(1, round(macs / per_step))


def controls(
    front: PlainFront, recipe: Recipe, budgets: Mapping[str, float], per_step: float
) -> list[tuple[Recipe, tuple[str, ...]]]:
    """The plain samplers of equal cost, each with what is equal. `budgets`: by what is equal, the MACs an image that
    plain steps of `per_step` MACs may take. Where two agree they are one control."""
    found: dict[int, tuple[str, ...]] = {}
    for what, macs in budgets.items():
        steps = plain_steps(macs, per_step)
        found[steps] = (*found.get(steps, ()), what)
    return [(front.at(recipe, steps), what) for steps, what in found.items()]
