"""Guider objects: the parts by which some pipelines (HunyuanImage, HunyuanVideo 1.5, Motif) guide, in place of a scale
that a call is told.

A guider says how often the denoiser is called in a step, conditional first, with what, and how the predictions are
combined. Where a recipe has guidance, a plain one of its scale, u + s (c - u), takes the guider's place for as long, as
a fresh scheduler takes the scheduler's; the recipe's method then works on its two calls (accel/core/branches.py).
Without guidance in the recipe the pipeline's own guider stays, for no argument of a call would say it otherwise.
"""

from __future__ import annotations

import inspect
import logging
import re
from contextlib import ExitStack
from typing import Any

from accel.errors import IncompatibleError

PART = re.compile(r"(\w+_)?guider")


def guider_parts(cls: type) -> tuple[str, ...]:
    """The parts of pipelines of class `cls` that are guiders."""
    return tuple(name for name in inspect.signature(cls.__init__).parameters if PART.fullmatch(name))


def guiders(pipe: Any) -> dict[str, Any]:
    """The guiders that a pipeline has, by the name of the part; None: a part that it could have."""
    return {name: getattr(pipe, name, None) for name in guider_parts(type(pipe))}


def check_guiders(pipe: Any, recipe: Any) -> None:
    """IncompatibleError if the pipeline guides by an object that the recipe's methods would not go with."""
    inside = [axis for axis in ("cache", "stitch", "precision", "skip", "student") if getattr(recipe, axis)]
    for name, guider in guiders(pipe).items() if recipe.guidance is None and inside else ():
        if guider is not None and getattr(guider, "_enabled", True) and not _calls_alike(guider):
            raise IncompatibleError(
                f"{type(pipe).__name__} guides by the {type(guider).__name__} of its part {name}, which changes layers "
                f"of the denoiser for some of its calls, and {inside[0]} {getattr(recipe, inside[0]).label} would take "
                "one call for another. Use guidance=cfg, which puts plain guidance in its place, or give the pipeline "
                "another guider, such as ClassifierFreeGuidance."
            )


def put_plain(pipe: Any, scale: float, undo: ExitStack) -> None:
    """Have the pipeline step with u + `scale` (c - u), where it guides by objects; the way back goes on `undo`."""
    for name, own in guiders(pipe).items():
        undo.callback(setattr, pipe, name, own)
        setattr(pipe, name, _plain(scale))


def _plain(scale: float) -> Any:
    from diffusers.guiders import ClassifierFreeGuidance

    log = logging.getLogger("diffusers.guiders.guider_utils")
    before = log.level
    log.setLevel(logging.ERROR)  # that guiders are experimental is said for each that is made
    try:
        return ClassifierFreeGuidance(guidance_scale=scale)
    finally:
        log.setLevel(before)


def _calls_alike(guider: Any) -> bool:
    # Whether its n-th call in a step is always for the same prediction, of the network as it is.
    from diffusers.guiders import BaseGuidance

    plain = getattr(type(guider), "prepare_models", None) is BaseGuidance.prepare_models
    return plain and len(getattr(guider, "_input_predictions", None) or ()) <= 2
