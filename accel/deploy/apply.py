"""`accel.apply`: a recipe, or a saved one on the model that it was measured on, on a pipeline until it is removed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.core import applied
from accel.core.applied import Applied
from accel.core.recipe import Recipe
from accel.core.sharing import vacated
from accel.deploy import further
from accel.deploy.recipe_file import SavedRecipe, load_recipe
from accel.errors import ConfigError


def apply(
    pipe: Any,
    recipe: Recipe | SavedRecipe | Path | str,
    *,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    strict: bool = True,
) -> Applied:
    """Make calls of `pipe` run `recipe` (or that of a file) until `.remove()` of what this returns.

    A call that says nothing of steps, timesteps and guidance scale runs what was measured; one that says something else
    is refused, or with strict=False said in one warning. The same holds for a pipeline of another model than a saved
    recipe was measured on. `models`: the networks that stitch and guidance name; a pipeline folder (`accel export --to
    folder`) has its own, which go where the pipeline is now. `artefacts`: see `accelerate`; a saved recipe has its own.
    Several threads may call the pipeline: calls take turns. Raises ConfigError or IncompatibleError with the reason,
    and then the pipeline is what it was.
    """
    saved = load_recipe(recipe) if isinstance(recipe, (str, Path)) else recipe
    if isinstance(saved, Recipe):
        return applied.apply(pipe, saved, models=models, artefacts=artefacts, strict=strict)
    if not isinstance(saved, SavedRecipe):
        raise ConfigError(f"recipe is {saved!r}; allowed: a Recipe, what accel.load_recipe() returns, or a folder.")
    if artefacts is not None:
        raise ConfigError("artefacts are given with a saved recipe, which has its own; leave them out.")
    models = further.beside(saved, pipe, models)
    with vacated(saved.recipe.held(pipe, models)):
        try:
            saved.check(pipe, models)
        except ConfigError as error:
            if strict:
                raise
            warnings.warn(str(error), stacklevel=2)
    scale = saved.guidance_scale
    return applied.apply(
        pipe, saved.recipe, models=models, artefacts=saved.artefacts, strict=strict, guidance_scale=scale
    )
