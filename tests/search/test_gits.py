"""GITS: the dynamic programme against brute force, and the errors that it adds up."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError
from accel.records import Results
from accel.samplers import DEISScheduler, DiffusersSampler
from accel.search.optimisers import GITS
from accel.search.optimisers.gits import least_path
from accel.search.teacher import jump_costs, teacher_times
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.mixture import MixtureSuite

EULER = DiffusersSampler("DEISScheduler", 4, "ddim_accel", {"variant": "tab", "ab_order": 0})


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("jumps", [1, 2, 3, 5, 6])
def test_dynamic_programme_against_brute_force(gamma, jumps):
    costs = np.random.default_rng(jumps).random((7, 7))

    def total(path) -> float:
        nodes = (*path, 6)
        return sum(gamma**k * costs[a, b] for k, (a, b) in enumerate(pairwise(nodes)))

    every = [(0, *inner) for inner in combinations(range(1, 6), jumps - 1)]
    found = least_path(costs, jumps, gamma)
    assert tuple(found) in every
    assert total(found) == pytest.approx(min(map(total, every)), rel=1e-12)


def test_more_steps_than_nodes_is_refused():
    with pytest.raises(ConfigError, match=r"7 steps are to be placed on 6 nodes .* Raise optimiser.nodes"):
        least_path(np.ones((7, 7)), 7)
    with pytest.raises(ConfigError, match=r"unknown optimiser.metric 'l3'.*Allowed: dev, l1, l2"):
        GITS(metric="l3")
    with pytest.raises(IncompatibleError, match="finds timesteps only; use search=timesteps"):
        GITS().minimise(None, None)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    evaluation = Evaluation(n=60, distance_n=60, timing=False, device="cpu")
    return Runner(MixtureSuite(), evaluation, Results(tmp_path_factory.mktemp("results")))


def test_a_jump_is_a_step_of_ddim(runner):
    """c(i, j) recomputed by the scheduler from the teacher's own states."""
    from accel.core.seeds import generators
    from accel.samplers.ode import initial_latents
    from accel.samplers.predictor import Predictor

    times = np.array([999, 700, 400, 100])
    costs = jump_costs(runner, Recipe(EULER), times, 3, "l2")
    pipe, call = runner.pipe, runner.suite.conditions(0, 3) | {"guidance_scale": 1.0}
    x = initial_latents(pipe, call | {"generator": generators(runner.evaluation.seed, 0, 3)})
    predict = Predictor(pipe, **call)

    def make(order: int, grid: list[int]):
        made = DEISScheduler.from_config(pipe.scheduler.config, variant="tab", ab_order=order, grid=grid)
        made.set_timesteps(len(grid))
        return made

    teacher, states = make(2, times.tolist()), [x]
    with torch.no_grad():
        for t in teacher.timesteps:
            states.append(teacher.step(predict(states[-1], float(t)), t, states[-1], return_dict=False)[0])
        alpha = teacher.nodes.alpha
        for i, j in ((0, 1), (0, 3), (1, 2), (2, 4)):
            grid = [int(times[i])] + ([int(times[j])] if j < 4 else [])
            euler = make(0, grid)
            t = euler.timesteps[0]
            jumped = euler.step(predict(states[i], float(t)), t, states[i], return_dict=False)[0]
            error = ((jumped - states[j]) / alpha[j]).flatten(1).norm(dim=1).mean()
            assert costs[i, j] == pytest.approx(float(error), rel=1e-5), (i, j)
    assert np.isnan(costs[2, 2])
    assert np.isnan(costs[3, 1])


@pytest.mark.parametrize("metric", ["l1", "l2", "dev"])
def test_long_jumps_cost_more_than_short_ones(runner, metric):
    times = teacher_times(Schedule(), "karras", 30)
    costs = jump_costs(runner, Recipe(EULER), times, 8, metric)
    middle = len(times) // 2
    assert costs[2, middle] > costs[middle - 1, middle]
    assert costs[middle, -1] > costs[len(times) - 1, -1]


class Schedule:
    """Few karras points of the linear schedule round to the same timestep; those are one node."""

    def __new__(cls):
        from accel.samplers.noise_schedule import noise_schedule

        return noise_schedule({"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02})


def test_nodes_that_round_to_the_same_timestep_are_one():
    times = teacher_times(Schedule(), "karras", 300)
    assert len(times) < 300
    assert (np.diff(times) < 0).all()
    assert times[0] == 999
