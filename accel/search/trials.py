"""The trials of a search as they come: what a run that is looked at while it goes on shows of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from accel.search.objective import Ledger, Objective


class Trials:
    """Numbers the trials of a search through all of its stages, each of which has an objective of its own."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._stages: list[Objective] = []
        self._seen: list[int] = []  # trials told of each stage
        self._best: list[float] = []  # of each stage, in scores less that of its reference

    def new(self, objective: Objective) -> Iterator[dict[str, Any]]:
        """A row for each trial that was not told yet: `trial`, `stage`, `recipe`, its `score` less that of the
        reference on its `n` samples (None: refused), further costs as `cost`, `cost2` ..., `best`, the best score so
        far on the most samples, and `nfe` and `seconds`, which all trials so far have cost."""
        if objective not in self._stages:
            self._stages.append(objective)
            self._seen.append(0)
            self._best.append(math.inf)
        stage = self._stages.index(objective)
        trials = list(objective.trials.values())
        for trial in trials[self._seen[stage] :]:
            score = objective.relative(trial, trial.n) if trial.n else None
            if score is not None and trial.n == objective.halving.rungs[-1]:
                self._best[stage] = min(self._best[stage], score)
            self._seen[stage] += 1
            costs = {f"cost{i or ''}": cost for i, cost in enumerate(trial.costs or ())}
            best = self._best[stage]
            yield {
                "trial": sum(self._seen),
                "stage": stage,
                "recipe": objective.space.label(trial.vector) if trial.vector else trial.recipe.label,
                "score": score if score is None or math.isfinite(score) else None,
                "n": trial.n,
                **costs,
                "best": best if math.isfinite(best) else None,
                "nfe": self.ledger.nfe,
                "seconds": self.ledger.seconds,
            }
