"""What a caller passes to a pipeline that the recipe decides, too: the pipeline is told, or the call is refused.

A pipeline computes with its own `num_inference_steps` before and after it asks the scheduler: where image-to-image
begins (strength), the exponent of dynamic shifting, the timesteps that it makes itself. So it must be the recipe's
number. Only a subclass can see a call of an object, and that is what the pipeline is of for as long.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accel.core.guidance import Guidance, Scaled
from accel.errors import AccelError, ConfigError, IncompatibleError

RESCALE = "guidance_rescale"


@contextmanager
def told(pipe: Any, scheduler: Any, steps: int | None, guidance: Guidance | None) -> Iterator[None]:
    """Until the context ends calls of `pipe`, while it runs `scheduler`, have `steps` steps (None: their own) and are
    checked against `guidance`."""
    cls = type(pipe)
    call = cls.__call__
    accepted = inspect.signature(inspect.unwrap(call)).parameters

    @functools.wraps(call)
    def calling(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.scheduler is not scheduler:  # whatever runs another one asks for what it needs
            return call(self, *args, **kwargs)
        names = list(accepted)[1:]
        given = dict(zip(names, args, strict=False))
        if steps is not None:
            check_steps(given | kwargs)
        if guidance is not None:
            check_call(given | kwargs, accepted, guidance)
        if steps is not None and "num_inference_steps" in accepted:
            if "num_inference_steps" in given:
                at = names.index("num_inference_steps")
                args = (*args[:at], steps, *args[at + 1 :])
            else:
                kwargs["num_inference_steps"] = steps
        try:
            return call(self, *args, **kwargs)
        except (AssertionError, TypeError, ValueError) as error:
            if isinstance(error, AccelError) or not _asked_for_timesteps(error):
                raise
            raise IncompatibleError(
                f"{cls.__name__} cannot drive {type(scheduler).__name__}: {' '.join(str(error).split())[:300]}. Use "
                "the pipeline's own kind of scheduler (sampler=flow_euler for flows), or one of accel's own samplers."
            ) from error

    pipe.__class__ = type(cls.__name__, (cls,), {"__call__": calling, "__module__": cls.__module__})
    try:
        yield
    finally:
        pipe.__class__ = cls


def _asked_for_timesteps(error: BaseException) -> bool:
    # Whether it was raised where a pipeline gets its timesteps: what it asks of a scheduler is told by no signature.
    at, names = error.__traceback__, []
    while at is not None:
        names.append(at.tb_frame.f_code.co_name)
        at = at.tb_next
    return "set_timesteps" in str(error) or any(
        name.endswith(("set_timesteps", "retrieve_timesteps")) for name in names
    )


def check_steps(given: Mapping[str, Any]) -> None:
    """ConfigError for timesteps of the caller's own, which the recipe's sampler and grid decide."""
    if found := [name for name in ("timesteps", "sigmas") if given.get(name) is not None]:
        raise ConfigError(
            f"the pipeline is called with {found[0]}, which the recipe's sampler and grid decide; leave them out, or "
            "give the recipe grid=ExplicitGrid(timesteps=...)."
        )


def check_call(given: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter], guidance: Guidance) -> None:
    """ConfigError or IncompatibleError for arguments `given` to a pipeline that `guidance` cannot go with."""
    scale, wanted = given.get("guidance_scale"), guidance.pipeline_scale
    told_both = isinstance(guidance, Scaled) and isinstance(scale, (int, float)) and min(scale, wanted) > 1
    if told_both and scale != wanted:
        raise ConfigError(
            f"the pipeline is called with guidance_scale={scale:g}, and the recipe's guidance {guidance.label} is made "
            f"for {wanted:g}; call the pipeline with guidance_scale={wanted:g}."
        )
    default = accepted[RESCALE].default if RESCALE in accepted else 0.0
    rescale = given.get(RESCALE, default)
    if isinstance(rescale, (int, float)) and rescale and not guidance.keeps_conditional:
        raise IncompatibleError(
            f"{RESCALE}={rescale:g} measures the network's conditional prediction, and guidance {guidance.label} gives "
            f"the pipeline a changed one; call the pipeline with {RESCALE}=0, or use guidance=cfg."
        )
