"""What a sampler must get right: its steps, a beginning in mid-schedule, its state, and a model with a known answer.

Where all data are one point x_0, the exact model answers eps = (x - alpha x_0) / sigma, and every solver of the
diffusion or flow ODE leads from any noise level to x_0 without error, multistep or not: eps and x_0 never change. Of
those that add noise only some do.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from accel.errors import ConfigError, IncompatibleError
from accel.samplers.noise import adds_noise
from accel.samplers.noise_schedule import noise_schedule
from accel.samplers.trigflow import is_trigflow
from accel.testing.bench import Bench, Case

X0 = torch.linspace(-0.6, 0.6, 64).reshape(1, 1, 8, 8)
TOLERANCE = 0.05  # schedulers that end at their smallest noise level leave 0.01 of it


def runs_the_steps_it_says(case: Case) -> None:
    """The trajectory has `steps` solver steps, and no more evaluations than `evaluations`; other numbers, too."""
    on = case.first()
    for steps in (case.method.steps, 2, 3):
        try:
            sampler = replace(case.method, steps=steps)
            _, run = on.images(case.with_method(sampler))
        except (ConfigError, IncompatibleError):
            if steps == case.method.steps:
                raise
            continue  # numbers that are given for so many steps: an answer, too
        assert run.clock.runs == 1, f"{case.label} ran {run.clock.runs} whole trajectories; allowed: 1"
        found = run.clock.num_steps
        assert found == steps, f"{case.label} was asked for {steps} solver steps and ran {found}"
        calls = len([e for e in run.trace if e.denoiser])
        assert calls <= sampler.evaluations, (
            f"{case.label} evaluated the model {calls} times in {steps} steps, and says at most {sampler.evaluations}"
        )


def begins_anywhere(case: Case) -> None:
    """Begun at any step, as image-to-image pipelines do, it solves the model of one point (or, adding noise, ends)."""
    on = case.first()
    for first in range(case.method.steps):
        scheduler = _scheduler(case, on)
        off = float((_solved(scheduler, on, case.method.steps, first) - X0).abs().max())
        allowed = float("inf") if adds_noise(scheduler) else TOLERANCE
        assert off < allowed, (
            f"{case.label}, begun at step {first} of {case.method.steps}, ends {off:.2g} away from x_0 of a model of "
            "one point, which any solver reaches exactly; see set_begin_index, add_noise and the last step"
        )


def set_timesteps_resets_it(case: Case) -> None:
    """A new trajectory, after one that was broken off, is that of a new scheduler bit for bit."""
    on = case.first()
    steps = case.method.steps
    expected = _solved(_scheduler(case, on), on, steps, moved=0.5)
    for stop in (1, 2):
        used = _scheduler(case, on)
        _solved(used, on, steps, stop=stop, moved=1.0)
        same = torch.equal(_solved(used, on, steps, moved=0.5), expected)
        assert same, f"the scheduler of {case.label} keeps something from a trajectory before set_timesteps"


def _scheduler(case: Case, on: Bench) -> Any:
    own = (on.artefacts(case.recipe) or {}).get("sampler")
    sampler = case.method.prepared(on.pipe, case.recipe, own)
    return sampler.build(on.pipe.scheduler.config, case.recipe.grid)


def _solved(
    scheduler: Any, on: Bench, steps: int, first: int = 0, stop: int | None = None, moved: float = 0.0
) -> torch.Tensor:
    """Where the trajectory ends that begins at step `first`; the model's point is X0, or X0 and a wave `moved` far."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(X0.shape, generator=generator)
    order, config = getattr(scheduler, "order", 1), scheduler.config
    scheduler.set_timesteps(steps)
    arc = is_trigflow(config)
    times = scheduler.timesteps[first * order : -1 if arc else None]
    levels = _arc if arc else noise_schedule(on.pipe.scheduler.config).alpha_sigma
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * order)
    if hasattr(scheduler, "add_noise"):
        x = scheduler.add_noise(X0, eps, times[:1])
    elif arc:
        x = torch.cos(times[0]) * X0 + torch.sin(times[0]) * eps
    else:
        x = scheduler.scale_noise(X0, times[:1], eps)
    draws = "generator" in inspect.signature(scheduler.step).parameters
    more = {"generator": generator} if draws else {}
    for i, t in enumerate(times):
        if stop is not None and i == stop:
            break
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        alpha, sigma = (float(v) for v in levels(np.float64(float(t))))
        point = X0 + moved * torch.sin(seen)
        x = scheduler.step(_answer(seen, point, alpha, sigma, config), t, x, return_dict=False, **more)[0]
    return x


def _arc(angle: np.float64) -> tuple[np.float64, np.float64]:
    return np.cos(angle), np.sin(angle)


def _answer(x: torch.Tensor, x0: torch.Tensor, alpha: float, sigma: float, config: Any) -> torch.Tensor:
    noise = (x - alpha * x0) / sigma
    kind = config.get("prediction_type", "flow_prediction")
    kind = "flow_prediction" if config.get("use_flow_sigmas") else kind
    return {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": alpha * noise - sigma * x0,
        "trigflow": alpha * noise - sigma * x0,
        "flow_prediction": noise - x0,
    }[kind]


SAMPLER = {"steps": runs_the_steps_it_says, "begin": begins_anywhere, "reset": set_timesteps_resets_it}
