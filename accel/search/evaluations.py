"""Scores of candidates by the harness's own shards, kept one by one, so that a search that was killed goes on.

A candidate's samples are those of a run with the search's seed: sample i has the same noise and the same condition for
every candidate (common random numbers), and shards are reused when a candidate is scored on more of them. Every score
is appended to a file as soon as it is known. Optimisers are deterministic functions of the scores they have seen, so a
search that starts again walks the same way over the stored scores, at no cost, and on from where it was stopped: its
result is that of one that was never stopped. That holds for any optimiser, also one that cannot save its state.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from accel.core.recipe import Recipe
from accel.errors import ConfigError, DivergedError, check_int, unknown
from accel.evaluation.score import distances
from accel.files import file_name, writing
from accel.locks import locked
from accel.metrics.fid import FrechetDistance
from accel.records import Results, canonical, digest
from accel.studies.estimate import rows_per_image
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.base import Suite

EPOCH = 1  # raise when a change alters the scores of the same samples


@dataclass(frozen=True)
class Score:
    """A candidate's score on its first n samples (lower is better; inf: it diverged), and the seconds it took."""

    value: float
    seconds: float


@dataclass(frozen=True)
class Task:
    """What a process needs to know to score recipes: pickled once for each worker.

    `metric`: `fid`, in the suite's feature space, to real images that no record's reference holds (the held-out ones,
    if the suite has any); `distance`, the mean RMS difference to the converged trajectories of the same seeds; or a
    score of single samples that the suite has (PER_SAMPLE), the mean of which is to become large: its negative is used.
    """

    suite: Suite
    evaluation: Evaluation
    root: Path
    metric: str = "fid"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown("search.metric", str(self.metric), METRICS)
        if self.metric == "fid" and self.suite.feature_space is None:
            raise ConfigError(
                f"suite {self.suite.name!r} has no feature network, so no FID to search by; use search.metric=distance."
            )


class Scorer:
    """Scores recipes of one task, in this process."""

    def __init__(self, task: Task, say: Callable[[str], None] = lambda message: None) -> None:
        self.task = task
        self.runner = Runner(task.suite, task.evaluation, Results(task.root), say)
        self._exact: dict[str, torch.Tensor] = {}

    def __call__(self, recipe: Recipe, n: int) -> Score:
        """The score of `recipe` on its first n samples; shards that are there are not generated again."""
        started = time.perf_counter()
        try:
            value = METRICS[self.task.metric](self, recipe, n)
        except DivergedError:
            value = math.inf
        return Score(value, time.perf_counter() - started)

    @cached_property
    def frechet(self) -> FrechetDistance:
        """FID to the search's own reference: selecting on the one that results are reported with would be cheating."""
        suite = self.task.suite
        held_out = suite.held_out()
        if held_out is None:
            return FrechetDistance(suite.reference().features)
        with torch.inference_mode():
            return FrechetDistance(suite.features(held_out[0]).double())

    def exact(self, recipe: Recipe) -> torch.Tensor:
        """The converged images under the recipe's guidance, kept: every candidate is held against them."""
        key = self.runner.generation_id(self.task.suite.converged(recipe.exact_guidance))
        if key not in self._exact:
            self._exact[key] = self.runner.converged_images(recipe)
        return self._exact[key]

    def shards(self, recipe: Recipe, n: int) -> dict[str, torch.Tensor]:
        return self.runner.shards(recipe, n, self.runner.artefacts(recipe)[0])


def _fid(scorer: Scorer, recipe: Recipe, n: int) -> float:
    return scorer.frechet(scorer.shards(recipe, n)["features"].double().flatten(0, -2))


def _distance(scorer: Scorer, recipe: Recipe, n: int) -> float:
    exact = scorer.exact(recipe)[:n]
    return float(distances(scorer.shards(recipe, n)["images"][:n], exact).mean())


def _mean(name: str) -> Callable[[Scorer, Recipe, int], float]:
    def metric(scorer: Scorer, recipe: Recipe, n: int) -> float:
        shards = scorer.shards(recipe, n)
        if f"score.{name}" not in shards:
            allowed = ["fid", "distance", *(other for other in PER_SAMPLE if f"score.{other}" in shards)]
            raise ConfigError(
                f"suite {scorer.task.suite.name!r} has no {name} to search by; allowed for search.metric: "
                f"{', '.join(allowed)}."
            )
        return -float(shards[f"score.{name}"].double().mean())

    return metric


PER_SAMPLE = ("adherence", "exact", "clip_score", "accuracy")
METRICS: dict[str, Callable[[Scorer, Recipe, int], float]] = {
    "fid": _fid,
    "distance": _distance,
    **{name: _mean(name) for name in PER_SAMPLE},
}


class Memory:
    """Numbers that were computed before, by key: a file of one JSON line each, appended to and never rewritten.

    A line that is damaged, or cut off by a kill, is passed over and its number computed again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.known, self._read = path, {}, 0
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes have appended."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                if (entry := _checked(line)) is not None:
                    self.known[entry["key"]] = entry["found"]

    def add(self, key: str, found: dict[str, Any]) -> None:
        """Keep what was found for `key`, unless another process was faster: then what that found."""
        line = canonical({"key": key, "found": found})
        with locked(self.path.with_suffix(".lock")), writing(self.path):
            self.refresh()
            if key in self.known:
                return
            whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
            with self.path.open("ab") as file:
                file.write(("" if whole else "\n").encode() + f"{_sum(line)} {line}\n".encode())
        self.known[key] = found


def _sum(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:8]


def _checked(line: bytes) -> dict[str, Any] | None:
    try:
        told, _, text = line.decode().rstrip("\n").partition(" ")
        return json.loads(text) if told == _sum(text) else None
    except ValueError:
        return None


@dataclass
class Evaluator(AbstractContextManager):
    """Scores of recipes: from memory, else computed by `workers` processes (1: this one). A context: it ends them."""

    task: Task
    workers: int = 1
    say: Callable[[str], None] = lambda message: None
    computed: int = field(default=0, init=False)  # scores that were not in memory

    def __post_init__(self) -> None:
        check_int("search.workers", self.workers, 1)
        self.scorer = Scorer(self.task, self.say)
        identity = {"metric": self.task.metric, "epoch": EPOCH, "shard": self.task.evaluation.shard}
        folder = self.task.root / "artefacts" / "search"
        self.memory = Memory(folder / f"{file_name(self.task.suite.name)}-{digest(identity | self._compared())}.jsonl")
        self._pool: ProcessPoolExecutor | None = None

    def _compared(self) -> dict[str, Any]:
        if self.task.metric == "fid":
            return {"reference": self.task.suite.reference_identity(), "scoring": self.task.suite.scoring()}
        if self.task.metric in PER_SAMPLE:
            return {"scoring": self.task.suite.scoring()}
        return {"compared": self.runner.generation_id(self.task.suite.converged(None))}

    @property
    def runner(self) -> Runner:
        return self.scorer.runner

    def key(self, recipe: Recipe) -> str:
        """What identifies a candidate: its samples."""
        return self.runner.generation_id(recipe)

    def on_fresh(self, seed: int, n: int) -> Evaluator:
        """The same scores on up to n samples of another seed."""
        other = replace(self.task.evaluation, seed=seed, n=n, distance_n=n)
        return Evaluator(replace(self.task, evaluation=other), self.workers, self.say)

    def __call__(self, recipes: Sequence[Recipe], n: int) -> list[Score]:
        """The scores of `recipes` on their first n samples, in order; each is stored once it is known."""
        self.memory.refresh()
        keys = [f"{self.key(recipe)}/{n}" for recipe in recipes]
        todo = {key: recipe for key, recipe in zip(keys, recipes, strict=True) if key not in self.memory.known}
        for key, score in zip(todo, self._scores(list(todo.values()), n), strict=True):
            value = score.value if math.isfinite(score.value) else None
            self.memory.add(key, {"value": value, "seconds": round(score.seconds, 4)})
            self.computed += 1
        found = [self.memory.known[key] for key in keys]
        return [Score(math.inf if f["value"] is None else f["value"], f["seconds"]) for f in found]

    def converged(self, recipe: Recipe) -> tuple[str, int, float]:
        """The converged trajectories that distances are taken to, made now: id, network evaluations, seconds; no
        evaluations where the metric needs none, or the suite solves the ODE exactly."""
        if not self.exact_nfe(recipe):
            return "none", 0, 0.0
        runner, exact = self.runner, self.task.suite.converged(recipe.exact_guidance)
        key = f"converged/{self.key(exact)}/{runner.evaluation.compared}"
        if key not in self.memory.known:
            started = time.perf_counter()
            runner.converged_images(recipe)
            self.memory.add(key, {"seconds": round(time.perf_counter() - started, 4)})
        return key, self.exact_nfe(recipe), self.memory.known[key]["seconds"]

    def exact_nfe(self, recipe: Recipe) -> int:
        """Network evaluations of the converged trajectories that the metric needs."""
        suite, guidance = self.task.suite, recipe.exact_guidance
        if self.task.metric != "distance" or suite.solves(guidance):
            return 0
        return rows_per_image(suite.converged(guidance)) * self.runner.evaluation.compared

    def _scores(self, recipes: list[Recipe], n: int) -> Iterator[Score]:
        if self.workers == 1 or len(recipes) < 2:
            yield from (self.scorer(recipe, n) for recipe in recipes)
            return
        if self._pool is None:
            # What all workers need, such as the converged images, is made once, with the first candidate.
            yield self.scorer(recipes[0], n)
            recipes, threads = recipes[1:], max(1, torch.get_num_threads() // self.workers)
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _begin, (self.task, threads))
        yield from self._pool.map(_score, recipes, [n] * len(recipes))

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


_here: dict[str, Scorer] = {}  # of a worker process


def _begin(task: Task, threads: int) -> None:
    torch.set_num_threads(threads)
    _here["scorer"] = Scorer(task)


def _score(recipe: Recipe, n: int) -> Score:
    return _here["scorer"](recipe, n)
