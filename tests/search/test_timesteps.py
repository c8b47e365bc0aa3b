"""Timestep search end to end on the exact mixture: it beats uniform on fresh seeds, and what it finds can be used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError
from accel.records import Results, read_json
from accel.samplers import DiffusersSampler
from accel.samplers.grids import ExplicitGrid, SearchedGrid
from accel.search import DCSolver
from accel.search.base import SEARCH_SEED
from accel.search.objective import Halving
from accel.search.optimisers import GITS, CoordinateDescent, DifferentialEvolution, RandomSearch
from accel.search.timesteps import TimestepSearch
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.mixture import MixtureSuite

SEARCH = TimestepSearch("distance", Halving(8, 1), 2000, 2, 24, grids=("trailing", "karras"))
SAMPLERS = {
    "ddim": DiffusersSampler("DEISScheduler", 4, "ddim_accel", {"variant": "tab", "ab_order": 0}),
    "dpmpp_2m": DiffusersSampler(
        "DPMSolverMultistepScheduler", 4, "dpmpp_2m", {"solver_order": 2, "final_sigmas_type": "zero"}
    ),
    "deis": DiffusersSampler("DEISScheduler", 4, "deis_tab", {"variant": "tab", "ab_order": 2}),
}


def distance(room, recipe: Recipe) -> float:
    """Of samples of a third seed."""
    runner = Runner(MixtureSuite(), room.evaluation, Results(room.root))
    error = runner.shards(recipe, 60)["images"] - runner.converged_images(recipe)
    return float(error.square().flatten(1).mean(1).sqrt().mean())


@pytest.mark.parametrize("name", SAMPLERS)
def test_search_beats_uniform_on_seeds_that_it_has_not_seen(name, room):
    base = Recipe(SAMPLERS[name])
    own = room(SEARCH, DifferentialEvolution(population=8), base)
    record = SEARCH.run(own)
    assert record["cost"]["nfe"] <= SEARCH.budget
    assert record["cost"]["nfe"] == own.ledger.nfe > SEARCH.budget / 2
    found = SEARCH.found(base, record)
    uniform = SEARCH.compared(base)["trailing"]
    assert distance(own, found) < 0.8 * distance(own, uniform)
    assert record["scores"]["fresh"] == min(f["fresh"] for f in record["finalists"])
    assert SEARCH.overrides(record) == [
        "sampler.steps=4", "grid=explicit", f"grid.timesteps=[{','.join(map(str, record['timesteps']))}]"
    ]  # fmt: skip


def test_gits_takes_what_the_dynamic_programme_finds(room):
    base = Recipe(SAMPLERS["ddim"])
    own = room(SEARCH, GITS(nodes=20, samples=8), base)
    record = SEARCH.run(own)
    assert len(record["finalists"]) == 1
    assert len(record["history"]) == 2, "the uniform one, which everything is held against, and its own"
    assert distance(own, SEARCH.found(base, record)) < distance(own, SEARCH.compared(base)["trailing"])
    teacher = own.ledger.nfe - 4 * (2 * 16 + 24)
    assert 8 * 10 < teacher <= 8 * 20, "the teacher's evaluations are part of the cost"
    again = room(SEARCH, GITS(nodes=20, samples=8), base, own.root)
    assert SEARCH.run(again) == record


def test_found_timesteps_are_a_searched_grid_of_their_model(room, tmp_path):
    base = Recipe(SAMPLERS["ddim"])
    own = room(replace(SEARCH, budget=900, rescore_n=16), RandomSearch(), base)
    record = own.search.run(own)
    path = Results(own.root).save(record)
    assert read_json(path)["timesteps"] == record["timesteps"]

    searched = replace(base, grid=SearchedGrid(path=str(path)))
    runner, other = (
        Runner(MixtureSuite(mixture_seed=seed), Evaluation(n=60, timing=False, device="cpu"), Results(tmp_path / "o"))
        for seed in (0, 1)
    )
    runner.check(searched)
    explicit = replace(base, grid=ExplicitGrid(timesteps=tuple(record["timesteps"])))
    for which in (searched, explicit):
        scheduler = which.sampler.build(runner.pipe.scheduler.config, which.grid)
        assert scheduler.timesteps.tolist() == record["timesteps"]
    with pytest.raises(ConfigError, match=r"searched for other weights \(base .*grid\.transfer=true to try it here"):
        other.check(searched)
    other.check(replace(base, grid=SearchedGrid(path=str(path), transfer=True)))
    with pytest.raises(ConfigError, match="has 4 timesteps, but 5 steps are wanted; set steps=4"):
        runner.check(replace(searched, sampler=replace(base.sampler, steps=5)))


@pytest.mark.parametrize("sampler", [None, DCSolver(4)])
def test_what_cannot_be_searched_is_refused(sampler):
    with pytest.raises(IncompatibleError, match=r"cannot be searched.*such as ddim_accel, dpmpp_2m or deis_tab"):
        SEARCH.space(Recipe(sampler), None)


def test_sampler_without_explicit_timesteps_is_refused(room):
    own = room(SEARCH, CoordinateDescent(), Recipe(DiffusersSampler("DDIMScheduler", 4, "ddim")))
    with pytest.raises(IncompatibleError, match=r"DDIMScheduler\.set_timesteps takes no timesteps"):
        SEARCH.run(own)


def test_results_are_not_evaluated_on_the_searchs_seeds():
    with pytest.raises(ConfigError, match=rf"evaluation\.seed {SEARCH_SEED} is one that the search selects by"):
        SEARCH.check_seed(Evaluation(seed=SEARCH_SEED))
    SEARCH.check_seed(Evaluation(seed=0))


def test_id_changes_with_what_the_result_depends_on(room):
    base = Recipe(SAMPLERS["ddim"])
    own = room(SEARCH, RandomSearch(), base)
    others = [
        replace(own, search=replace(SEARCH, seed=1)),
        replace(own, search=replace(SEARCH, budget=2001)),
        replace(own, search=replace(SEARCH, start="last")),
        replace(own, optimiser=RandomSearch(seed=1)),
        replace(own, base=Recipe(SAMPLERS["deis"])),
        replace(own, suite=MixtureSuite(mixture_seed=1)),
    ]
    assert len({own.key, *(o.key for o in others)}) == 7
    assert replace(own, search=replace(SEARCH, workers=2, compare=("karras",))).key == own.key
