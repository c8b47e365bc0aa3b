"""LinearAG: the fit, what it is used for, and to whom it belongs."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import Proportional, pixels, run_pixels

from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.guidance import CFG, LinearAG
from accel.guidance.linear_ag import LeastSquares, regressors
from accel.samplers import DiffusersSampler

DDIM = DiffusersSampler("DDIMScheduler", 8, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
FEW = {"samples": 2, "held_out": 2}


@pytest.fixture
def proportional():
    return pixels(Proportional(), DDIMScheduler(prediction_type="sample", clip_sample=False))


def sampler_of(pipe, labels):
    def sample(recipe, start, stop):
        chosen = [labels[i % len(labels)] for i in range(start, stop)]
        run_pixels(pipe, recipe.guidance_scale, chosen, 1000 + start, recipe.sampler.steps)

    return sample


def fit(pipe, recipe, labels=(0,)):
    return {"guidance": recipe.guidance.calibrate(pipe, recipe, sampler_of(pipe, labels))}


def test_least_squares_in_blocks_is_least_squares():
    source = torch.Generator().manual_seed(0)
    features = torch.randn(50, 4, generator=source, dtype=torch.float64)
    target = torch.randn(50, 1, generator=source, dtype=torch.float64)
    system = LeastSquares()
    for block in torch.arange(50).split(7):
        system.add(features[block], target[block])
    wanted = torch.linalg.lstsq(features, target).solution
    torch.testing.assert_close(system.solution(), wanted[:, 0], rtol=0, atol=1e-12)
    error = (features @ wanted - target).norm() / target.norm()
    assert system.error() == pytest.approx(float(error), abs=1e-12)


def test_least_squares_finds_what_is_truly_linear():
    features = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    system = LeastSquares()
    system.add(features, features @ weights[:, None])
    torch.testing.assert_close(system.solution(), weights, rtol=0, atol=1e-12)
    assert system.error() < 1e-14
    twice = LeastSquares()  # the same regressor twice: the shortest solution shares it
    twice.add(features[:, [0, 0]], features[:, :1])
    torch.testing.assert_close(twice.solution(), torch.full((2,), 0.5, dtype=torch.float64), rtol=0, atol=1e-7)


def test_regressors_are_what_is_known_when_sampling():
    past = {i: (f"c{i}", f"u{i}" if i % 2 == 0 else None) for i in range(6)}
    assert regressors(past, 1) == ["c0", "c1", "u0"]
    assert regressors(past, 5) == ["c0", "c1", "c2", "c3", "c4", "c5", "u0", "u2", "u4"]


def test_a_linear_unconditional_prediction_is_estimated_exactly(proportional):
    """u = 0.7 c: nothing is lost but evaluations."""
    recipe = Recipe(DDIM, guidance=LinearAG(3.0, 1.0, "cfg", "x0", **FEW))
    artefact = fit(proportional, recipe)
    assert artefact["guidance"]["evaluations"].tolist() == [1, 3, 5, 7]
    for name in ("fit", "held_out", "missed"):
        assert artefact["guidance"][name].max() < 1e-10
    with accelerate(proportional, Recipe(DDIM, guidance=CFG(3.0))):
        wanted = run_pixels(proportional, 3.0, (0, 0), steps=8)
    with accelerate(proportional, recipe, artefacts=artefact) as run:
        found = run_pixels(proportional, 3.0, (0, 0), steps=8)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert [e.rows for e in run.trace] == [4, 2] * 4
    assert run.nfe == 12


@pytest.mark.parametrize(("after", "rows"), [("conditional", 1), ("cfg", 2)])
def test_schedule(proportional, after, rows):
    """The paper's: alternating in the first half; 25 evaluations for 20 steps."""
    recipe = Recipe(DiffusersSampler("DDIMScheduler", 20, "ddim", DDIM.options),
                    guidance=LinearAG(3.0, after=after, **FEW))  # fmt: skip
    with accelerate(proportional, recipe, artefacts=fit(proportional, recipe)) as run:
        run_pixels(proportional, 3.0, (0,), steps=20)
    assert [e.rows for e in run.trace] == [2, 1] * 5 + [rows] * 10
    assert run.nfe == 15 + 10 * rows


@pytest.mark.parametrize("space", ["eps", "x0", "v"])
def test_estimates_are_close_on_a_trained_network(small, space):
    """Far closer than no guidance, on samples that were not fitted; a fit of another space is as good a fit."""
    labels = tuple(range(10))
    recipe = Recipe(DDIM, guidance=LinearAG(2.0, 0.5, "cfg", space, samples=20, held_out=10))
    artefact = fit(small, recipe, labels)
    assert artefact["guidance"]["missed"].max() < 0.3
    images = {}
    for name, guidance in (("cfg", CFG(2.0)), ("none", CFG(1.0)), ("linear", recipe.guidance)):
        with accelerate(small, Recipe(DDIM, guidance=guidance), artefacts=artefact):
            images[name] = run_pixels(small, guidance.scale, labels, steps=8)
    far, near = ((images[name] - images["cfg"]).square().mean() for name in ("none", "linear"))
    assert near < 0.1 * far


def test_no_part_is_cfg_bit_for_bit(small, run_small):
    with accelerate(small, Recipe(DDIM, guidance=CFG(2.0))):
        wanted = run_small(2.0)
    with accelerate(small, Recipe(DDIM, guidance=LinearAG(2.0, 0.0, "cfg"))) as run:
        assert torch.equal(run_small(2.0), wanted)
    assert run.nfe == 16


def test_coefficients_belong_to_what_they_were_fitted_for(proportional, small):
    recipe = Recipe(DDIM, guidance=LinearAG(3.0, **FEW))
    artefact = fit(proportional, recipe)

    def refused(other, pipe=proportional):
        with accelerate(pipe, other, artefacts=artefact):
            pass

    for other, said in (
        (Recipe(DDIM, guidance=LinearAG(2.0, **FEW)), "another guidance"),
        (Recipe(DDIM, guidance=LinearAG(3.0, space="x0", **FEW)), "another guidance"),
        (Recipe(DiffusersSampler("DDIMScheduler", 4), guidance=recipe.guidance), "another sampler"),
    ):
        with pytest.raises(ConfigError, match=f"fitted for {said}; fit them again"):
            refused(other)
    with pytest.raises(ConfigError, match="fitted for another model"):
        refused(recipe, small)
    with pytest.raises(ConfigError, match="coefficients of LinearAG are still to be fitted"):
        accelerate(proportional, recipe).__enter__()
    refused(recipe)  # its own


def test_another_grid_of_the_pipelines_own_is_noticed(proportional):
    """Without a sampler in the recipe the pipeline chooses the number of steps when it is called."""
    recipe = Recipe(guidance=LinearAG(3.0, **FEW))
    calibrated = recipe.guidance.calibrate(
        proportional, recipe, lambda r, a, b: run_pixels(proportional, 3.0, [0] * (b - a), a, 6)
    )
    with accelerate(proportional, recipe, artefacts={"guidance": calibrated}):
        run_pixels(proportional, 3.0, steps=6, labels=(0,))
        with pytest.raises(AccelError, match=r"fitted for the timesteps \[.*this trajectory has"):
            run_pixels(proportional, 3.0, steps=7, labels=(0,))


def test_searches_and_adaptive_solvers_are_refused(pipe):
    from accel.config import choice_of

    for name in ("ode", "dc_solver"):
        with pytest.raises(IncompatibleError, match=f"sampler {name} evaluates the model outside of it; use guidance="):
            Recipe(choice_of("sampler", name), guidance=LinearAG()).check(pipe)


@pytest.mark.parametrize(("setting", "said"), [
    ({"part": 1.5}, "guidance.part is 1.5"),
    ({"after": "none"}, "unknown guidance.after 'none'"),
    ({"space": "x"}, "unknown guidance.space 'x'"),
    ({"samples": 0}, "guidance.samples is 0"),
    ({"held_out": 0}, "guidance.held_out is 0"),
])  # fmt: skip
def test_bad_settings(setting, said):
    with pytest.raises(ConfigError, match=said):
        LinearAG(**setting)
