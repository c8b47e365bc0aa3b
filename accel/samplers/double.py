"""diffusers' schedulers in float64, for pipelines that work in it.

diffusers keeps its noise levels in float32, whatever the sample is, and the `step` of some classes (DPM-Solver++,
Euler) rounds the sample to float32, too. Both are mended on the instance: after `set_timesteps` each level becomes the
one of the model's schedule in float64 that it is the rounding of,

    rho_t = sigma_t / alpha_t = sqrt((1 - abar_t) / abar_t),   abar_t = prod_{s <= t} (1 - beta_s),

on the class's own grid (uniform in t, or its power laws in rho), and within `step` no float64 tensor is cast to
float32. Formulas, timesteps and order of evaluation are the class's. Flows are left alone, and so is a grid whose
levels are not found again (Lu's lambdas); the clock then says that samples are rounded. Classes without levels (DDIM,
DDPM) step float64 samples as they are, by their float32 products abar: bit for bit the plain pipeline.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from accel.core.devices import send
from accel.errors import IncompatibleError
from accel.samplers.noise_schedule import NoiseSchedule, is_flow, noise_schedule

# Grids in sigma / alpha, and the methods of diffusers' classes that make them.
POWER_LAWS = {
    "use_karras_sigmas": "_convert_to_karras",
    "use_exponential_sigmas": "_convert_to_exponential",
    "use_beta_sigmas": "_convert_to_beta",
}
ROUNDING = 1e-3  # relative, of a level in float32: 1 - abar has few digits left at the first timesteps


def step_in_double(scheduler: Any) -> None:
    """Make a fresh diffusers scheduler of a model with betas step in float64; it says so in its `in_double`.

    What cannot be mended (see the module) stays as it is, with `in_double` false.
    """
    scheduler.in_double = False
    tables = (getattr(scheduler, name, None) for name in ("alphas_cumprod", "sigmas"))
    if is_flow(scheduler.config) or any(table is None for table in tables):
        return
    try:
        schedule = noise_schedule(scheduler.config)
    except IncompatibleError:  # of another kind of model, which the class knows by itself
        return
    scheduler.set_timesteps = _with_exact_levels(scheduler, scheduler.set_timesteps, schedule)
    scheduler.step = _unrounded(scheduler, scheduler.step)


class _Unrounded(TorchFunctionMode):
    """Casts of float64 tensors to float32 change nothing, and noise drawn in float32 is float64 from then on."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.randn and kwargs.get("dtype") is torch.float32:
            return func(*args, **kwargs).double()
        if func in (torch.Tensor.to, torch.Tensor.float) and args[0].dtype == torch.float64:
            func = torch.Tensor.to if args[1:] or kwargs else torch.Tensor.double
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _unrounded(scheduler: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def unrounded(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not scheduler.in_double or sample.dtype != torch.float64:
            return step(model_output, timestep, sample, *args, **kwargs)
        with _Unrounded():
            return step(model_output.double(), timestep, sample, *args, **kwargs)

    return unrounded


def _with_exact_levels(
    scheduler: Any, set_timesteps: Callable[..., None], schedule: NoiseSchedule
) -> Callable[..., None]:
    @functools.wraps(set_timesteps)
    def with_exact_levels(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        levels = _levels(scheduler, schedule)
        scheduler.in_double = levels is not None
        if levels is None:
            return
        scheduler.sigmas = torch.from_numpy(levels)
        times = scheduler.timesteps
        exact = schedule.timestep(levels[:-1]) if levels[:-1].all() else None
        if _power_law(scheduler) and times.is_floating_point() and exact is not None and len(exact) == len(times):
            scheduler.timesteps = send(exact, times.device)

    return with_exact_levels


def _levels(scheduler: Any, schedule: NoiseSchedule) -> np.ndarray | None:
    """The levels of a trajectory in float64; None if one of them is not found again."""
    rounded = torch.as_tensor(scheduler.sigmas).double().cpu().numpy()
    table = schedule.rho(np.arange(schedule.total))
    if law := _power_law(scheduler):
        grid = getattr(scheduler, law)(in_sigmas=table[::-1].copy(), num_inference_steps=scheduler.num_inference_steps)
    else:
        grid = np.interp(scheduler.timesteps.double().cpu().numpy(), np.arange(schedule.total), table)
    known = np.concatenate([[0.0], table[:1], np.asarray(grid, np.float64)])  # and where the last step may end
    found = known[np.abs(rounded[:, None] - known).argmin(axis=1)]
    return found if (np.abs(found - rounded) <= ROUNDING * rounded).all() else None


def _power_law(scheduler: Any) -> str | None:
    return next((law for option, law in POWER_LAWS.items() if scheduler.config.get(option)), None)
