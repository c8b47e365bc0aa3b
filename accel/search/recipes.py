"""Recipe search: combinations of sampler, steps, grid, guidance, cache, stitch and precision under a budget.

A candidate is one choice for each axis. Two objectives, both better when lower: the search metric of few samples, and a
cost. Combinations that the methods' own checks refuse, and those that cost more than `limit`, are never run. The
non-dominated candidates that survived all halvings are the front; they, and every choice alone, are then evaluated and
timed as a study on other seeds with more samples, where the front's scores are no longer the lowest of many.

The recommended recipe is the cheapest one validated, of the front or a choice alone, that is non-inferior to the
study's baseline in every value that a user would miss: FID, recall, and how well prompts are followed, which a better
FID does not imply. If none is, nothing is recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from accel.config import AXES, expand_cells, recipe_from
from accel.core.method import LATER
from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError, check_bool, check_float, check_int, unknown
from accel.evaluation.cost import counted_cost
from accel.files import file_name
from accel.records import Results, digest
from accel.results.comparison import Comparison, Row
from accel.search.base import Room, Search
from accel.search.evaluations import Memory
from accel.search.objective import Objective
from accel.search.pareto import front
from accel.search.spaces import Space, Vector
from accel.search.timesteps import finite, history
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner

FEW = 4  # steps


@dataclass(frozen=True)
class RecipeSpace(Space):
    """`choices`: for each axis its alternatives, each a list of overrides; `begin`: candidates to begin with."""

    choices: tuple[tuple[tuple[str, ...], ...], ...]
    begin: tuple[Vector, ...]
    ordered = False

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        return tuple((0, len(own) - 1) for own in self.choices)

    @property
    def seeds(self) -> tuple[Vector, ...]:
        return self.begin

    def canonical(self, vector: Sequence[int]) -> Vector:
        return tuple(int(v) for v in vector)

    def random(self, rng: np.random.Generator) -> Vector:
        return tuple(int(rng.integers(len(own))) for own in self.choices)

    def overrides(self, vector: Vector) -> list[str]:
        """The candidate as settings of the command line."""
        return [o for own, i in zip(self.choices, vector, strict=True) for o in own[i]]

    def recipe(self, vector: Vector) -> Recipe:
        return recipe_from(tuple(self.overrides(vector)))


def _counted(key: str) -> Callable[[Runner, Recipe, Recipe], float]:
    def cost(runner: Runner, recipe: Recipe, baseline: Recipe) -> float:
        artefacts = runner.artefacts(recipe)[0]
        return float(counted_cost(runner.pipe, runner.suite, recipe, runner.models, artefacts)[key])

    return cost


def _timed(runner: Runner, recipe: Recipe, baseline: Recipe) -> float:
    # A few steps of the baseline, timed once, over the recipe's interleaved speed-up against them: a drift of the
    # machine's speed must not tell candidates apart.
    if recipe.simulated:
        raise IncompatibleError(f"{recipe.label} is simulated, so its time says nothing; use search.cost=macs.")
    plain = baseline.unaccelerated
    few = replace(plain, sampler=replace(plain.sampler, steps=min(FEW, plain.sampler.steps)))
    once, measured = runner.timing(few, few), runner.timing(recipe, few)
    return once["ms_per_image"]["value"] / measured["speedup"]["value"]


# What a recipe may cost: MACs or evaluations an image, bytes of the weights or of all live tensors, ms an image.
COSTS: dict[str, Callable[[Runner, Recipe, Recipe], float]] = {
    **{key: _counted(key) for key in ("macs", "nfe", "model_bytes", "peak_bytes")},
    "ms": _timed,
}


@dataclass(frozen=True)
class RecipeSearch(Search):
    """`axes`: for each axis (or any name) its alternatives as overrides, several in one string separated by spaces.

    `cost`: macs, nfe, model_bytes, peak_bytes or ms, an image each; `limit`: the most that a recipe may cost (None: no
    limit). `rates`: for each choice of axes.precision what a MAC costs in it, such as its time in that of the first:
    macs are multiplied by that, for a cast leaves them what they are (empty: all cost the same). `front`: at most so
    many recipes of the front are validated; `beside`: and the parts of each, and every choice alone.
    """

    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cost: str = "macs"
    limit: float | None = None
    front: int = 8
    beside: bool = field(default=True, metadata=LATER)
    rates: Sequence[float] = field(default=(), metadata=LATER)
    name = "recipes"
    several = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "axes", {k: tuple(v or ()) for k, v in dict(self.axes).items()})
        if self.cost not in COSTS:
            raise unknown("search.cost", str(self.cost), COSTS)
        empty = [name for name, own in self.axes.items() if not own]
        if empty or not self.axes:
            what = f"search.axes.{empty[0]} has no alternatives" if empty else "search.axes is empty"
            raise ConfigError(
                f"{what}, so there is nothing to search; allowed: for each axis at least one override, such as "
                """'search.axes.cache=["cache=none","cache=deepcache"]'."""
            )

        if self.limit is not None:
            check_float("search.limit", self.limit, 0.0)
        check_int("search.front", self.front, 1)
        check_bool("search.beside", self.beside)
        self._check_rates()
        for name, own in self.axes.items():
            for override in (o for alternative in expand_cells(own, f"search.axes.{name}") for o in alternative):
                if override.partition("=")[0].partition(".")[0] not in AXES:
                    raise ConfigError(
                        f"search.axes.{name} has {override}; allowed: overrides of {', '.join(AXES)}. What holds for "
                        "all candidates stands beside the search."
                    )

    def _check_rates(self) -> None:
        object.__setattr__(self, "rates", tuple(self.rates))
        for rate in self.rates:
            check_float("search.rates", rate, 1e-6)
        if not self.rates:
            return
        count = len(self.choices[list(self.axes).index("precision")]) if "precision" in self.axes else 0
        if len(self.rates) != count:
            raise ConfigError(
                f"search.rates has {len(self.rates)} numbers; allowed: one for each of the {count} choices of "
                "search.axes.precision, or none."
            )
        if self.cost != "macs":
            raise ConfigError(f"search.rates are of MACs, and search.cost is {self.cost}; use search.cost=macs.")

    def rated(self) -> dict[str, float]:
        """What a MAC costs, by the name that a precision has in tables."""
        if not self.rates:
            return {}
        own = self.choices[list(self.axes).index("precision")]
        labels = [recipe_from(choice).axes()["precision"] for choice in own]
        return dict(zip(labels, self.rates, strict=True))

    @property
    def choices(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """For each axis its alternatives; commas within one are alternatives, too."""
        return tuple(tuple(tuple(o) for text in own for o in expand_cells([text])) for own in self.axes.values())

    def compared(self, base: Recipe) -> dict[str, Recipe]:
        return {"baseline": base}

    def overrides(self, record: dict[str, Any]) -> list[str]:
        return record["front"][0]["overrides"]

    def found(self, base: Recipe, record: dict[str, Any]) -> Recipe:
        return recipe_from(tuple(self.overrides(record)))

    def recipes_of(self, record: dict[str, Any]) -> list[Recipe]:
        """The front, the parts of each at its own steps and grid, and every choice alone on the first choices of the
        other axes; the front alone where the record has no choices alone."""
        singles = [recipe_from(tuple(o)) for o in record["singles"]]
        found = [recipe_from(tuple(entry["overrides"])) for entry in record["front"]]
        parts = [part for recipe in found for part in recipe.parts().values()] if singles else []
        return list({recipe.label: recipe for recipe in [*found, *parts, *singles]}.values())

    def run(self, room: Room) -> dict[str, Any]:
        with room.evaluator() as evaluator:
            prices = _Prices(self, room, evaluator.runner)
            plain = (0,) * len(self.choices)
            cheapest = prices.cheapest(plain)
            begin = self._begin(prices, plain, cheapest)
            space = RecipeSpace(self.choices, begin)
            objective = Objective(
                space,
                evaluator,
                self.halving,
                self.budget,
                room.ledger,
                room.base,
                prices.of,
                room.on_trial,
                self.limit,
            )
            room.search_until_spent(space, objective)
            done = objective.some(objective.finished())
            best = [done[i] for i in front([objective.point(t) for t in done])]
            kept = [best[i] for i in sorted({round(x) for x in np.linspace(0, len(best) - 1, self.front)})]
            top = self.halving.rungs[-1]
            return room.record(
                label=self.name,
                cost_of=self.cost,
                limit=self.limit,
                reference=finite(objective.reference.scores[top]),
                front=[{"label": t.recipe.label, "overrides": space.overrides(t.vector),
                        "search": finite(t.scores[top]), "cost": t.costs[0]} for t in kept],
                singles=[space.overrides(v) for v in self._singles(prices, plain)] if self.beside else [],
                refused=sum(not t.allowed for t in objective.trials.values()),
                tried=sum(t.allowed for t in objective.trials.values()),
                history=history(objective),
                **({"rates": self.rated()} if self.rates else {}),
            )  # fmt: skip

    def _begin(self, prices: _Prices, plain: Vector, cheapest: Vector) -> tuple[Vector, ...]:
        # The first choices, each choice alone, and the cheapest of all, where they may be run.
        first = [plain] if prices.affords(prices.recipe(plain)) else []
        return tuple(dict.fromkeys([*first, *self._singles(prices, plain), cheapest]))

    def _singles(self, prices: _Prices, plain: Vector) -> list[Vector]:
        found = []
        for axis, own in enumerate(self.choices):
            for i in range(1, len(own)):
                vector = (*plain[:axis], i, *plain[axis + 1 :])
                if prices.affords(prices.recipe(vector)):
                    found.append(vector)
        return found


class _Prices:
    """What recipes cost, remembered on disk."""

    def __init__(self, search: RecipeSearch, room: Room, runner: Runner) -> None:
        self.search, self.room, self.runner, self.rates = search, room, runner, search.rated()
        where = {} if search.cost != "ms" else {"timing": runner.timing_id(room.base, room.base)}
        key = digest({"cost": search.cost, "weights": room.suite.fingerprint()} | where)
        name = f"{file_name(room.suite.name)}-{search.cost}-{key}.jsonl"
        self.memory = Memory(room.root / "artefacts" / "search" / name)

    def recipe(self, vector: Vector) -> Recipe:
        return recipe_from(tuple(o for own, i in zip(self.search.choices, vector, strict=True) for o in own[i]))

    def allowed(self, recipe: Recipe) -> bool:
        """Whether the methods' own checks accept it."""
        try:
            self.runner.check(recipe)
        except (IncompatibleError, ConfigError):
            return False
        return not (self.search.cost == "ms" and recipe.simulated)

    def price(self, recipe: Recipe) -> float:
        key = self.runner.generation_id(recipe)
        if key not in self.memory.known:
            self.memory.add(key, {"cost": COSTS[self.search.cost](self.runner, recipe, self.room.base)})
        return self.memory.known[key]["cost"] * self.rates.get(recipe.axes()["precision"], 1.0)

    def of(self, recipe: Recipe) -> tuple[float, ...] | None:
        """Its cost; None for one that is refused."""
        return (self.price(recipe),) if self.allowed(recipe) else None

    def affords(self, recipe: Recipe) -> bool:
        """Whether it may be run, within the limit too."""
        return self.allowed(recipe) and (self.search.limit is None or self.price(recipe) <= self.search.limit)

    def cheapest(self, start: Vector) -> Vector:
        """The cheapest candidate, one axis at a time; ConfigError that names it if it is above the limit."""
        best, at = None, start
        for _ in range(2):  # what one axis allows may depend on another
            for axis, own in enumerate(self.search.choices):
                tried = [(*at[:axis], i, *at[axis + 1 :]) for i in range(len(own))]
                priced = [(self.price(r), v) for v in tried if self.allowed(r := self.recipe(v))]
                if priced and (best is None or min(priced)[0] < best):
                    best, at = min(priced)
        if best is None:
            raise ConfigError(
                "no combination of the first choices of search.axes can run on this suite; put one first that can, "
                "such as a sampler with grid=none and cache=none."
            )
        if self.search.limit is not None and best > self.search.limit:
            raise ConfigError(
                f"no recipe meets search.limit={self.search.limit:g} ({self.search.cost} an image); the nearest is "
                f"{self.recipe(at).label} with {best:g}. Raise search.limit to at least that, or offer cheaper choices "
                "in search.axes."
            )
        return at


def conclude(
    results: Results, name: str, record: dict[str, Any], evaluation: Evaluation, suite: Sequence[str]
) -> dict[str, Any]:
    """Save what was validated of a front: search score and cost beside the records of fresh seeds. What is recommended
    is read from these (accel.results.recipe_search), by the study's margins.

    `suite`: the overrides that choose it.
    """
    study = Comparison.load(results, name)
    rows = {row.label: row for row in study.done if row.role in ("cell", "baseline", "control")}

    def validated(label: str, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if (row := rows.get(label)) is not None:
            found = {"label": label, "quality": row.quality["id"], "timing": row.timing["id"] if row.timing else None}
            yield {"cost": _spent(row, record)} | entry | found

    found = {
        "kind": "recipe_search", "id": name, "title": study.title, "suite": study.suite, "search": record["id"],
        "n": evaluation.samples, "seed": evaluation.seed_text, "suite_overrides": list(suite),
        "front": [v for entry in record["front"] for v in validated(entry["label"], entry)],
        "alone": [v for o in record["singles"] for v in validated(recipe_from(tuple(o)).label, {"overrides": o})],
    }  # fmt: skip
    results.save(found)
    return found


def _spent(row: Row, record: dict[str, Any]) -> float | None:
    kind = record["cost_of"]
    if kind == "ms":
        return row.timing["ms_per_image"]["value"] if row.timing else None
    cost, rate = row.cost(kind), record.get("rates", {}).get(row.quality["axes"]["precision"], 1)
    return None if cost is None else cost * rate
