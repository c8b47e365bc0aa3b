"""Optuna's samplers by ask and tell: NSGA-II (a genetic algorithm, for one objective or several) and TPE.

Optuna knows nothing of sorted vectors: crossover of unsorted ones mixes unrelated numbers (AutoDiffusion's released
code does that). So what a sampler draws is put into its canonical order before it becomes a trial, and the first
generation, which holds the space's seeds, is drawn by the space.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.errors import ConfigError, check_int, needs
from accel.search.optimisers.base import Evaluate, Optimiser
from accel.search.spaces import Space


@dataclass(frozen=True)
class OptunaSearch(Optimiser):
    """`sampler`: a class of optuna.samplers with `options`; `population` trials are asked for at once."""

    sampler: str
    seed: int = 0
    population: int = 12
    options: Mapping[str, Any] | None = None
    name: str = "optuna"
    several = True

    def __post_init__(self) -> None:
        check_int("optimiser.seed", self.seed, 0)
        check_int("optimiser.population", self.population, 2)
        object.__setattr__(self, "options", dict(self.options or {}))

    def minimise(self, space: Space, evaluate: Evaluate, teacher=None) -> None:
        optuna = _optuna(self.name)
        distributions = {
            f"x{i:04d}": optuna.distributions.IntDistribution(low, high) for i, (low, high) in enumerate(space.bounds)
        }
        rng = np.random.default_rng(self.seed)
        first = list(space.seeds)
        first += [space.random(rng) for _ in range(self.population - len(first))]
        study = None
        while True:
            if study is None:
                trials, vectors = [None] * len(first), first
            else:
                trials = [study.ask(distributions) for _ in range(self.population)]
                vectors = [tuple(trial.params[name] for name in distributions) for trial in trials]
            points = evaluate(vectors)
            if study is None:
                study = self._study(optuna, space, distributions, len(points[0]))
                for vector in first:
                    study.enqueue_trial(dict(zip(distributions, map(int, vector), strict=True)))
                trials = [study.ask(distributions) for _ in first]
            for trial, point in zip(trials, points, strict=True):
                finite = all(np.isfinite(point))
                study.tell(trial, list(point) if finite else None, state=None if finite else _failed(optuna))

    def _study(self, optuna: Any, space: Space, distributions: Mapping[str, Any], objectives: int) -> Any:
        base = getattr(optuna.samplers, self.sampler, None)
        if base is None:
            raise ConfigError(f"optuna has no sampler {self.sampler!r}; use optimiser=nsga2 or optimiser=tpe.")

        class Canonical(base):
            def before_trial(self, study, trial):
                super().before_trial(study, trial)
                if hasattr(self, "get_trial_generation"):
                    # Optuna counts the trials of a generation as it samples them, and given ones are not sampled.
                    self.get_trial_generation(study, trial)

            def sample_relative(self, study, trial, search_space):
                drawn = super().sample_relative(study, trial, search_space)
                values = [
                    drawn[name] if name in drawn else self.sample_independent(study, trial, name, distribution)
                    for name, distribution in distributions.items()
                ]
                named = zip(distributions, space.canonical(values), strict=True)
                return {name: value for name, value in named if name in search_space}

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = Canonical(seed=self.seed, **self.options)
        return optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)


def _failed(optuna: Any) -> Any:
    return optuna.trial.TrialState.FAIL


def _optuna(name: str) -> Any:
    without = ", or use optimiser=evolution, coordinate or random, which need nothing more"
    optuna = needs("optuna", "search", f"optimiser={name}", without)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
