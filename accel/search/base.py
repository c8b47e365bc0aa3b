"""What all searches share: settings, seeds, the race to the finalists, and their scores on fresh seeds.

The lowest of many noisy scores is too good (the winner's curse), so the score that a search ends with is never what is
reported: `finalists` are scored again on other seeds, the best of them there is what was found, and tables evaluate it
on a third set of seeds, that of every other run.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from accel.core.recipe import Recipe
from accel.digests import weights_hex
from accel.errors import ConfigError, check_int
from accel.files import load_tensors, save_tensors
from accel.locks import locked
from accel.records import describe, digest
from accel.samplers.noise_schedule import noise_schedule
from accel.search.evaluations import Evaluator, Task
from accel.search.objective import BudgetSpent, Halving, Ledger, Objective, Trial
from accel.search.optimisers.base import Optimiser, Teacher
from accel.search.spaces import Space
from accel.search.teacher import jump_costs, teacher_times
from accel.studies.estimate import rows_per_image
from accel.studies.evaluation import Evaluation
from accel.suites.base import Suite

SEARCH_SEED, FRESH_SEED = 2_000_003, 3_000_017  # the search's `seed` is added; no evaluation may have them

Progress = Callable[[Objective], None]


@dataclass(frozen=True)
class Search(ABC):
    """Settings of a search. `budget`: network evaluations in all, those of the finalists included.

    `metric` (accel.search.evaluations.METRICS) is what candidates are scored by on the search's own seeds, `rescore_n`
    how many samples of fresh seeds each of the `finalists` gets. `workers` processes share the scoring; that changes no
    result but its rounding.
    """

    metric: str = "fid"
    halving: Halving = field(default_factory=Halving)
    budget: int = 100_000
    finalists: int = 5
    rescore_n: int = 256
    seed: int = 0
    workers: int = 1
    EPOCH = 1
    name = "search"
    several = False  # whether it finds many recipes, which are then a study of their own

    def __post_init__(self) -> None:
        check_int("search.budget", self.budget, 1)
        check_int("search.finalists", self.finalists, 1)
        check_int("search.rescore_n", self.rescore_n, 2)
        check_int("search.seed", self.seed, 0, 10_000)
        check_int("search.workers", self.workers, 1, 8 * (os.cpu_count() or 1))
        if not isinstance(self.halving, Halving):
            raise ConfigError(f"search.halving is {self.halving!r}; allowed: first, doublings and keep.")

    @property
    def label(self) -> str:
        """Short, for tables; empty for what is most usual."""
        return self.name

    @abstractmethod
    def run(self, room: Room) -> dict[str, Any]:
        """Search and return what belongs in the record: what was found, and how."""

    @abstractmethod
    def compared(self, base: Recipe) -> dict[str, Recipe]:
        """The hand-made recipes, by name, that what is found for `base` is evaluated beside."""

    @abstractmethod
    def overrides(self, record: dict[str, Any]) -> list[str]:
        """What was found, as settings of the command line."""

    @abstractmethod
    def found(self, base: Recipe, record: dict[str, Any]) -> Recipe:
        """What was found, as a recipe on the model and guidance of `base`."""

    def identity(self) -> dict[str, Any]:
        """The settings that change the result."""
        return {k: v for k, v in describe(self).items() if k not in ("workers", "compare")}

    def check_base(self, base: Recipe) -> None:  # noqa: B027 (most searches replace nothing)
        """ConfigError for settings of `base` that what is found would replace without a word."""

    def check_seed(self, evaluation: Evaluation) -> None:
        """ConfigError if results would be evaluated on the seeds that the search selects by."""
        if taken := {SEARCH_SEED + self.seed, FRESH_SEED + self.seed}.intersection(evaluation.seeds):
            raise ConfigError(
                f"evaluation.seed {min(taken)} is one that the search selects by; choose another, such as 0."
            )


@dataclass
class Room:
    """One search being run: the model and sampler of `base`, an optimiser, and where things are kept."""

    search: Search
    optimiser: Optimiser
    base: Recipe
    suite: Suite
    evaluation: Evaluation
    root: Path
    say: Callable[[str], None] = lambda message: None
    on_trial: Progress = lambda objective: None
    ledger: Ledger = field(default_factory=Ledger)

    def evaluator(self) -> Evaluator:
        """Scores on the search's seeds; what is asked to be timed (search.cost=ms) is timed as results are."""
        s = self.search
        top = max(s.halving.rungs[-1], 60)
        own = replace(
            self.evaluation, n=top, seed=SEARCH_SEED + s.seed, distance_n=top, shard=s.halving.first, timing=True
        )
        return Evaluator(Task(self.suite, own, self.root, s.metric), s.workers, self.say)

    def minimise(
        self, space: Space, evaluator: Evaluator, budget: int, reference: Recipe | None = None
    ) -> tuple[Objective, Trial | None]:
        """Run the optimiser on `space` until the ledger has `budget`; the objective, and the trial that it decided
        for, if it decides by itself."""
        space.check()
        evaluator.runner.check(space.recipe(space.canonical(space.seeds[0])))
        self._pay_converged(evaluator)
        objective = Objective(
            space, evaluator, self.search.halving, budget, self.ledger, reference, on_trial=self.on_trial
        )
        teacher = Teacher(lambda *a: self._jumps(evaluator, *a))
        return objective, self.search_until_spent(space, objective, teacher)

    def search_until_spent(self, space: Space, objective: Objective, teacher: Teacher | None = None) -> Trial | None:
        """Run the optimiser until the budget is spent; the trial that it decided for, if it decides by itself."""
        chosen = None
        with suppress(BudgetSpent):
            chosen = self.optimiser.minimise(space, objective, teacher)
        return None if chosen is None else objective.trials.get(space.canonical(chosen))

    def reserve(self, evaluator: Evaluator, steps: int | None = None) -> int:
        """What scoring the finalists, of at most so many steps, on fresh seeds will take."""
        n = max(self.search.rescore_n, 60)
        fresh = evaluator.on_fresh(FRESH_SEED + self.search.seed, n).exact_nfe(self.base)
        largest = replace(self.base, sampler=replace(self.base.sampler, steps=steps)) if steps else self.base
        return self.search.finalists * self.search.rescore_n * rows_per_image(largest) + fresh

    def _pay_converged(self, evaluator: Evaluator) -> None:
        key, nfe, seconds = evaluator.converged(self.base)
        self.ledger.charge((key,), nfe, seconds)

    def rescored(self, trials: Sequence[Trial], evaluator: Evaluator) -> list[dict[str, Any]]:
        """The trials with their scores on the search's seeds and on fresh ones, from best to worst on the latter."""
        n, top = self.search.rescore_n, self.search.halving.rungs[-1]
        found = []
        with evaluator.on_fresh(FRESH_SEED + self.search.seed, max(n, 60)) as fresh:
            self._pay_converged(fresh)
            for trial, score in zip(trials, fresh([t.recipe for t in trials], n), strict=True):
                self.ledger.charge((fresh.key(trial.recipe), n), rows_per_image(trial.recipe) * n, score.seconds)
                found.append({"trial": trial, "search": trial.scores.get(top), "fresh": score.value})
        return sorted(found, key=lambda f: f["fresh"])

    def record(self, **found: Any) -> dict[str, Any]:
        """What every search's record says beside what was found."""
        return {
            "kind": "search",
            "id": self.key,
            "method": self.search.name,
            "suite": self.suite.name,
            "base": describe(self.base),
            "guidance_scale": self.base.guidance_scale,
            "optimiser": {"label": self.optimiser.label} | describe(self.optimiser),
            "settings": self.search.identity(),
            "cost": {"nfe": self.ledger.nfe, "seconds": round(self.ledger.seconds, 2)},
        } | found

    @property
    def key(self) -> str:
        """Id of the search: all that its result depends on."""
        return digest({"suite": self.suite.name, "weights": self.suite.fingerprint(), "base": describe(self.base),
                       "reference": self.suite.reference_identity(), "search": self.search.identity(),
                       "optimiser": describe(self.optimiser)})  # fmt: skip

    def _jumps(self, evaluator: Evaluator, grid: str, nodes: int, samples: int, metric: str):
        # One teacher serves every sampler and number of steps: what it found is kept.
        runner, schedule = evaluator.runner, schedule_of(evaluator.runner.pipe)
        times = teacher_times(schedule, grid, nodes)
        alone = describe(Recipe(guidance=self.base.guidance, stitch=self.base.stitch))
        key = digest({"suite": self.suite.name, "weights": self.suite.fingerprint(), "recipe": alone, "metric": metric,
                      "times": times.tolist(), "samples": samples, "seed": runner.evaluation.seeds[0]})  # fmt: skip
        path = self.root / "artefacts" / "search" / f"jumps-{key}.safetensors"
        with locked(path.with_name(f".{path.stem}.lock")):
            kept = load_tensors(path)
            if kept is None:
                started = time.perf_counter()
                costs = torch.from_numpy(jump_costs(runner, self.base, times, samples, metric))
                kept = {"costs": costs, "seconds": torch.tensor(time.perf_counter() - started)}
                save_tensors(path, kept)
        self.ledger.charge(("jumps", key), len(times) * samples * _rows(self.base), float(kept["seconds"]))
        return times, kept["costs"].numpy()


def _rows(recipe: Recipe) -> int:
    return math.ceil(rows_per_image(recipe) / max(1, recipe.sampler.evaluations))


def schedule_of(pipe: Any) -> Any:
    """The noise schedule of a pipeline's model."""
    return noise_schedule(pipe.scheduler.config)


def weights_of(runner: Any, recipe: Recipe) -> dict[str, str]:
    """A digest of the weights of each network that a recipe runs, by name."""
    nets = recipe.nets(runner.pipe, runner.models)
    return {name: weights_hex(net) for name, net in nets.items()}
