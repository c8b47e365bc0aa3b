"""The convergence study: its fit, its points and that it measures what theory says."""

from __future__ import annotations

import math

import pytest

from accel.benches.convergence import GRIDS, ROUNDING, contestants, fitted_order, jobs, measure

BY_NAME = {c.name: c for c in contestants()}


def points(errors):
    return [{"steps": 10 * 2**i, "nfe": 10 * 2**i, "error": e} for i, e in enumerate(errors)]


def test_fit_gives_the_exponent_and_leaves_out_rounding_and_divergence():
    assert fitted_order(points([3 * (10 * 2**i) ** -2.5 for i in range(5)])) == pytest.approx(2.5)
    clean = [1.0, 1e-3, 1e-6, 1e-9]
    assert fitted_order(points([*clean, ROUNDING / 10])) == pytest.approx(fitted_order(points(clean)))
    assert fitted_order(points([None, None, 1.0])) is None


@pytest.mark.parametrize(
    "name", ["tab r=0", "tab r=1", "tab r=2", "rhoab r=2", "logrhoab r=2", "rhork ralston3", "unipc p=2 (accel)"]
)
def test_order_on_the_quadratic_grid_is_that_of_theory(name):
    found = measure(BY_NAME[name], "t_quadratic", (80, 160, 320), samples=8)
    assert found["order"] == pytest.approx(BY_NAME[name].order, abs=0.3)
    assert [p["nfe"] for p in found["points"]] == [n * round(found["points"][0]["nfe"] / 80) for n in (80, 160, 320)]


def test_a_grid_that_a_scheduler_cannot_take_ends_its_row():
    found = measure(BY_NAME["dpmpp_2m (diffusers)"], "t_quadratic", (10, 20, 320), samples=4)
    assert [p["steps"] for p in found["points"]] == [10, 20], "320 whole timesteps would repeat"
    assert all(math.isfinite(p["error"]) for p in found["points"])


def test_every_sampler_has_a_row_on_every_grid_that_it_takes():
    pairs = {(c.name, grid) for c, grid in jobs()}
    for name, contestant in BY_NAME.items():
        taken = {grid for n, grid in pairs if n == name}
        assert taken == set(GRIDS) or contestant.scheduler in (
            "DDIMScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
        ), name
        assert "trailing" in taken
