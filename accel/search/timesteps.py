"""Timestep search: which K timesteps a sampler should evaluate the model at.

The space is that of `accel.search.spaces.TimestepSpace`; hand-made grids are where the search begins. What was found
is written as a searched grid: `grid=searched grid.path=<record>` runs it, and so does `grid=explicit` with its list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from accel.config import choice_of, groups
from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError, unknown
from accel.samplers.grids import GRID_OPTIONS, ExplicitGrid
from accel.search.base import Room, Search, schedule_of, weights_of
from accel.search.objective import Objective
from accel.search.spaces import TimestepSpace


@dataclass(frozen=True)
class TimestepSearch(Search):
    """`start`: `free`, or `last` for a first timestep fixed at the schedule's last one. `grids` (choices of conf/grid)
    are where the search begins; scores are relative to the first of them. Those of `compare` are evaluated beside what
    is found."""

    start: str = "free"
    grids: Sequence[str] = ("trailing",)
    compare: Sequence[str] = ()
    name = "timesteps"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "grids", tuple(self.grids))
        object.__setattr__(self, "compare", tuple(self.compare))
        for setting in ("grids", "compare"):
            for name in getattr(self, setting):
                if name not in groups()["grid"]:
                    raise unknown(f"grid in search.{setting}", str(name), groups()["grid"])
        if not self.grids:
            raise ConfigError("search.grids is empty; allowed: choices of grid, the first of which is the reference.")

    @property
    def label(self) -> str:
        return "" if self.start == "free" else f"start={self.start}"

    def check_base(self, base: Recipe) -> None:
        """ConfigError if `base` says which timesteps: every candidate has some of its own in their place."""
        options = getattr(base.sampler, "options", {})
        said = [f"grid={base.grid.name}"] if base.grid else []
        said += [f"sampler.options.{key}={options[key]}" for key in GRID_OPTIONS if options.get(key)]
        if said:
            raise ConfigError(
                f"a search of timesteps is asked for {' and '.join(said)}, which it would replace; leave that out. "
                "search.grids says where it begins, search.compare which grids are evaluated beside what is found."
            )

    def space(self, base: Recipe, schedule: Any) -> TimestepSpace:
        """The space of `base`'s timesteps; IncompatibleError for a sampler that has no explicit ones."""
        self.check_base(base)
        if base.sampler is None or base.sampler.calibrated:
            name = base.sampler.name if base.sampler else "none"
            raise IncompatibleError(
                f"the timesteps of sampler={name} cannot be searched, as it is calibrated for its grid or has none; "
                "use one with coefficients of its own, such as ddim_accel, dpmpp_2m or deis_tab."
            )
        return TimestepSpace(base, schedule, tuple(choice_of("grid", name) for name in self.grids), self.start)

    def compared(self, base: Recipe) -> dict[str, Recipe]:
        made = {name: choice_of("grid", name) for name in dict.fromkeys((self.grids[0], *self.compare))}
        return {name: replace(base, grid=grid) for name, grid in made.items()}

    def overrides(self, record: dict[str, Any]) -> list[str]:
        times = record["timesteps"]
        return [f"sampler.steps={len(times)}", "grid=explicit", f"grid.timesteps=[{','.join(map(str, times))}]"]

    def found(self, base: Recipe, record: dict[str, Any]) -> Recipe:
        sampler = replace(base.sampler, steps=len(record["timesteps"]))
        return replace(base, sampler=sampler, grid=ExplicitGrid(timesteps=tuple(record["timesteps"])))

    def run(self, room: Room) -> dict[str, Any]:
        with room.evaluator() as evaluator:
            runner = evaluator.runner
            space = self.space(room.base, schedule_of(runner.pipe))
            objective, chosen = room.minimise(space, evaluator, self.budget - room.reserve(evaluator))
            trials = [chosen] if chosen else objective.some(objective.finished())[: self.finalists]
            found = room.rescored(trials, evaluator)
            best = found[0]["trial"]
            return room.record(
                **grid_of_record(runner, best.recipe),
                label=best.recipe.label,
                scores={"search": found[0]["search"], "fresh": found[0]["fresh"],
                        "reference": objective.reference.scores[self.halving.rungs[-1]]},
                finalists=[{"candidate": space.label(f["trial"].vector), "search": f["search"], "fresh": f["fresh"]}
                           for f in found],
                history=history(objective),
            )  # fmt: skip


def grid_of_record(runner: Any, recipe: Recipe) -> dict[str, Any]:
    """What makes a record a file for `grid=searched`: timesteps, and the noise schedule and weights they are for."""
    return {
        "timesteps": list(recipe.grid.timesteps),
        "schedule": schedule_of(runner.pipe).identity,
        "weights": weights_of(runner, recipe),
    }


def history(objective: Objective) -> list[dict[str, Any]]:
    """Every candidate in the order of its first score, with all its scores by number of samples."""
    return [
        {"candidate": objective.space.label(t.vector), "scores": {str(n): finite(v) for n, v in t.scores.items()}}
        for t in objective.trials.values()
        if t.scores
    ]


def finite(value: float) -> float | None:
    """A number for JSON, None for one that is not finite."""
    return value if abs(value) < float("inf") else None
