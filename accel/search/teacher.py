"""The error of single Euler jumps along a converged trajectory: what GITS decides by (arXiv:2405.11326, sec. 4).

In x_bar = x / alpha and rho = sigma / alpha a DDIM step is x_bar_j = x0_i + rho_j eps_i, with x0_i and eps_i predicted
at the teacher's state at node i. The teacher is DEIS of order 3 (in t) on all nodes; the end, rho = 0, is a node too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.samplers.deis import DEISScheduler
from accel.samplers.grids import ExplicitGrid, Grid
from accel.samplers.ode import initial_latents
from accel.samplers.predictor import Predictor
from accel.studies.runner import Runner


def _off_chord(x: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Distance (B,) of x to the straight line from start to end, all (B, D)."""
    along = (end - start) / (end - start).norm(dim=1, keepdim=True)
    away = x - end
    return (away - (away * along).sum(1, keepdim=True) * along).norm(dim=1)


# (jump, teacher's state, trajectory's start and end), each (B, D) -> error (B,)
METRICS: dict[str, Callable[..., torch.Tensor]] = {
    "l1": lambda jump, state, start, end: (jump - state).abs().sum(1),
    "l2": lambda jump, state, start, end: (jump - state).norm(dim=1),
    "dev": lambda jump, state, start, end: _off_chord(jump, start, end) - _off_chord(state, start, end),
}


def teacher_times(schedule: Any, grid: str, nodes: int) -> np.ndarray:
    """At most `nodes` integer timesteps of a named grid, falling; those that round to the same one are one."""
    return np.unique(np.round(Grid(grid).times(schedule, nodes)).astype(int))[::-1]


@torch.no_grad()
def jump_costs(runner: Runner, recipe: Recipe, times: np.ndarray, samples: int, metric: str) -> np.ndarray:
    """c(i, j), (N + 1, N + 1): mean error of the jump from node i to node j, over `samples` trajectories of the
    runner's seed; node N is the end. NaN where j <= i. `recipe`: the model and guidance; its sampler is left out."""
    suite, pipe = runner.suite, runner.pipe
    scheduler = DEISScheduler.from_config(
        dict(pipe.scheduler.config), variant="tab", ab_order=2, grid=ExplicitGrid(timesteps=tuple(times)).spec(),
        final_sigma="zero", thresholding=False,
    )  # fmt: skip
    scheduler.set_timesteps(len(times))
    call = suite.conditions(0, samples) | suite.guidance_arguments(recipe)
    x = initial_latents(pipe, call | {"generator": generators(runner.evaluation.seeds[0], 0, samples)})
    x0s, epses = [], []
    alone = Recipe(guidance=recipe.guidance, stitch=recipe.stitch)
    with accelerate(pipe, alone, models=runner.models) as run:
        predict = Predictor(pipe, run.clock, **call)
        for t in scheduler.timesteps:
            output = predict(x, float(t))
            x0s.append(predict.to_x0(output, x, float(t)).double().flatten(1).cpu())
            epses.append(predict.to_eps(output, x, float(t)).double().flatten(1).cpu())
            x = scheduler.step(output, t, x, return_dict=False)[0]
    rho = scheduler.nodes.rho
    states = [x0 + float(r) * eps for x0, r, eps in zip(x0s, rho, epses, strict=False)]
    states.append(x.double().flatten(1).cpu())
    costs = np.full((len(states), len(states)), np.nan)
    for i, (x0, eps) in enumerate(zip(x0s, epses, strict=True)):
        for j in range(i + 1, len(states)):
            jump = x0 + float(rho[j]) * eps
            costs[i, j] = float(METRICS[metric](jump, states[j], states[0], states[-1]).mean())
    return costs
