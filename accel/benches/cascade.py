"""How well a cascade regression predicts ratios that it was not fitted on: every (steps, scale) pair left out once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.guidance import CFG
from accel.metrics.statistics import mean_estimate
from accel.samplers.ode import initial_latents
from accel.samplers.predictor import Predictor
from accel.search.cascade import Cascade
from accel.search.dc_solver import DCSolver
from accel.search.trajectories import converged_states
from accel.studies.runner import Runner

Searched = dict[tuple[int, float], list[float]]


def searched_ratios(runner: Runner, sampler: DCSolver, steps: Sequence[int], scales: Sequence[float]) -> Searched:
    """Ratios for every pair; searches that were done before are found among the runner's artefacts."""
    return {(n, scale): _ratios(runner, _recipe(sampler, n, scale)) for n in steps for scale in scales}


def leave_one_out(
    runner: Runner, sampler: DCSolver, searched: Searched, samples: int, on_pair: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """For each pair the distance at the end of the trajectory without ratios, with searched and with predicted ones.

    Root mean square to the converged trajectory at the same noises, which no search has seen, with intervals.
    """
    rows = []
    for pair, own in searched.items():
        cascade = Cascade.fit({k: v for k, v in searched.items() if k != pair}, sampler.dc_order)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predicted = cascade.predict(*pair, sampler.dc_order)
        distances = _distances(runner, _recipe(sampler, *pair), (None, own, predicted), samples)
        rows.append(
            {
                "steps": pair[0],
                "scale": pair[1],
                "inside": not caught,
                "searched": own,
                "predicted": predicted,
                "distance": dict(zip(("none", "searched", "predicted"), distances, strict=True)),
            }
        )
        on_pair()
    return rows


def _recipe(sampler: DCSolver, steps: int, scale: float) -> Recipe:
    from dataclasses import replace

    return Recipe(replace(sampler, steps=steps), guidance=CFG(scale) if scale > 1 else None)


def _ratios(runner: Runner, recipe: Recipe) -> list[float]:
    return runner.artefacts(recipe)[0]["sampler"]["ratios"].tolist()


@torch.no_grad()
def _distances(runner: Runner, recipe: Recipe, choices: Sequence[list[float] | None], samples: int) -> list[dict]:
    pipe, suite = runner.pipe, runner.suite
    call = suite.conditions(0, samples) | suite.guidance_arguments(recipe)
    noise = initial_latents(pipe, call | {"generator": generators(runner.evaluation.seed, 0, samples)})
    plain = recipe.sampler.build(pipe.scheduler.config, recipe.grid)
    found = []
    with accelerate(pipe, Recipe(guidance=recipe.guidance)) as run:
        predict = Predictor(pipe, run.clock, **call)
        exact = converged_states(plain, predict, noise, recipe.sampler.search.reference)[-1]
        for ratios in choices:
            scheduler = type(plain).from_config(plain.config, compensation_ratios=ratios)
            scheduler.set_timesteps(recipe.sampler.steps)
            x = noise
            for t in scheduler.timesteps:
                x = scheduler.step(predict(x, float(t)), t, x, return_dict=False)[0]
            distance = (x - exact).double().flatten(1).square().mean(1).sqrt()
            found.append(mean_estimate(distance.cpu().numpy()).to_dict())
    return found
