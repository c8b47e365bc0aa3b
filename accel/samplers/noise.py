"""Which schedulers draw new noise while they sample."""

from __future__ import annotations

from typing import Any

# diffusers' own; accel's and anybody's say it themselves, by a class attribute `stochastic`.
STOCHASTIC = {
    "CMStochasticIterativeScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DDPMWuerstchenScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
}


def draws_noise(cls: type) -> bool:
    """Whether schedulers of this class, or of one that it is derived from, always add noise."""
    return bool(getattr(cls, "stochastic", False)) or any(base.__name__ in STOCHASTIC for base in cls.__mro__)


def adds_noise(scheduler: Any) -> bool:
    """Whether `scheduler` adds noise, by its class, its config and what a recipe tells its steps (eta); what a pipeline
    passes to `step` is not known."""
    config = scheduler.config
    if getattr(scheduler.step, "fixed", {}).get("eta"):
        return True
    sde = str(config.get("algorithm_type") or "").startswith("sde")
    return draws_noise(type(scheduler)) or sde or bool(config.get("stochastic_sampling"))
