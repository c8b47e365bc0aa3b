"""DC-Solver's ratios for a grid of (steps, scale) pairs, and the cascade regression over them.

How well it predicts ratios that it was not fitted on: every pair is left out once. Writes a record,
artefacts/cascade_<suite>.json (for `sampler.ratios=...`) and tables/dc_ratios.{md,csv}. Searches that were done before
are reused; an interrupted run resumes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.progress import Progress

from accel.benches.cascade_table import write_cascade
from accel.benches.options import parser
from accel.config import compose, instantiate
from accel.core.environment import environment, provenance
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.files import file_name
from accel.guidance import CFG
from accel.metrics.statistics import mean_estimate, usable_period
from accel.records import Results, describe, digest
from accel.samplers.ode import initial_latents
from accel.samplers.predictor import Predictor
from accel.search.cascade import Cascade
from accel.search.dc_solver import DCSolver
from accel.search.trajectories import converged_states
from accel.studies.evaluation import Evaluation
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
    return Recipe(replace(sampler, steps=steps), guidance=CFG(scale) if scale > 1 else None)


def _ratios(runner: Runner, recipe: Recipe) -> list[float]:
    return runner.artefacts(recipe)[0]["sampler"]["ratios"].tolist()


@torch.no_grad()
def _distances(runner: Runner, recipe: Recipe, choices: Sequence[list[float] | None], samples: int) -> list[dict]:
    pipe, suite = runner.pipe, runner.suite
    call = suite.conditions(0, samples) | suite.guidance_arguments(recipe)
    noise = initial_latents(pipe, call | {"generator": generators(runner.evaluation.seeds[0], 0, samples)})
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
            period = usable_period(len(distance), runner.suite.period)
            found.append(mean_estimate(distance.cpu().numpy(), period=period).to_dict())
    return found


def main(words: Sequence[str]) -> None:
    """`accel bench cascade`: search, fit, leave out, table."""
    options = parser(__doc__, "bench cascade")
    options.add_argument("--suite", default="digits")
    options.add_argument("--steps", type=int, nargs="+", default=[5, 6, 8, 10])
    options.add_argument("--scales", type=float, nargs="+", default=[1, 2, 3, 4])
    options.add_argument("--samples", type=int, default=40)
    args = options.parse_args(words)
    results = Results(args.results)
    suite = instantiate(compose([f"suite={args.suite}"])["suite"])
    sampler = instantiate(compose(["sampler=dc_solver"])["sampler"])
    pairs = len(args.steps) * len(args.scales)
    with Progress() as progress:
        bar, inner = progress.add_task("searches", total=None), progress.add_task("steps of one search", total=None)

        def on_search(done: int, total: int) -> None:
            progress.update(inner, completed=done, total=total)

        runner = Runner(suite, Evaluation(), results, progress.console.print, on_search=on_search)
        searched = searched_ratios(runner, sampler, args.steps, args.scales)
        progress.update(bar, description="pairs left out", total=pairs)
        path = results.root / "artefacts" / f"cascade_{file_name(suite.name)}.json"
        Cascade.fit(searched, sampler.dc_order).save(path)
        asked = {"suite": suite.name, "weights": suite.fingerprint(), "sampler": describe(sampler),
                 "pairs": sorted(searched), "samples": args.samples}  # fmt: skip
        key = digest(asked)
        if not results.path("cascade", key).exists():
            rows = leave_one_out(runner, sampler, searched, args.samples, lambda: progress.advance(bar))
            results.save({"kind": "cascade", "id": key, "suite": suite.name, "samples": args.samples, "rows": rows,
                          "dc_order": sampler.dc_order,
                          "environment": environment(runner.device) | provenance()})  # fmt: skip
    for path in write_cascade(results):
        print(path)
