"""Which schedulers draw new noise while they sample."""

from __future__ import annotations

from typing import Any

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
    "PredictorCorrectorScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
}


def adds_noise(scheduler: Any) -> bool:
    """Whether `scheduler` adds noise, by its class and config; what a pipeline passes to `step` (eta) is not known."""
    config = scheduler.config
    sde = str(config.get("algorithm_type") or "").startswith("sde")
    return type(scheduler).__name__ in STOCHASTIC or sde or bool(config.get("stochastic_sampling"))
