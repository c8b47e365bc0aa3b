"""What accel must know of a diffusers pipeline beyond its two seams: how it guides, and what it asks of a scheduler.

`layout`, the guided batch of one denoiser call: most pipelines stack (null, conditional) and step one of them.
DiTPipeline stacks (conditional, null) and steps both. Pipelines with a `true_cfg_scale` (Flux) call the denoiser twice
a step, conditional first, and their `guidance_scale` is a number that a distilled network is told, not a weight.

`sign`: the networks of some flow pipelines predict x_0 - eps, which the pipelines negate before they step.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from accel.errors import IncompatibleError

NEGATING = ("HiDreamImage", "Lumina", "NucleusMoEImage", "ZImage")


def layout(pipe: Any) -> str:
    """Order of the guided batch: `uncond_first`, `cond_first`, or `separate` for two denoiser calls."""
    if type(pipe).__name__ == "DiTPipeline":
        return "cond_first"
    return "separate" if "true_cfg_scale" in _arguments(pipe) else "uncond_first"


def sign(pipe: Any) -> float:
    """-1 where the pipeline steps with the negative of its network's output, else 1."""
    return -1.0 if type(pipe).__name__.startswith(NEGATING) else 1.0


def distilled(net: Any) -> bool:
    """Whether the network is told the guidance scale (Flux dev, latent consistency models), in place of guidance."""
    return distilled_config(getattr(net, "config", {}))


def distilled_config(config: Mapping[str, Any]) -> bool:
    """`distilled` of a denoiser's config."""
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def further_denoisers(pipe: Any, net: nn.Module) -> list[str]:
    """Names of the networks of a pipeline that predict, too, beside its denoiser `net` (Wan 2.2's transformer_2)."""
    parts = {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module) and part is not net}
    alike = re.compile(r"(unet|transformer)(_\w+)?")
    return [name for name, part in parts.items() if isinstance(part, type(net)) or alike.fullmatch(name)]


def check(pipe: Any, net: Any, guidance_scale: float, scheduler: Any = None, steps: int = 1) -> None:
    """IncompatibleError, with the reason, if `pipe` cannot guide its denoiser `net`, or cannot drive `scheduler`."""
    name = type(pipe).__name__
    if others := further_denoisers(pipe, net):
        raise IncompatibleError(
            f"{name} has a further denoiser, {', '.join(others)}, which would run unaccelerated and uncounted; "
            "allowed: pipelines with one. Load it with None in its place if its part of the trajectory can be left out."
        )
    if guidance_scale > 1 and distilled(net):
        raise IncompatibleError(
            f"the denoiser of this {name} is distilled from guided predictions: it is told the scale and gets no "
            "doubled batch. Use guidance=none; suite hub gives it the number suite.distilled_guidance."
        )
    if guidance_scale > 1 and layout(pipe) == "separate":
        raise IncompatibleError(
            f"{name} evaluates the conditional and the null prediction in two calls of the denoiser, and guidance "
            "methods need both in one doubled batch; use guidance=none."
        )
    if scheduler is not None and layout(pipe) == "separate":
        _check_driven(name, scheduler, steps)


def _check_driven(name: str, scheduler: Any, steps: int) -> None:
    # Flux hands its scheduler `mu`, and sigmas of its own unless the scheduler makes those of a flow itself.
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    needed = ["mu"] if scheduler.config.get("use_flow_sigmas") else ["mu", "sigmas"]
    missing = [argument for argument in needed if argument not in accepted]
    reason = f"its set_timesteps takes no {missing[0]}" if missing else None
    if reason is None:
        try:
            copy.deepcopy(scheduler).set_timesteps(steps, mu=1.0)
        except (AssertionError, TypeError, ValueError) as error:
            reason = str(error) or "it does not take the pipeline's mu"
    if reason:
        raise IncompatibleError(
            f"{name} cannot drive {type(scheduler).__name__}: {reason}. Use flow_euler or one of accel's own samplers "
            "of flows, such as rf_solver."
        )


def _arguments(pipe: Any) -> Any:
    return inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
