"""GITS: the timesteps of least accumulated error, by dynamic programming on a teacher's trajectory.

Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling" (arXiv:2405.11326). A teacher walks N
nodes and ends at sigma = 0; c(i, j) is the error of a single Euler (DDIM) jump from its state at node i to node j. Of
all ways from the first node to the end in exactly K jumps, the one that minimises

    V_k(i) = min_{j > i} c(i, j) + gamma V_{k-1}(j),   V_1(i) = c(i, end)

One teacher serves every K. `metric`, as the authors name them: `l1` and `l2` are the mean distance to the teacher's
state, `dev` (their default) is by how much the jump lies farther from the straight line between the ends of the
trajectory than the teacher does. gamma weighs later errors (theirs: 1.15 on CIFAR-10 with `dev`).

Deviations from their code: states are compared as x / alpha, nodes are integer timesteps, the way back follows stored
choices (theirs compares floats for equality), and analytical first steps are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel.errors import ConfigError, IncompatibleError, check_float, check_int, unknown
from accel.search.optimisers.base import Evaluate, Optimiser, Teacher
from accel.search.spaces import Space, TimestepSpace, Vector
from accel.search.teacher import METRICS


@dataclass(frozen=True)
class GITS(Optimiser):
    """`nodes` of the teacher on `grid`, `samples` trajectories, cost `metric`, discount `gamma`."""

    nodes: int = 60
    samples: int = 64
    metric: str = "l2"
    gamma: float = 1.0
    grid: str = "karras"
    name: str = "gits"

    def __post_init__(self) -> None:
        check_int("optimiser.nodes", self.nodes, 2)
        check_int("optimiser.samples", self.samples, 1)
        check_float("optimiser.gamma", self.gamma, 0.0)
        if self.metric not in METRICS:
            raise unknown("optimiser.metric", str(self.metric), METRICS)

    def minimise(self, space: Space, evaluate: Evaluate, teacher: Teacher | None = None) -> Vector:
        if not isinstance(space, TimestepSpace) or teacher is None:
            raise IncompatibleError("optimiser gits finds timesteps only; use search=timesteps, or another optimiser.")
        times, costs = teacher.jumps(self.grid, self.nodes, self.samples, self.metric)
        path = least_path(costs, space.steps, self.gamma)
        found = space.vector(times[path])
        evaluate([found])
        return found


def least_path(costs: np.ndarray, jumps: int, gamma: float = 1.0) -> list[int]:
    """Nodes (jumps,) where the jumps of the cheapest way from node 0 to the last one begin.

    costs (N, N): c(i, j) for i < j. O(N^2 jumps). ConfigError if there are fewer than `jumps` nodes before the last.
    """
    count = len(costs)
    if not 1 <= jumps < count:
        raise ConfigError(
            f"{jumps} steps are to be placed on {count - 1} nodes of the teacher; allowed: at most as many. Raise "
            "optimiser.nodes."
        )
    upper = np.triu(np.ones((count, count), bool), 1)
    value, choices = np.where(upper, costs, np.inf)[:, -1], []
    for _ in range(jumps - 1):
        total = np.where(upper, costs + gamma * value[None, :], np.inf)
        total[:, -1] = np.inf  # the end is reached by the last jump only
        choices.append(total.argmin(1))
        value = total.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path
