"""Controls come from the best plain samplers, at equal MACs and at equal measured time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from accel.caching import DeepCache
from accel.cli.build import _plain
from accel.cli.plain import PREFIX, text_of
from accel.config import CONF, choice_of, compose
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.plain_front import chosen
from accel.studies.plain import PlainFront, controls, own_front


def plain(name, steps, grid=None):
    return Recipe(choice_of("sampler", name, f"sampler.steps={steps}"), choice_of("grid", grid) if grid else None)


FRONT = PlainFront((plain("unipc", 5, "karras"), plain("dpmpp_2m", 10, "t_quadratic")), best=10)


def test_the_nearest_of_the_front_by_ratio_gives_sampler_and_grid():
    cached = Recipe(choice_of("sampler", "ddim", "sampler.steps=20"), cache=DeepCache())
    assert [FRONT.at(cached, steps).label for steps in (3, 7, 8, 40)] == [
        "unipc-3@karras", "unipc-7@karras", "dpmpp_2m-8@t_quadratic", "dpmpp_2m-40@t_quadratic",
    ]  # fmt: skip
    assert FRONT.best_for(cached).label == "dpmpp_2m-10@t_quadratic"


def test_the_guidance_stays_and_a_shortcut_becomes_what_it_is_a_shortcut_of():
    cfg, ag = choice_of("guidance", "cfg"), choice_of("guidance", "ag")
    sampler = choice_of("sampler", "ddim")
    assert FRONT.at(Recipe(sampler, guidance=cfg), 5).guidance == cfg
    assert FRONT.at(Recipe(sampler, guidance=ag), 5).guidance == ag.exact


def test_what_two_budgets_agree_on_is_one_control():
    recipe = plain("ddim", 20)
    found = controls(FRONT, recipe, {"MACs": 10.4, "time": 9.6}, per_step=1.0)
    assert [(control.label, what) for control, what in found] == [("dpmpp_2m-10@t_quadratic", ("MACs", "time"))]
    found = controls(FRONT, recipe, {"MACs": 10.4, "time": 14.6}, per_step=1.0)
    assert [(control.sampler.steps, what) for control, what in found] == [(10, ("MACs",)), (15, ("time",))]
    assert controls(FRONT, recipe, {"MACs": 0.01}, per_step=1.0)[0][0].sampler.steps == 1


def test_without_a_front_a_control_is_the_recipe_s_own_sampler():
    recipe = Recipe(choice_of("sampler", "ddim", "sampler.steps=20"), choice_of("grid", "karras"), cache=DeepCache())
    assert own_front(recipe).at(recipe, 12).label == "ddim-12@karras"


@pytest.mark.parametrize(("recipes", "best", "said"), [
    ((), None, "needed: a sampler each"),
    ((plain("ddim", 5), plain("unipc", 5)), None, "different steps"),
    ((plain("ddim", 5),), 6, "plain.best is 6"),
])  # fmt: skip
def test_a_front_that_is_none_is_refused(recipes, best, said):
    with pytest.raises(ConfigError, match=said):
        PlainFront(recipes, best)


TRACKED = Results(Path(__file__).parents[2] / "results")
FOUND = [name for name in TRACKED.studies() if name.startswith(PREFIX)]


@pytest.mark.parametrize("name", FOUND)
def test_the_shipped_front_is_what_the_tracked_study_says(name):
    shipped = CONF / "plain" / f"{name.removeprefix(PREFIX)}.yaml"
    assert shipped.read_text() == text_of(TRACKED, name)
    study = Comparison.load(TRACKED, name)
    cfg = compose([f"suite={study.suite}"])
    front = _plain(cfg)["front"]
    assert [recipe.label for recipe in front.recipes] == [row.label.split(" + ")[0] for row in chosen(study).rows]


@pytest.mark.parametrize("name", FOUND)
def test_every_point_of_a_front_won_against_another(name):
    """What was tried alone, DDIM at 20 steps, is no rival: who may take 20 steps takes what is best at 15."""
    study = Comparison.load(TRACKED, name)
    steps = [row.quality["axes"]["steps"] for row in study.competing if row.role == "cell"]
    assert all(steps.count(row.quality["axes"]["steps"]) > 1 for row in chosen(study).rows)
    front = _plain(compose([f"suite={study.suite}"]))["front"]
    longest = front.recipes[-1]
    assert front.at(plain("ddim", 20), 20) == longest.__class__(replace(longest.sampler, steps=20), longest.grid)


def test_no_other_study_is_evaluated_on_the_seed_that_chose():
    seeds = {file.stem: seeds_of(file) for file in (CONF / "experiment").glob("*.yaml")}
    choosing = set().union(*(own for name, own in seeds.items() if name.startswith(PREFIX)))
    assert choosing
    assert not [name for name, own in seeds.items() if not name.startswith(PREFIX) and own & choosing]


def seeds_of(file):
    """The seeds of an experiment's evaluation, as its file says (0 where it says nothing)."""
    seed = ((yaml.safe_load(file.read_text()) or {}).get("evaluation") or {}).get("seed", 0)
    return set(seed) if isinstance(seed, list) else {seed}
