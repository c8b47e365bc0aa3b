"""The objective that optimisers minimise: scores on a few samples first, on more of them only for who does well.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943; the promotion rule is that of Li et al. 2020, "A System
for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934): all candidates are scored on n_0 samples; one whose
score is among the best share `keep` of all that were ever scored on n_k is scored on n_{k+1} = 2 n_k as well. The first
n_k samples of n_{k+1} are the same ones, so nothing is generated twice.

What an optimiser is told is the score on the most samples n that a candidate got, less that of a reference (the uniform
schedule) on the same n samples: FID is biased by about c / n, and a difference on common seeds is free of most of that,
so that candidates which got different n can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from accel.core.recipe import Recipe
from accel.errors import ConfigError, check_float, check_int
from accel.search.evaluations import Evaluator
from accel.search.pareto import order
from accel.search.spaces import Space, Vector
from accel.studies.estimate import rows_per_image

STALLED = 100  # batches without a new candidate after which a search counts as exhausted; one where all have been tried
OVER = 1e9  # above any score: of candidates over the limit


class BudgetSpent(Exception):
    """Ends an optimiser: its budget of network evaluations is spent, or the space holds nothing new."""


@dataclass(frozen=True)
class Halving:
    """`first` samples for every candidate, doubled `doublings` times for the best share `keep` of them."""

    first: int = 64
    doublings: int = 2
    keep: float = 0.5

    def __post_init__(self) -> None:
        check_int("search.halving.first", self.first, 2)
        check_int("search.halving.doublings", self.doublings, 0, 16)
        check_float("search.halving.keep", self.keep, 0.0, 1.0)

    @property
    def rungs(self) -> tuple[int, ...]:
        """n_0, n_1, ...: each twice the one before."""
        return tuple(self.first * 2**k for k in range(self.doublings + 1))


@dataclass
class Ledger:
    """What a search has spent: network evaluations (rows of a batch) and seconds; a score is paid for once."""

    nfe: int = 0
    seconds: float = 0.0
    paid: set[tuple] = field(default_factory=set)

    def charge(self, what: tuple, nfe: int, seconds: float) -> None:
        if what not in self.paid:
            self.paid.add(what)
            self.nfe += nfe
            self.seconds += seconds


@dataclass
class Trial:
    """A candidate: its scores by number of samples, and its further `costs` (None: refused). Only what is `allowed`,
    neither refused nor over the limit, is scored."""

    vector: Vector
    recipe: Recipe
    costs: tuple[float, ...] | None = ()
    allowed: bool = True
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The most samples that it was scored on."""
        return max(self.scores, default=0)


class Objective:
    """`objective(vectors)` -> what to minimise, one tuple of numbers each: the score, then any `costs`.

    `budget`: what `ledger` may reach; then, or when the space holds nothing new, BudgetSpent is raised. `reference`:
    the recipe that scores are relative to (None: the space's first seed). `costs(recipe)`: further objectives, known
    without sampling, or None for a recipe that must not be run; `limit`: the most that each of them may be. ConfigError
    if the budget does not even reach for the reference.
    """

    def __init__(
        self,
        space: Space,
        evaluator: Evaluator,
        halving: Halving,
        budget: int,
        ledger: Ledger | None = None,
        reference: Recipe | None = None,
        costs: Callable[[Recipe], tuple[float, ...] | None] = lambda recipe: (),
        on_trial: Callable[[Objective], None] = lambda objective: None,
        limit: float | None = None,
    ) -> None:
        self.space, self.evaluator, self.halving, self.budget = space, evaluator, halving, budget
        self.ledger, self.costs, self.on_trial = ledger or Ledger(), costs, on_trial
        self.limit = math.inf if limit is None else limit
        self.trials: dict[Vector, Trial] = {}
        self._stalled = 0
        self._candidates = math.prod(high - low + 1 for low, high in space.bounds)  # at most, as some have two names
        space.check()
        first = space.canonical(space.seeds[0])
        self.reference = self._trial(first) if reference is None else Trial((), reference)
        self._objectives = 1 + len(costs(space.recipe(first)) or ())
        top = halving.rungs[-1]
        if (least := rows_per_image(self.reference.recipe) * top) > budget:
            raise ConfigError(
                f"beside its finalists the search has a budget of {max(0, budget)} network evaluations, but to score "
                f"one candidate alone takes {least} ({least // top} for each of {top} samples); allowed: search.budget "
                "of several times that, or fewer samples (search.halving.first, search.halving.doublings)."
            )
        for n in halving.rungs:  # everything is held against it, so it is scored on all samples
            self._score([self.reference], n)

    def __call__(self, vectors: Sequence[Vector]) -> list[tuple[float, ...]]:
        vectors = [self.space.canonical(v) for v in vectors]
        new = [self._trial(v) for v in dict.fromkeys(vectors) if v not in self.trials]
        wanted = [trial for trial in new if trial.allowed]
        self._stalled = 0 if wanted else self._stalled + 1
        batch, rungs = self._affordable(wanted, self.halving.first), self.halving.rungs
        spent = len(batch) < len(wanted)
        for n, more in zip(rungs, (*rungs[1:], None), strict=True):
            self._score(batch, n)
            if more is not None:
                batch = self._affordable(self._best(batch, n), more - n)
        self.on_trial(self)
        if spent or self._stalled > (STALLED if len(self.trials) < self._candidates else 0):
            raise BudgetSpent
        return [self.point(self.trials[v]) for v in vectors]

    def point(self, trial: Trial) -> tuple[float, ...]:
        """What an optimiser is told of a trial; infinite for one that was refused. One over the limit is worse than
        all that are not, and the better the nearer it comes to the limit (Deb et al. 2002, constrained domination)."""
        if trial.costs is None:
            return (math.inf,) * self._objectives
        if not trial.allowed:
            return OVER + max(trial.costs), *trial.costs
        return self.relative(trial, trial.n), *trial.costs

    def relative(self, trial: Trial, n: int) -> float:
        """Its score on n samples less that of the reference."""
        return trial.scores[n] - self.reference.scores[n]

    def finished(self) -> list[Trial]:
        """The trials that were scored on the most samples, from best to worst."""
        last = [t for t in self.trials.values() if t.n == self.halving.rungs[-1] and math.isfinite(t.scores[t.n])]
        return [last[i] for i in order([self.point(t) for t in last])]

    def some(self, trials: list[Trial]) -> list[Trial]:
        """`trials`; ConfigError, with what mends it, if a search has come to none."""
        if not trials:
            top, refused = self.halving.rungs[-1], sum(not t.allowed for t in self.trials.values())
            raise ConfigError(
                f"the search tried {len(self.trials)} candidates and scored none on {top} samples with a finite "
                f"result; {refused} were refused or over search.limit. Give it a larger search.budget (now "
                f"{self.budget} network evaluations), fewer samples (search.halving.first, search.halving.doublings) "
                "or a higher limit."
            )
        return trials

    @property
    def best(self) -> Trial:
        """The best of the trials so far that were scored on the most samples."""
        return next(iter(self.finished()), self.reference)

    def _best(self, batch: list[Trial], n: int) -> list[Trial]:
        # Those of the batch that are among the best share of all that were ever scored on n samples.
        seen = [t for t in self.trials.values() if n in t.scores]
        ranked = order([(self.relative(t, n), *t.costs) for t in seen])
        best = {id(seen[i]) for i in ranked[: math.ceil(self.halving.keep * len(seen))]}
        return [t for t in batch if id(t) in best and math.isfinite(t.scores[n])]

    def _trial(self, vector: Vector) -> Trial:
        if vector not in self.trials:
            recipe = self.space.recipe(vector)
            costs = self.costs(recipe)
            allowed = costs is not None and all(cost <= self.limit for cost in costs)
            self.trials[vector] = Trial(vector, recipe, costs, allowed)
        return self.trials[vector]

    def _affordable(self, trials: list[Trial], samples: int) -> list[Trial]:
        spent = self.ledger.nfe + np.cumsum([rows_per_image(t.recipe) * samples for t in trials])
        return trials[: int(np.searchsorted(spent, self.budget, "right"))]

    def _score(self, trials: list[Trial], n: int) -> None:
        if not trials:
            return
        scores = self.evaluator([t.recipe for t in trials], n)
        for trial, score in zip(trials, scores, strict=True):
            nfe = rows_per_image(trial.recipe) * (n - trial.n)
            self.ledger.charge((self.evaluator.key(trial.recipe), n), nfe, score.seconds)
            trial.scores[n] = score.value
