"""What the intervals of the tables cover, and what they can decide: many sets of samples of the same recipes.

Set s of N samples is samples s N to (s + 1) N of one run: fresh noise, and fresh prompts where a suite has prompts.
Every set is scored as a table's run is. The spread over sets is the truth that each set's own standard error is held
against: coverage, paired differences to a baseline, false alarms between sets of one recipe (A/A), and the smallest
difference that an interval would decide. Samples are ordinary shards of the results folder, so that a second call goes
on and a larger --samples adds sets; distances are left out, which would cost the converged sampler on every sample, and
are means like the accuracy. Writes a record for each N and tables/coverage.{md,csv}.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from accel.benches.coverage_table import write_coverage
from accel.benches.options import parser
from accel.config import compose, instantiate, recipe_of
from accel.core.environment import environment, provenance
from accel.core.recipe import Recipe
from accel.errors import ConfigError, check_int
from accel.evaluation.score import EPOCH, score
from accel.metrics.statistics import Estimate, beaten_by, paired
from accel.records import Results, digest
from accel.studies.evaluation import MIN_N, Evaluation
from accel.studies.runner import Runner
from accel.suites.base import Suite

RECIPES = ("sampler=dpmpp_2m sampler.steps=20", "sampler=dpmpp_2m sampler.steps=10 grid=t_quadratic")
BASELINE = "sampler=ddim sampler.steps=20"
# Sizes of a set, and samples of each recipe; of other suites as of the last.
USUAL = {"digits": ((250, 500, 1000), 24_000), "shapes": ((256,), 3072), "": ((250,), 6000)}
LEAST = 8  # sets; their sd is known to a quarter
Scored = dict[str, list[Estimate]]  # value: its estimate in each set


def scored(suite: Suite, tensors: Mapping[str, torch.Tensor], n: int, samples: int) -> Scored:
    """Every value of each whole set of n among so many samples, without distances."""
    found: Scored = {}
    for start in range(0, samples - n + 1, n):
        part = {k: v[start : start + n] for k, v in tensors.items() if k != "images"}
        for key, value in score(suite, part, None).items():
            found.setdefault(key, []).append(value)
    if not found:
        raise ConfigError(f"suite {suite.name} has neither features nor scores; allowed: a suite that has, as digits.")
    return found


def summary(estimates: Sequence[Estimate]) -> dict[str, float]:
    """What S sets say of one value (or difference): its mean, sd over sets, mean standard error and mean half-width,
    the shares of intervals that hold the mean (`covers`) and that exclude 0 (`decided`)."""
    values = np.array([e.value for e in estimates])
    mean = float(values.mean())
    return {
        "sets": len(estimates),
        "mean": mean,
        "sd": float(values.std(ddof=1)),
        "se": float(np.mean([e.se for e in estimates])),
        "half": float(np.mean([(e.hi - e.lo) / 2 for e in estimates])),
        "covers": float(np.mean([e.lo <= mean <= e.hi for e in estimates])),
        "decided": float(np.mean([e.apart for e in estimates])),
    }


def alarms(estimates: Sequence[Estimate]) -> float:
    """Share of all pairs of sets of one recipe whose paired difference would be called one: 5 % if all is right."""
    return sum(beaten_by(estimates)) / math.comb(len(estimates), 2)


def rows(by_recipe: dict[str, Scored], baseline: str) -> list[dict[str, Any]]:
    """`summary` of each value of each recipe (with `alarms`), and of its paired difference to `baseline` (`of`)."""
    found = []
    for label, values in by_recipe.items():
        for key, own in values.items():
            found.append({"recipe": label, "of": None, "value": key, **summary(own), "alarms": alarms(own)})
            if label != baseline:
                differences = [paired(a, b) for a, b in zip(own, by_recipe[baseline][key], strict=True)]
                found.append({"recipe": label, "of": baseline, "value": key, **summary(differences), "alarms": None})
    return found


def check_sets(suite: Suite, sizes: Sequence[int], samples: int) -> None:
    """Raise ConfigError unless `samples` hold enough sets of each size, and every set begins as the first one does."""
    for n in sizes:
        check_int("--n", n, MIN_N)
        if suite.period > 1 and n % suite.period and suite.strata(suite.conditions(0, 1)) is not None:
            raise ConfigError(f"--n {n} on suite {suite.name}: classes repeat after {suite.period} samples; allowed: "
                              f"multiples of {suite.period}.")  # fmt: skip
        if samples // n < LEAST:
            raise ConfigError(f"--samples {samples} are {samples // n} sets of --n {n}; needed: at least {LEAST} sets, "
                              f"--samples {LEAST * n} or more.")  # fmt: skip


def measure(
    runner: Runner, recipes: Sequence[Recipe], sizes: Sequence[int], samples: int, command: str = ""
) -> list[dict[str, Any]]:
    """The records of each size; those that are there are not made again. The first recipe is the baseline."""
    suite, results = runner.suite, runner.results
    check_sets(suite, sizes, samples)
    for recipe in recipes:
        runner.check(recipe)
    found, tensors = [], {}
    for n in sizes:
        identity = {"samples": [runner.generation_id(recipe) for recipe in recipes], "n": n, "epoch": EPOCH,
                    "sets": samples // n, "reference": suite.reference_identity()} | runner._scoring  # fmt: skip
        key = digest(identity)
        if (record := runner.find("coverage", key)) is None:
            for recipe in recipes:
                if recipe.label not in tensors:
                    tensors[recipe.label] = runner.shards(recipe, samples, runner.artefacts(recipe)[0])
            runner.say(f"scoring {samples // n} sets of {n} samples of {len(recipes)} recipes")
            by_recipe = {label: scored(suite, own, n, samples) for label, own in tensors.items()}
            record = {
                "kind": "coverage",
                "id": key,
                "suite": suite.name,
                "n": n,
                "sets": samples // n,
                "seed": runner.evaluation.seed,
                "baseline": recipes[0].label,
                "rows": rows(by_recipe, recipes[0].label),
                "command": command,
                "environment": environment(runner.device) | provenance(),
            }
            results.save(record)
        found.append(record)
    return found


def main(words: Sequence[str]) -> None:
    """`accel bench coverage`: records and tables/coverage.{md,csv}."""
    options = parser(__doc__, "bench coverage")
    options.add_argument("--suite", default="digits")
    options.add_argument("--n", type=int, nargs="+", help="samples of a set")
    options.add_argument("--samples", type=int, help="samples of each recipe; N of them are one set")
    options.add_argument("--recipes", nargs="+", default=list(RECIPES), help="each as words of a command line, quoted")
    options.add_argument("--baseline", default=BASELINE, help="what the others are paired with, likewise")
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args(words)
    suite = instantiate(compose([f"suite={args.suite}"])["suite"])
    sizes, samples = USUAL.get(args.suite, USUAL[""])
    sizes, samples = args.n or sizes, args.samples or samples
    given = (args.baseline, *args.recipes)
    recipes = [recipe_of(compose(shlex.split(text))) for text in given]
    labels = [recipe.label for recipe in recipes]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"--baseline and --recipes are {', '.join(labels)}; needed: different recipes.")
    with Progress() as progress:
        bar = progress.add_task("samples", total=samples * len(recipes))
        evaluation = replace(Evaluation(), n=samples, seed=args.seed)
        say = lambda text: progress.console.print(text, markup=False, highlight=False)  # noqa: E731
        runner = Runner(suite, evaluation, Results(args.results), say, lambda count: progress.advance(bar, count))
        measure(runner, recipes, sizes, samples, f"accel bench coverage {shlex.join(words)}".strip())
    for path in write_coverage(runner.results):
        print(path)
