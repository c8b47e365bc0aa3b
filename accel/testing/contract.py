"""`check_method`: the contract that accel's own methods keep (docs/design.md, section 6), for anybody's method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from accel import registry
from accel.core.decoder import Decoder
from accel.core.guidance import Guidance
from accel.core.precision import Precision
from accel.core.recipe import Recipe
from accel.core.sampler import Sampler
from accel.core.student import Student
from accel.errors import ConfigError
from accel.samplers.grids import Grid
from accel.stitching import TStitch
from accel.suites.base import Suite
from accel.testing.bench import Case
from accel.testing.caches import CACHE
from accel.testing.common import AT_DENOISER, COMMON
from accel.testing.gpu import ON_A_GPU
from accel.testing.guidances import GUIDANCE
from accel.testing.samplers import SAMPLER
from accel.testing.suites import TinySuite

TINY = (TinySuite("unet"), TinySuite("transformer"), TinySuite("flow"))
# Which class of method is on which axis, for those that are not told; a method of no such class is a cache.
CLASSES = {
    "sampler": Sampler,
    "grid": Grid,
    "guidance": Guidance,
    "precision": Precision,
    "stitch": TStitch,
    "student": Student,
    "decoder": Decoder,
}
EVERY = COMMON | ON_A_GPU
CHECKS: dict[str, dict[str, Callable[[Case], None]]] = {
    "sampler": EVERY | SAMPLER,
    "grid": EVERY,
    "guidance": EVERY | AT_DENOISER | GUIDANCE,
    "cache": EVERY | AT_DENOISER | CACHE,
    "stitch": EVERY | AT_DENOISER,
    "precision": EVERY | AT_DENOISER,
    "skip": EVERY | AT_DENOISER,
    "student": EVERY | AT_DENOISER,
    "decoder": EVERY | AT_DENOISER,
}
# Rounded numbers flip single levels where kernels sum in another order.
TOLERANCES = {"precision": 0.35}


def check_method(method: Any, **how: Any) -> None:
    """Raise AssertionError, with a sentence, at the first point of the contract that `method` breaks.

    `how`: see `contract_checks`. IncompatibleError where this machine lacks what the method needs.
    """
    for check in contract_checks(method, **how).values():
        check()


def contract_checks(
    method: Any,
    *,
    axis: str | None = None,
    neutral: Any = None,
    steps: int = 4,
    suite: Suite | None = None,
    recipe: Recipe | None = None,
    changes: bool = True,
    tolerance: float | None = None,
    waits: int = 0,
) -> dict[str, Callable[[], None]]:
    """The points of the contract by name, each a call that raises AssertionError where `method` breaks it.

    For one test each: `@pytest.mark.parametrize("check", contract_checks(m).values(), ids=contract_checks(m))`.

    axis: sampler | grid | guidance | cache | stitch | precision | skip | student | decoder; None: told by the method's
        class, a `Method` of no other kind being a cache.
    neutral: the method at settings that change nothing, or only those settings by name; None: it has none.
    steps: solver steps of the trajectories. Those of ddim, or of the recipe, where the method is not a sampler.
    suite: tried before the tiny ones, for a method that fits none of these.
    recipe: what the method is put into; None: a sampler alone.
    changes: False for a method that never changes a result.
    tolerance: the greatest difference between a sample alone and in a batch; None: 2e-3, for a precision 0.35.
    waits: how often an evaluation may make the host wait for a GPU, beyond what the pipeline does without the method.
    """
    axis = axis or next((name for name, kind in CLASSES.items() if isinstance(method, kind)), "cache")
    if axis not in CHECKS:
        raise ConfigError(f"axis is {axis!r}; allowed: {', '.join(CHECKS)}.")
    if recipe is None:
        recipe = Recipe(registry.method("sampler", "dpmpp_2m" if axis == "grid" else "ddim", steps=steps))
    if isinstance(neutral, Mapping):
        neutral = replace(method, **neutral)
    case = Case(
        axis=axis,
        recipe=replace(recipe, **{axis: method}),
        suites=(*([suite] if suite else ()), *TINY),
        neutral=neutral,
        changes=changes,
        tolerance=TOLERANCES.get(axis, 2e-3) if tolerance is None else tolerance,
        waits=waits,
    )
    return {name: partial(check, case) for name, check in CHECKS[axis].items()}
