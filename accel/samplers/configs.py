"""Scheduler configs in other words: what accel's schedulers take from those of diffusers, and leave in theirs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import diffusers

from accel.errors import IncompatibleError
from accel.samplers.noise_schedule import noise_schedule, refuse_others


def understood(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that say what `config` says in other words; IncompatibleError for what `given` leaves unsaid."""
    noise_schedule(config)
    if given.get("grid", config.get("grid")) is not None:
        return {}
    other = {k: config.get(k) for k in ("use_beta_sigmas", "shift_terminal", "lambda_min_clipped")}
    if found := [k for k, v in other.items() if v and v != -math.inf]:
        raise IncompatibleError(
            f"the scheduler config has {found[0]}={other[found[0]]}, a grid that accel's schedulers do not have; name "
            "the grid that you want, such as from_config(config, grid='trailing')."
        )
    # Uniform in lambda, that is in log sigma.
    return {"use_exponential_sigmas": True} if config.get("use_lu_lambdas") else {}


def flow_match_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flow's shift under the name that FlowMatch schedulers have for it, so that they can be made from `config`."""
    return {"shift": config["flow_shift"]} if config["use_flow_sigmas"] else {}


def compatible(name: str) -> bool:
    """Whether diffusers' scheduler class `name` has noise levels that accel's schedulers have, by its own config."""
    cls = getattr(diffusers, name)
    options = {} if hasattr(cls, "_backends") else inspect.signature(cls).parameters
    try:
        refuse_others({name: option.default for name, option in options.items()})
    except IncompatibleError:
        return False
    return True
