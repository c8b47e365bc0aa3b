"""The probability-flow ODE by an adaptive solver: the converged result, with a tolerance instead of a number of steps.

Song et al. 2021 (arXiv:2011.13456), sec. 4.3. For x_bar = x / alpha and u = ln(sigma / alpha) the ODE is

    d x_bar / d u = rho eps(x, t(rho)),   rho = e^u

integrated by scipy's solve_ivp from the model's largest noise level to its smallest; from there one plain step (DDIM)
leads to sigma = 0, as in every other sampler. A flow starts at alpha = 0, where x_bar has no value: its ODE is
d x / d s = v with s = sigma. A batch is one system with one step size, so results of other batch sizes differ within
the tolerance.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from scipy.integrate import solve_ivp

from accel.core.denoiser import denoiser_name
from accel.core.devices import send
from accel.core.sampler import Sampler
from accel.core.trajectory import Trajectory
from accel.errors import AccelError, IncompatibleError, check_float, check_int, unknown
from accel.samplers.deis import DEISScheduler
from accel.samplers.grids import ExplicitGrid, Grid
from accel.samplers.noise_schedule import NoiseSchedule, noise_schedule
from accel.samplers.predictor import Predictor

METHODS = ("RK45", "DOP853", "RK23")


def probability_flow(
    state: torch.Tensor,
    u: float,
    schedule: NoiseSchedule,
    predict: Callable[[torch.Tensor, float], torch.Tensor],
) -> torch.Tensor:
    """The slope (B, ...) of the probability-flow ODE at `u`, for a `state` (B, ...).

        diffusion   d x_bar / d u = rho eps(x, t(rho)),   x_bar = x / alpha, rho = e^u
        flow        d x / d s = v(x, s),                  u = s = sigma

    predict(x, t): eps of a diffusion model or v = eps - x_0 of a flow, for x (B, ...) at timestep t. Song et al. 2021,
    eq. 13 in the variables of Karras et al. 2022 (arXiv:2206.00364).
    """
    t = timestep(u, schedule)
    if schedule.flow:
        return predict(state, t)
    rho = float(np.exp(u))
    return rho * predict(state * float(schedule.of_rho(rho)[0]), t)


def timestep(u: float, schedule: NoiseSchedule) -> float:
    """The timestep at u = ln(sigma / alpha), or at u = sigma of a flow."""
    return u * schedule.total if schedule.flow else float(schedule.timestep(np.exp(u)))


@dataclass(frozen=True)
class AdaptiveODE(Sampler):
    """Solver `method` with relative and absolute tolerances on x / alpha; `steps` counts the plain step at the end."""

    rtol: float = 1e-5
    atol: float = 1e-5
    method: str = "RK45"
    steps: int = 1
    name: str = "ode"

    def __post_init__(self) -> None:
        check_float("sampler.rtol", self.rtol, 1e-13, 1.0)
        check_float("sampler.atol", self.atol, 0.0, 1.0)
        check_int("sampler.steps of the adaptive ODE solver", self.steps, 1, 1)
        if self.method not in METHODS:
            raise unknown("method of the adaptive ODE solver", str(self.method), METHODS)

    @property
    def label(self) -> str:
        return f"{self.name}({self.method},{self.rtol:g})"

    @property
    def predicts(self) -> bool:
        return True

    def build(self, config: Any, grid: Grid | None = None) -> DEISScheduler:
        """DDIM's one step from the smallest noise level to sigma = 0."""
        if grid is not None:
            raise IncompatibleError(f"sampler {self.name} chooses its own steps; use grid=none instead of {grid.name}.")
        end = ExplicitGrid(timesteps=(noise_schedule(config).t_min,))
        return DEISScheduler.from_config(
            dict(config), variant="tab", ab_order=0, grid=end.spec(), final_sigma="zero", thresholding=False
        )

    def prepared(self, pipe: Any, recipe: Any, artefact: Any = None) -> AdaptiveODE:
        if "latents" not in inspect.signature(type(pipe).__call__).parameters:
            raise IncompatibleError(
                f"{type(pipe).__name__} takes no latents, so sampler {self.name} cannot hand it the solution; use a "
                "sampler of the scheduler seam."
            )
        return self

    @torch.no_grad()
    def run(self, pipe: Any, clock: Trajectory, call: dict[str, Any]) -> Any:
        """The pipeline's result for the arguments `call`, which may hold `latents` (B, ...) of unit variance."""
        call = dict(call)
        x = call.pop("latents", None)
        x = initial_latents(pipe, call) if x is None else x
        conditions = {k: v for k, v in call.items() if k not in ("generator", "output_type", "return_dict")}
        predict = Predictor(pipe, clock, **conditions)

        def evaluate(x: torch.Tensor, t: float) -> torch.Tensor:
            output = predict(x, t)
            clock.keep_as_prelude()
            return output

        return pipe(**call, latents=self.solve(predict, evaluate, x))

    def solve(self, predict: Any, evaluate: Any, x: torch.Tensor) -> torch.Tensor:
        """The state at the smallest noise level of the trajectory that starts from unit-variance noise `x`."""
        schedule = predict.schedule
        flow = schedule.flow
        ends = np.array([schedule.t_max, schedule.t_min])
        span = ends / schedule.total if flow else np.log(schedule.rho(ends))

        def predicted(at: torch.Tensor, t: float) -> torch.Tensor:
            at = send(at.to(x.dtype), x.device)
            output = evaluate(at, t)
            return predict.to_flow(output, at, t) if flow else predict.to_eps(output, at, t)

        def slope(u: float, flat: np.ndarray) -> np.ndarray:
            change = probability_flow(torch.from_numpy(flat).reshape(x.shape), u, schedule, predicted)
            change = change.double().flatten().cpu().numpy()
            if not np.isfinite(change).all():  # it would make the solver's next time NaN as well
                t = timestep(u, schedule)
                raise AccelError(f"the adaptive ODE solver stopped: the prediction at timestep {t:g} is not finite.")
            return change

        start = x if flow else x / float(schedule.alpha_sigma(schedule.t_max)[0])
        result = solve_ivp(
            slope, span, start.double().flatten().cpu().numpy(), self.method, [span[1]], rtol=self.rtol, atol=self.atol
        )
        if not result.success or not np.isfinite(result.y).all():
            raise AccelError(f"the adaptive ODE solver stopped at rtol={self.rtol:g}: {result.message}")
        end = torch.from_numpy(result.y[:, -1]).reshape(x.shape).to(x)
        return end if flow else end * float(schedule.alpha_sigma(schedule.t_min)[0])


def initial_latents(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    """The unit-variance noise that the pipeline would draw for `call`, from its generators, one sample each."""
    net = getattr(pipe, denoiser_name(pipe))
    generators = call.get("generator")
    if not isinstance(generators, list):
        raise AccelError("the sampler needs `generator` as a list with one generator for each sample, or `latents`.")
    if "prompt" in call or type(net).__name__ == "DiTTransformer2DModel":
        return Predictor(pipe, **call).initial_noise()  # its size is the pipeline's business
    size = net.config.sample_size
    shape = (len(generators), net.config.in_channels, *([size, size] if isinstance(size, int) else size))
    return randn_tensor(shape, generator=generators, device=net.device, dtype=net.dtype)
