"""AutoDiffusion: timesteps first, then timesteps together with the blocks that are left out at each of them.

Li et al. 2023, "AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model
Acceleration" (arXiv:2309.10438). The cost of a trajectory is the number of units (`accel.caching.blocks`) that it runs;
K steps of the whole network of U units are the budget, K U. Two stages:

1. K timesteps of the whole network, until the stage's share of the budget is spent;
2. with ever more units left out: k = K + 1, K + 2, ... steps, as long as the share of units that is left out,
   1 - K / k, is at most `max_skipped`. A candidate is a set of k timesteps and a set of (k - K) U of the k U units,
   both in the strictly increasing encoding, so that each costs exactly the budget. A stage begins with the best
   timesteps so far, one more put into their widest gap in log(sigma / alpha).

The finalists of both stages are scored again on fresh seeds, and the best of them is the result.

Deviations, each for a defect of the released code: it works on unsorted lists, so that equal sets are evaluated again,
crossover makes duplicates which silently drop steps, and units are torn from their timesteps; its mutation of units is
a no-op; its last generation is never ranked; noise and labels differ from candidate to candidate, and the lowest of
hundreds of noisy scores is reported as it is, against the reference that was searched with. Its population-based
algorithm is any optimiser of ours here (`optimiser=nsga2` comes nearest), and the ramp of the skip ratio is by step
counts. `mode=reuse` lets a unit repeat its last output instead of leaving it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from accel.caching.blocks import MODES, BlockTable, units
from accel.core.denoiser import denoiser_name
from accel.core.recipe import Recipe
from accel.errors import IncompatibleError, check_float, unknown
from accel.search.base import Room, schedule_of
from accel.search.objective import Objective, Trial
from accel.search.spaces import Space, Subset, TimestepSpace, Vector
from accel.search.timesteps import TimestepSearch, grid_of_record, history


@dataclass(frozen=True)
class JointSpace(Space):
    """`times.steps` timesteps and `skipped` of the `units` x steps blocks; with mode `reuse` the first step is whole.

    `begin`: timesteps (of that many steps) to begin with.
    """

    times: TimestepSpace
    units: int
    skipped: int
    mode: str = "remove"
    begin: tuple[int, ...] = ()

    @property
    def _blocks(self) -> Subset:
        return Subset(self.skipped, self.units * (self.times.steps - self._whole))

    @property
    def _whole(self) -> int:
        return int(self.mode == "reuse")

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        return (*self.times.bounds, *self._blocks.bounds)

    @property
    def seeds(self) -> tuple[Vector, ...]:
        """The timesteps to begin with, units left out evenly, at each step the same ones; or all at the last steps."""
        times = self.times.vector(self.begin)
        total = self._blocks.total
        even = [i * total // self.skipped for i in range(self.skipped)]
        late = range(total - self.skipped, total)
        return tuple(dict.fromkeys((*times, *self._blocks.encode(chosen)) for chosen in (even, late)))

    def canonical(self, vector: Sequence[int]) -> Vector:
        count = len(self.times.bounds)
        return (*self.times.canonical(vector[:count]), *sorted(int(v) for v in vector[count:]))

    def random(self, rng: np.random.Generator) -> Vector:
        return (*self.times.random(rng), *self._blocks.random(rng))

    def table(self, vector: Vector) -> tuple[tuple[int, ...], ...]:
        """For each step, the units that do not run."""
        rows: list[list[int]] = [[] for _ in range(self.times.steps)]
        for block in self._blocks.decode(vector[len(self.times.bounds) :]):
            step, unit = divmod(block, self.units)
            rows[step + self._whole].append(unit)
        return tuple(map(tuple, rows))

    def recipe(self, vector: Vector) -> Recipe:
        plain = self.times.recipe(vector[: len(self.times.bounds)])
        return replace(plain, cache=BlockTable(self.table(vector), self.mode))

    def label(self, vector: Vector) -> str:
        rows = ";".join(",".join(map(str, row)) for row in self.table(vector))
        return f"{self.times.label(vector[: len(self.times.bounds)])} without {rows}"


@dataclass(frozen=True)
class AutoDiffusion(TimestepSearch):
    """`first_stage`: its share of the budget. `max_skipped`: at most this share of the units is left out. `mode`:
    remove | reuse."""

    first_stage: float = 0.5
    max_skipped: float = 0.25
    mode: str = "remove"
    name = "autodiffusion"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("search.first_stage", self.first_stage, 0.01, 1.0)
        check_float("search.max_skipped", self.max_skipped, 0.0, 0.9)
        if self.mode not in MODES:
            raise unknown("search.mode", str(self.mode), MODES)

    @property
    def label(self) -> str:
        return f"autodiffusion {self.mode}"

    def more_steps(self, steps: int) -> range:
        """The numbers of steps of the second stage."""
        return range(steps + 1, int(steps / (1 - self.max_skipped) + 1e-9) + 1)

    def overrides(self, record: dict[str, Any]) -> list[str]:
        plain = super().overrides(record)
        if record["table"] is None:
            return plain
        rows = ",".join(f"[{','.join(map(str, row))}]" for row in record["table"])
        return [*plain, "cache=blocks", f"cache.table=[{rows}]", f"cache.mode={self.mode}"]

    def found(self, base: Recipe, record: dict[str, Any]) -> Recipe:
        plain = super().found(base, record)
        return plain if record["table"] is None else replace(plain, cache=BlockTable(record["table"], self.mode))

    def run(self, room: Room) -> dict[str, Any]:
        if room.base.cache is not None or room.base.stitch is not None:
            raise IncompatibleError("search=autodiffusion decides which blocks run; use cache=none and stitch=none.")
        with room.evaluator() as evaluator:
            runner, steps = evaluator.runner, room.base.sampler.steps
            count, later = len(units(getattr(runner.pipe, denoiser_name(runner.pipe)))), self.more_steps(steps)
            schedule, limit = schedule_of(runner.pipe), self.budget - room.reserve(evaluator, max(later, default=steps))
            space = self.space(room.base, schedule)
            objective, _ = room.minimise(space, evaluator, int(self.first_stage * limit) if later else limit)
            stages, best = [objective], objective.best
            began = room.ledger.nfe
            for i, more in enumerate(later, 1):
                sampler = replace(room.base.sampler, steps=more)
                times = self.space(replace(room.base, sampler=sampler), schedule)
                begin = widened(best.recipe.grid.timesteps, more, schedule)
                joint = JointSpace(times, count, (more - steps) * count, self.mode, begin)
                until = began + (limit - began) * i // len(later)
                objective, _ = room.minimise(joint, evaluator, until, stages[0].reference.recipe)
                stages.append(objective)
                best = min([best, objective.best], key=lambda t: _relative(stages, t))
            trials = sorted((t for s in stages for t in s.finished()), key=lambda t: _relative(stages, t))
            found = room.rescored(objective.some(trials)[: self.finalists], evaluator)
            winner = found[0]["trial"].recipe
            return room.record(
                **grid_of_record(runner, winner),
                table=[list(row) for row in winner.cache.table] if winner.cache else None,
                label=winner.label,
                scores={"search": found[0]["search"], "fresh": found[0]["fresh"],
                        "reference": stages[0].reference.scores[self.halving.rungs[-1]]},
                finalists=[{"candidate": f["trial"].recipe.label, "search": f["search"], "fresh": f["fresh"]}
                           for f in found],
                history=[entry for stage in stages for entry in history(stage)],
            )  # fmt: skip


def widened(timesteps: Sequence[int], steps: int, schedule: Any) -> tuple[int, ...]:
    """`timesteps`, falling, with more put in until there are `steps`: each halves the widest gap in log(sigma / alpha).

    The end of the last step counts as the schedule's smallest noise level; gaps without room are passed over.
    """
    found = list(timesteps)
    while len(found) < steps:
        ends = [*found, int(np.ceil(schedule.t_min)) - 1]
        log_rho = np.log(schedule.rho(np.maximum(ends, schedule.t_min)))
        room = np.array([a - b > 1 for a, b in pairwise(ends)])
        i = int(np.where(room, -np.diff(log_rho), -1).argmax())
        middle = float(schedule.timestep(np.exp((log_rho[i] + log_rho[i + 1]) / 2)))
        found.insert(i + 1, int(np.clip(round(middle), ends[i + 1] + 1, ends[i] - 1)))
    return tuple(found)


def _relative(stages: list[Objective], trial: Trial) -> float:
    # All stages have the same reference, so their differences compare.
    return stages[0].relative(trial, trial.n) if trial.scores else float("inf")
