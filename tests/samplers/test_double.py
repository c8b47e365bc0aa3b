"""diffusers' schedulers on a float64 pipeline: each against its formulas, written here, or against accel's own."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.samplers.double import step_in_double
from accel.suites.mixture import MixtureSuite

STEPS, LABELS = 6, [0, 1, 2]


@pytest.fixture(scope="module")
def pipe():
    return MixtureSuite().pipeline()


def sampled(pipe, recipe: Recipe, scale: float = 1.0) -> torch.Tensor:
    noise = scale * pipe._initial_noise(len(LABELS), generators(0, 0, len(LABELS)), None)
    with warnings.catch_warnings(), accelerate(pipe, recipe):
        warnings.simplefilter("error", UserWarning)
        return pipe(LABELS, latents=noise, generator=generators(1, 0, len(LABELS)), output_type="pt").images


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def dpm_solver(pipe, order: int, curvature: float) -> torch.Tensor:
    """DPM-Solver++(2M), or (3M) with c = `curvature`, on the trailing grid to sigma = 0 (see accel.samplers.dpmpp_3m).

    The first step and the last are of order 1, the second one and the last but one of order 2.
    """
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = [round(1000 - i * 1000 / STEPS) - 1 for i in range(STEPS)]
    alpha, sigma = (np.append(v[times], end) for v, end in ((alpha_bar**0.5, 1.0), ((1 - alpha_bar) ** 0.5, 0.0)))
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    noise = [torch.randn((1, 1, 2, 4), generator=g, dtype=torch.float64) for g in generators(0, 0, len(LABELS))]
    x, m = torch.cat(noise), []
    for i, t in enumerate(times):
        m.insert(0, (x - sigma[i] * pipe.unet(x, t, torch.tensor(LABELS)).sample) / alpha[i])
        h = lam[i + 1] - lam[i]
        own = min(order, i + 1, STEPS - i)
        if own > 1:
            r0 = (lam[i] - lam[i - 1]) / h
            d0 = (m[0] - m[1]) / r0
        if i == STEPS - 1:
            change = alpha[i + 1] * m[0]
        elif own == 1:
            change = -alpha[i + 1] * np.expm1(-h) * m[0]
        elif own == 2:
            change = -alpha[i + 1] * np.expm1(-h) * (m[0] + d0 / 2)
        else:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            d1 = (m[1] - m[2]) / r1
            first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
            phi2, phi3 = np.expm1(-h) / h + 1, (np.expm1(-h) + h) / h**2 - 0.5
            change = alpha[i + 1] * (-np.expm1(-h) * m[0] + phi2 * first - phi3 * curvature * second)
        x = sigma[i + 1] / sigma[i] * x + change
    return x


@pytest.mark.parametrize(("name", "order", "c"), [("dpmpp_2m", 2, 0), ("dpmpp_3m", 3, 1), ("dpmpp_3m_corrected", 3, 2)])
def test_dpm_solvers_are_their_formulas_to_the_last_digits(name, order, c, pipe):
    recipe = Recipe(method("sampler", name, steps=STEPS))
    wanted = dpm_solver(pipe, order, c)
    assert error(sampled(pipe, recipe), wanted) < 1e-12

    own = replace(recipe.sampler).build(pipe.scheduler.config)  # as diffusers steps
    own.set_timesteps(STEPS)
    x = pipe._initial_noise(len(LABELS), generators(0, 0, len(LABELS)), None)
    for t in own.timesteps:
        x = own.step(pipe.unet(x, t, torch.tensor(LABELS)).sample, t, x).prev_sample
    assert 1e-8 < error(x, wanted) < 1e-4


@pytest.mark.parametrize(
    ("theirs", "ours", "grid", "steps"),
    [
        ("euler", "ddim_accel", None, 6), ("euler", "ddim_accel", "karras", 6),
        ("euler", "ddim_accel", "exponential", 6),
        ("unipc", "unipc_accel", None, 6),
    ],
)  # fmt: skip
def test_the_same_map_by_both_libraries_is_the_same_to_the_last_digits(theirs, ours, grid, steps, pipe):
    made = [Recipe(method("sampler", name, steps=steps), grid and method("grid", grid)) for name in (theirs, ours)]
    rho = float(pipe.unet.rho(999))
    start = rho / (1 + rho**2) ** 0.5 if theirs == "euler" else 1.0  # on this grid Euler begins with rho eps
    assert error(sampled(pipe, made[0]), sampled(pipe, made[1], start)) < 1e-12


@pytest.mark.parametrize("name", ["deis", "heun"])
def test_others_have_the_levels_of_the_schedule(name, pipe):
    recipe = Recipe(method("sampler", name, steps=4))
    with accelerate(pipe, recipe) as run:
        pipe(LABELS, generator=generators(0, 0, len(LABELS)), output_type="pt")
    scheduler, alpha_bar = run.scheduler, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert scheduler.in_double
    assert scheduler.sigmas.dtype == torch.float64
    rho = ((1 - alpha_bar) / alpha_bar) ** 0.5
    assert scheduler.sigmas[:-1].numpy() == pytest.approx(rho[scheduler.timesteps.long().numpy()], rel=1e-11)


def test_noise_is_the_same_and_added_in_float64(pipe):
    """SDE-DPM-Solver++ draws float32 numbers: the float64 trajectory is that of the same noise."""
    options = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}
    recipe = Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 3, options=options))
    own = recipe.sampler.build(pipe.scheduler.config)
    own.set_timesteps(3)
    source = generators(1, 0, len(LABELS))
    x = pipe._initial_noise(len(LABELS), generators(0, 0, len(LABELS)), None)
    for t in own.timesteps:
        x = own.step(pipe.unet(x, t, torch.tensor(LABELS)).sample, t, x, generator=source).prev_sample
    found = sampled(pipe, recipe)
    assert 0 < error(found, x) < 1e-4


def test_what_cannot_be_mended_says_so_and_float32_is_left_alone(pipe):
    options = {"use_lu_lambdas": True}
    lu = Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 5, options=options))
    with accelerate(pipe, lu) as run, pytest.warns(UserWarning, match="rounds every sample to float32"):
        pipe(LABELS, generator=generators(0, 0, len(LABELS)), output_type="pt")
    assert not run.scheduler.in_double

    flow = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    step_in_double(flow)
    assert not flow.in_double

    single = MixtureSuite().pipeline().to(torch.float32)
    with accelerate(single, Recipe(method("sampler", "dpmpp_2m", steps=3))) as run:
        images = single(LABELS, generator=generators(0, 0, len(LABELS)), output_type="pt").images
    assert images.dtype == run.scheduler.sigmas.dtype == torch.float32
    assert not hasattr(run.scheduler, "in_double")
