"""CFG++: guidance inside the data manifold, with a weight of [0, 1] and renoising by the unconditional prediction.

Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", ICLR 2025
(arXiv:2406.08070), alg. 2 (DDIM), with primes for the end of the step:

    eps_g = eps_u + lambda (eps_c - eps_u),   x' = alpha' x_0(eps_g) + sigma' eps_u

A DDIM step with eps_g is alpha' x_0(eps_g) + sigma' eps_g, so that CFG++ is that step and then

    x' <- x' + sigma' (eps_u - eps_g),

which is how it is done here, for any scheduler: the guidance hands eps_g to both halves (the pipeline's u + s (c - u)
is then eps_g for every s) and the correction is added after `scheduler.step`, over alpha' where the scheduler keeps
x / alpha. lambda = 0 is unconditional sampling, without any rounding; lambda = 1 is not conditional sampling.

Which samplers: those that begin each step at the sample that they are given, with one evaluation and no noise. For DDIM
and Euler (also of flows, alpha = 1 - sigma) the result is CFG++ itself. For multistep samplers there is no agreed form;
here the higher-order terms are the sampler's own on the guided predictions, and the renoising is the first-order one
(the authors' 2M code takes the difference of a guided and an unconditional prediction instead). Refused: solvers that
keep a state of their own (UniPC's corrector would undo the correction), several evaluations a step, step noise.
Its effect grows with the number of steps, because the guided part is added whole in each: there is no trajectory that
many steps converge to. The distance of its images is taken to the converged conditional trajectory.
Shapes: predictions (2 B, C, ...), correction (B, C, ...).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from accel.core.guidance import Guidance, classifier_free, halves, joined
from accel.core.trajectory import Trajectory
from accel.errors import IncompatibleError, check_float
from accel.guidance.spaces import latents, level, own, shifted
from accel.samplers.noise import adds_noise

DOUBLED = 2.0  # any scale above 1: the pipeline doubles the batch, and both halves hold the same prediction


def _of_betas(scheduler: Any, clock: Trajectory) -> float:
    # DDIM's own end of the step, by timestep.
    before = int(clock.timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    end = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
    return float(1 - end) ** 0.5


def _of_sigmas(scheduler: Any, clock: Trajectory) -> float:
    # x / alpha with sigma / alpha, or a flow with sigma. The scheduler may have its own on the device.
    return clock.sigma_after


def _of_scaled_sigmas(scheduler: Any, clock: Trajectory) -> float:
    return float(scheduler._sigma_to_alpha_sigma_t(torch.tensor(clock.sigma_after))[1])


def _of_nodes(scheduler: Any, clock: Trajectory) -> float:
    return float(scheduler.nodes.sigma[clock.index + 1])


# sigma' after the clock's step, in the scheduler's own scale of x, by scheduler class. None of them asks the device.
ENDS: Mapping[str, Callable[[Any, Trajectory], float]] = {
    "DDIMScheduler": _of_betas,
    "EulerDiscreteScheduler": _of_sigmas,
    "FlowMatchEulerDiscreteScheduler": _of_sigmas,
    "DPMSolverMultistepScheduler": _of_scaled_sigmas,
    "CorrectedDPMSolver3MScheduler": _of_scaled_sigmas,
    "DEISMultistepScheduler": _of_scaled_sigmas,
    "DEISScheduler": _of_nodes,
    "DCSolverScheduler": _of_nodes,
}
# Settings under which such a class is none of those samplers: (config entry, whether a value is wrong, reason).
UNFIT = (
    ("variant", lambda v: v == "rhork", "takes several evaluations a step"),
    ("corrector", lambda v: v is True, "corrects each sample from a state of its own"),
    ("algorithm_type", lambda v: str(v).startswith("sde"), "adds noise"),
    ("stochastic_sampling", bool, "adds noise"),
)


@dataclass(frozen=True)
class CFGPlusPlus(Guidance):
    """CFG++ with `weight` lambda in [0, 1]; the paper's 0.2, 0.4, 0.6, 0.8, 1 go with CFG scales 2, 5, 7.5, 9, 12.5."""

    weight: float = 0.6
    remembers: ClassVar[bool] = True
    scalable: ClassVar[bool] = False  # renoised by the same eps_g that is stepped with

    def __post_init__(self) -> None:
        check_float("guidance.weight", self.weight, 0.0, 1.0)

    @property
    def label(self) -> str:
        return f"cfg++{self.weight:g}"

    @property
    def pipeline_scale(self) -> float:
        return DOUBLED

    @property
    def exact(self) -> None:
        return None

    def check_around(self, scheduler, models) -> None:
        super().check_around(scheduler, models)
        name, config = type(scheduler).__name__, scheduler.config
        found = [reason for key, wrong, reason in UNFIT if key in config and wrong(config[key])]
        if adds_noise(scheduler):
            found = ["adds noise"]
        if name not in ENDS:
            found = ["may keep a state of its own, take several evaluations a step or add noise"]
        if found:
            raise IncompatibleError(
                f"CFG++ changes the sample after each step, and {name} {found[0]}; use a sampler such as ddim, euler, "
                "dpmpp_2m, deis_tab or flow_euler, or guidance=cfg."
            )

    def guide(self, inputs, inner, node):
        uncond, cond = halves(inner(inputs), inputs)
        guided, difference = cfgpp(uncond, cond, self.weight, level(node.clock).weights("eps")[1])
        node.memory["renoise"] = own(difference, latents(inputs.take("cond"), difference))
        return joined(guided, guided, inputs)

    def follow(self, scheduler, node) -> None:
        step, end = scheduler.step, ENDS[type(scheduler).__name__]

        @functools.wraps(step)
        def renoising_step(model_output, timestep, sample, *args, **kwargs):
            change = node.memory.pop("renoise", None)  # the clock forgets it at the end of the last step
            sigma = end(scheduler, node.clock)
            result = step(model_output, timestep, sample, *args, **kwargs)
            return result if change is None or sigma == 0 else _moved(result, sigma * change)

        scheduler.step = renoising_step


def cfgpp(u: torch.Tensor, c: torch.Tensor, weight: float, slope: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(guided output, eps_u - eps_g), both (B, C, ...), of the outputs u and c; `slope` = d eps / d output at this x.

    The step is taken with the first; sigma' times the second renoises what it leads to (alg. 2).
    """
    g = classifier_free(u, c, weight)
    return g, slope * (u - g)


def _moved(result: Any, change: torch.Tensor) -> Any:
    """A scheduler's result, tuple or output object, with `change` added to the sample (all copies of it)."""
    sample = result[0]
    change = change.reshape(len(change), *sample.shape[1:])  # Z-Image's network has a dimension of frames, too
    copies = len(sample) // len(change)  # DiTPipeline steps both halves
    moved = shifted(sample, change.repeat(copies, *[1] * (change.ndim - 1)))
    if isinstance(result, tuple):
        return (moved, *result[1:])
    result.prev_sample = moved
    return result
