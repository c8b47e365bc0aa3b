"""What a command asks for, whatever is then done with its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from accel.core.recipe import Recipe
from accel.errors import check_name
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.studies.evaluation import Evaluation
from accel.studies.plain import PlainFront
from accel.suites.base import Suite


@dataclass
class Request:
    """A study by name, of one suite, evaluated in one way into one results folder; differences are to `baseline`.

    `merge`: keep the rows that an earlier command put into the same study. `front`: the best plain samplers of the
    suite (None: each recipe's own); `conventional`: the sampler that everybody knows. ConfigError for a name that is
    none.
    """

    name: str
    title: str
    suite: Suite
    evaluation: Evaluation
    results: Results
    baseline: Recipe
    cells: Sequence[Any]
    merge: bool = False
    console: Console = field(default_factory=Console)
    front: PlainFront | None = None
    conventional: Recipe | None = None

    def __post_init__(self) -> None:
        self.name = check_name("study", self.name)

    @property
    def margins(self) -> Margins:
        """Those of the evaluation, with the suite's own least margin of FID where none is given."""
        own = self.evaluation.margins
        return own if own.fid_least is not None else replace(own, fid_least=self.suite.fid_margin)

    @property
    def against(self) -> dict[str, Recipe]:
        """What recipes are held against beside the baseline, by role, under the baseline's guidance: the conventional
        sampler and the best plain one."""
        base, found = self.baseline.unaccelerated, {}
        if self.conventional is not None:
            found["conventional"] = replace(base, sampler=self.conventional.sampler, grid=self.conventional.grid)
        if self.front is not None and (best := self.front.best_for(base)) is not None:
            found["plain"] = best
        return found if self.evaluation.controls else {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has no screen."""
        return self.__dict__ | {"console": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"console": Console(quiet=True)})

    def ready(self) -> None:
        """See to it, before any work, that results can be saved, and how those who share the folder lock it."""
        kind = self.results.ready()
        if kind.name != "flock":
            self.say(f"{self.results.root} is locked by leases of {kind.seconds:g} s ({kind.why}).")

    def say(self, message: str) -> None:
        """Print a message as it is."""
        self.console.print(message, markup=False, highlight=False)
