"""Recipe search: which combinations may be run, the front, the limit, and the conclusion from fresh seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from accel.config import recipe_from, recipe_of
from accel.errors import ConfigError, IncompatibleError
from accel.metrics.statistics import Estimate
from accel.records import Results
from accel.results.comparison import Row
from accel.search.objective import Halving
from accel.search.optimisers import OptunaSearch, RandomSearch
from accel.search.recipes import RecipeSearch, _Prices, _spent
from accel.search.study import Cell, SearchStudy
from accel.studies.evaluation import Evaluation
from accel.suites.mixture import MixtureSuite

AXES = {
    "sampler": ["sampler=dpmpp_2m", "sampler=ddim", "sampler=ddim_accel"],
    "steps": ["sampler.steps=4,8,2"],
    "grid": ["grid=none", "grid=karras", "grid=t_quadratic"],
}
SEARCH = RecipeSearch("distance", Halving(8, 1), 2000, 1, 8, axes=AXES, cost="nfe", front=3)
BASE = recipe_from(("sampler=ddim_accel", "sampler.steps=10"))


def test_choices_expand_commas_and_make_recipes():
    assert SEARCH.choices[1] == (("sampler.steps=4",), ("sampler.steps=8",), ("sampler.steps=2",))
    made = recipe_from(("sampler=deis_tab", "sampler.steps=5", "grid=karras", "cache=none"))
    assert (made.label, made.cache) == ("deis_tab-5@karras", None)


def test_recipes_are_those_of_the_command_line():
    from accel.config import compose

    overrides = ["sampler=dpmpp_2m", "sampler.steps=6", "cache=deepcache", "cache.interval=2", "guidance=cfg"]
    assert recipe_from(tuple(overrides)) == recipe_of(compose(overrides))


def test_of_a_combined_recipe_the_parts_are_evaluated_once_each():
    """At its own steps and grid, beside the choices alone; what is validated can then be composed."""
    both = ["sampler=dpmpp_2m", "sampler.steps=4", "grid=karras", "cache=deepcache", "precision=bf16"]
    singles = [[*both[:3], "cache=deepcache"], ["sampler=ddim", "sampler.steps=50"]]
    record = {"front": [{"overrides": both}], "singles": singles}
    assert [recipe.label for recipe in SEARCH.recipes_of(record)] == [
        f"dpmpp_2m-4@karras{more}" for more in (" + deepcache3b1 + bf16", "", " + deepcache3b1", " + bf16")
    ] + ["ddim-50"]


def test_front_of_what_the_checks_accept(room):
    own = room(SEARCH, RandomSearch(), BASE)
    record = SEARCH.run(own)
    tried = [h["candidate"] for h in record["history"]]
    assert not [label for label in tried if label.startswith("ddim-") and "@" in label], "DDIM has its own grid only"
    assert record["refused"] > 0
    front = record["front"]
    assert 1 <= len(front) <= 3
    costs, scores = [f["cost"] for f in front], [f["search"] for f in front]
    assert costs == sorted(costs)
    assert scores == sorted(scores, reverse=True), "who costs more is better, or is not on the front"
    assert front[0]["cost"] == 2.0
    assert SEARCH.run(room(SEARCH, RandomSearch(), BASE, own.root)) == record, "all of it is remembered"
    assert {recipe.label for recipe in SEARCH.recipes_of(record)} >= {"dpmpp_2m-4@karras", "ddim-4", "dpmpp_2m-8"}


def test_nothing_above_the_limit_is_run(room):
    search = replace(SEARCH, limit=4.0)
    record = search.run(room(search, RandomSearch(), BASE))
    assert {h["candidate"].split("-")[1].split("@")[0] for h in record["history"]} == {"4", "2"}
    assert {recipe.sampler.steps for recipe in search.recipes_of(record)} == {4, 2}


def test_a_limit_that_nothing_meets_names_the_nearest(room):
    search = replace(SEARCH, limit=1.0)
    message = r"no recipe meets search\.limit=1 \(nfe an image\); the nearest is \S+-2\S* with 2\. Raise search\.limit"
    with pytest.raises(ConfigError, match=message):
        search.run(room(search, RandomSearch(), BASE))


def test_empty_spaces_are_refused():
    for axes, what in (({}, r"search\.axes is empty"), ({"cache": []}, r"search\.axes\.cache has no alternatives")):
        with pytest.raises(ConfigError, match=what + r".*search\.axes\.cache=\["):
            RecipeSearch(axes=axes)
    with pytest.raises(ConfigError, match=r"unknown search\.cost 'mac'\. Did you mean macs"):
        replace(SEARCH, cost="mac")


def test_a_mac_may_cost_less_in_another_precision(room):
    axes = {"sampler": ["sampler=ddim_accel"], "steps": ["sampler.steps=4,2"],
            "precision": ["precision=none", "precision=fp32"]}  # fmt: skip
    search = replace(SEARCH, axes=axes, cost="macs", rates=(1.0, 0.25))
    assert search.rated() == {"none": 1.0, "fp32": 0.25}
    assert replace(search, rates=()).identity().keys() == SEARCH.identity().keys(), "ids of before stay"
    own = room(search, RandomSearch(), BASE)
    plain, cast = (
        recipe_from(("sampler=ddim_accel", "sampler.steps=4", f"precision={name}")) for name in ("none", "fp32")
    )
    prices = _Prices(search, own, own.evaluator().runner)
    prices.memory.known |= {prices.runner.generation_id(recipe): {"cost": 1000.0} for recipe in (plain, cast)}
    assert (prices.price(plain), prices.price(cast)) == (1000.0, 250.0)
    row = Row("cell", "a", None, None, {"cost": {"macs": 8.0}, "axes": {"precision": "fp32"}}, None)
    assert (_spent(row, {"cost_of": "macs", "rates": search.rated()}), _spent(row, {"cost_of": "macs"})) == (2.0, 8.0)
    for changed, said in (({"rates": (1.0,)}, "has 1 numbers; allowed: one for each of the 2 choices"),
                          ({"rates": (1.0, 0.0)}, "search.rates is 0"), ({"cost": "ms"}, "use search.cost=macs"),
                          ({"axes": SEARCH.axes}, "one for each of the 0 choices")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            replace(search, **changed)


def test_first_choices_that_cannot_run(room):
    search = replace(SEARCH, axes={"sampler": ["sampler=ddim"], "grid": ["grid=karras"]})
    with pytest.raises(ConfigError, match="no combination of the first choices"):
        search.run(room(search, RandomSearch(), BASE))


def test_simulated_precision_is_never_timed(room):
    own = room(replace(SEARCH, cost="ms"), RandomSearch(), BASE)
    prices = _Prices(own.search, own, own.evaluator().runner)
    simulated = recipe_from(("sampler=ddim", "sampler.steps=2", "precision=w8a8"))
    assert prices.of(simulated) is None
    from accel.search.recipes import COSTS

    with pytest.raises(IncompatibleError, match="is simulated, so its time says nothing"):
        COSTS["ms"](prices.runner, simulated, BASE)


def test_search_by_time(room):
    """Milliseconds on this machine as the cost, with a limit that only few steps meet."""
    axes = {"sampler": ["sampler=ddim_accel"], "steps": ["sampler.steps=2,60"]}
    search = replace(SEARCH, axes=axes, cost="ms", front=1)

    def timed(search, *folder):
        own = room(search, RandomSearch(), BASE, *folder)
        return replace(own, evaluation=replace(own.evaluation, repetitions=6, most_repetitions=6))  # on a busy machine

    own = timed(search)
    prices = _Prices(search, own, own.evaluator().runner)
    two, many = (prices.price(recipe_from(("sampler=ddim_accel", f"sampler.steps={n}"))) for n in (2, 60))
    assert 0 < two < many, "the latter takes thirty times as many steps"
    limited = replace(search, limit=(two * many) ** 0.5)
    record = limited.run(timed(limited, own.root))
    assert {h["candidate"].split("@")[0] for h in record["history"]} == {"ddim_accel-2"}
    assert record["front"][0]["cost"] < limited.limit


def test_conclusion_on_fresh_seeds(root):
    """The front is validated as a study, the choices alone included. Where no value has a margin nothing is
    recommended, and the best of the front is named."""
    pytest.importorskip("optuna")
    optimiser = OptunaSearch("NSGAIISampler", population=6, options={"population_size": 6}, name="nsga2")
    evaluation = Evaluation(n=60, distance_n=60, timing=False, device="cpu", controls=False)
    results = Results(root())
    overrides = ("suite=mixture", "sampler=ddim_accel", "sampler.steps=10")
    cell = Cell(BASE, overrides, SEARCH, optimiser)
    study = SearchStudy("s", "S", MixtureSuite(), evaluation, results, BASE, [cell], Console(quiet=True))
    assert study.run() == 0
    found = results.load("recipe_search", "s")
    values = {f["label"]: Estimate.from_dict(results.load("quality", f["quality"])["values"]["distance"])
              for f in found["front"]}  # fmt: skip
    assert {"dpmpp_2m-4@karras", "ddim-4", "dpmpp_2m-8"} <= {f["label"] for f in found["alone"]}
    text = (results.root / "tables" / "s_front.md").read_text()
    best = min(values, key=lambda label: values[label].value)
    assert "Nothing is recommended, as no value of this suite has a margin." in text
    assert f"The best of the front in distance: {best}." in text
    assert "python -m accel suite=mixture sampler=" in text
    assert all(f"{label}" in text for label in values)
    assert (results.root / "tables" / "s.md").exists()
    assert (results.root / "figures" / "s_pareto.png").exists()
