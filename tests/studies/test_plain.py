"""Controls come from the best plain samplers, at equal MACs and at equal measured time."""

from __future__ import annotations

import pytest

from accel.caching import DeepCache
from accel.config import choice_of
from accel.core.recipe import Recipe
from accel.errors import ConfigError
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


@pytest.mark.parametrize("recipes, best, said", [
    ((), None, "needed: a sampler each"),
    ((plain("ddim", 5), plain("unipc", 5)), None, "different steps"),
    ((plain("ddim", 5),), 6, "plain.best is 6"),
])  # fmt: skip
def test_a_front_that_is_none_is_refused(recipes, best, said):
    with pytest.raises(ConfigError, match=said):
        PlainFront(recipes, best)
