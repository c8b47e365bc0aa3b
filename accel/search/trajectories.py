"""Trajectories outside a pipeline's loop: states at the grid times, and the converged ones to compare them with."""

from __future__ import annotations

import numpy as np
import torch

from accel.samplers.dc_solver import DCSolverScheduler
from accel.samplers.predictor import Predictor
from accel.samplers.scheduler import BaseScheduler


@torch.no_grad()
def trajectory(scheduler: BaseScheduler, predict: Predictor, x: torch.Tensor) -> list[torch.Tensor]:
    """States before each evaluation and after the last one; `scheduler.set_timesteps` has been called."""
    states = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, float(t)), t, x, return_dict=False)[0]
        states.append(x)
    return states


def refined(scheduler: BaseScheduler, evaluations: int) -> tuple[np.ndarray, np.ndarray]:
    """(times, index): every step of the scheduler's grid cut evenly in log(sigma / alpha) into about `evaluations` in
    all, and where the grid's own times are among them. A step to sigma = 0 is cut down to the smallest noise level.
    """
    nodes, schedule = scheduler.nodes, scheduler.schedule
    pieces = max(2, -(-evaluations // nodes.steps))
    times, index = [], []
    for i in range(nodes.steps):
        index.append(len(times))
        start, end = nodes.t[i], nodes.t[i + 1]
        zero = nodes.rho[i + 1] == 0
        end = schedule.t_min if zero else end
        if start <= end:  # the last evaluation is at the smallest noise level already
            times.append(start)
            continue
        ends = np.log(schedule.rho(np.array([start, end])))
        # Close to a flow's beginning log rho is clipped, and says nothing about the times in between.
        even = np.linspace(start, end, pieces + 1)
        inner = schedule.timestep(np.exp(np.linspace(*ends, pieces + 1))) if ends[0] > ends[1] else even
        inner[0], inner[-1] = start, end
        times += list(inner if zero else inner[:-1])
    return np.array(times), np.array(index)


def converged_states(scheduler: DCSolverScheduler, predict: Predictor, x: torch.Tensor, evaluations: int = 200):
    """The converged trajectory from `x` at the grid times and at its end: list of steps + 1 tensors (B, ...).

    UniPC of order 3 on the refined grid, so that the states are those at the grid's own times, not at neighbours.
    """
    times, index = refined(scheduler, evaluations)
    fine = DCSolverScheduler.from_config(scheduler.config, solver_order=3, compensation_ratios=None,
                                         corrector=True, predict_x0=True, disable_corrector=None)  # fmt: skip
    fine.set_timesteps(timesteps=times)
    states = _corrected(fine, predict, x)
    return [states[i] for i in [*index, len(states) - 1]]


@torch.no_grad()
def _corrected(scheduler: DCSolverScheduler, predict: Predictor, x: torch.Tensor) -> list[torch.Tensor]:
    # `step` returns predicted states; the corrected ones, an order better, are in the solver's state.
    states, state = [], {}
    for i, t in enumerate(scheduler.timesteps):
        state = scheduler.absorb(i, state, predict(x, float(t)), x)
        states.append(state["sample"])
        x = scheduler.predict(i, state)
    return [*states, x]
