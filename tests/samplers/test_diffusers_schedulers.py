"""diffusers' schedulers as the config has them: where they start and end, what they converge to, on which grids."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from inspect import signature

import diffusers
import numpy as np
import pytest
import torch

from accel.config import choice_of, groups
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.samplers import DEISScheduler, DiffusersSampler
from accel.samplers.grids import Grid
from accel.samplers.noise import draws_noise
from accel.suites.mixture import MixtureSuite

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SD = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "steps_offset": 1, "timestep_spacing": "leading", "clip_sample": True, "final_sigmas_type": "sigma_min",
}  # fmt: skip
GRIDS = ["trailing", "linspace", "leading", "karras", "exponential"]
POWER_LAWS = ["karras", "exponential"]


SAMPLERS = {name: choice_of("sampler", name) for name in groups()["sampler"] if name != "none"}
# diffusers' own, for models with betas: accel's, those of flows and those that add noise have their own tests.
SAMPLERS = {
    name: s
    for name, s in SAMPLERS.items()
    if isinstance(s, DiffusersSampler)
    and hasattr(diffusers, s.scheduler)
    and not s.scheduler.startswith("FlowMatch")
    and not draws_noise(s.scheduler_class)
}


def sigmas_of(config) -> np.ndarray:
    """sigma / alpha of every training timestep, in float64 from the betas alone."""
    if config["beta_schedule"] == "linear":
        betas = np.linspace(config["beta_start"], config["beta_end"], 1000)
    else:
        betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def test_the_config_has_the_samplers_that_are_compared():
    assert {"ddim", "deis", "dpmpp_2m", "euler", "heun", "unipc"} <= set(SAMPLERS)
    assert all(s.name == name for name, s in SAMPLERS.items())


# --- start and end


@pytest.mark.parametrize("config", [LINEAR, SD], ids=["linear", "sd"])
@pytest.mark.parametrize("steps", [1, 4, 10, 25])
@pytest.mark.parametrize("name", SAMPLERS)
def test_point_mass_is_reached_exactly(name, steps, config):
    """Data that is a single point x0 has eps = (x_t - alpha x0) / sigma, constant along the ODE: no solver errs.

    So the result tells where a sampler ends: x0 at sigma = 0, alpha_0 x0 + sigma_0 eps at timestep 0 (DEIS).
    """
    scheduler = replace(SAMPLERS[name], steps=steps).build(config)
    scheduler.set_timesteps(steps)
    assert float(scheduler.timesteps[0]) == 999, "all start at the last training timestep"
    assert len(scheduler.timesteps) == (2 * steps - 1 if name == "heun" else steps)

    draw = torch.Generator().manual_seed(0)
    x0, noise = torch.rand(2, 1, 4, 4, generator=draw) - 0.5, torch.randn(2, 1, 4, 4, generator=draw)
    sigma = sigmas_of(config)
    alpha = 1 / np.sqrt(1 + sigma**2)
    first = alpha[-1] * x0 + sigma[-1] * alpha[-1] * noise
    scaled = float(scheduler.init_noise_sigma) > 1.5  # Euler and Heun work on x / alpha
    x = first / alpha[-1] if scaled else first
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, t)
        predicted = (inputs - alpha[int(t)] * x0) / (sigma[int(t)] * alpha[int(t)])
        x = scheduler.step(predicted.float(), t, x.float()).prev_sample

    expected = alpha[0] * x0 + sigma[0] * alpha[0] * noise if name == "deis" else x0
    assert (x - expected).abs().max() < 2e-4 * sigma[-1] / 14  # float32 betas; sigma reaches 157 (linear) or 14 (SD)
    if name == "deis":
        assert (x - x0).abs().max() > 0.005, "not at sigma = 0: what the config's comment says"
    elif hasattr(scheduler, "sigmas"):
        assert float(scheduler.sigmas[-1]) == 0.0


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_models_schedule_is_kept_and_its_own_config_untouched(name):
    config = dict(SD, prediction_type="v_prediction")
    config = config | {"thresholding": True}
    before = dict(config)
    scheduler = SAMPLERS[name].build(config)
    assert config == before
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    assert {k: scheduler.config[k] for k in kept} == {k: config[k] for k in kept}
    assert scheduler.config["timestep_spacing"] == "trailing"
    for key in ("clip_sample", "thresholding"):  # Euler cannot clip, so that nobody may
        assert key not in signature(type(scheduler)).parameters or scheduler.config[key] is False


# --- convergence on suite `mixture`


@pytest.fixture(scope="module")
def error():
    """error(sampler, grid=None) -> (root mean square distance to the exact solution, NFE)."""
    suite = MixtureSuite()
    pipe = suite.pipeline()
    exact = suite.solve(pipe, Recipe(), 0, 0, 32)

    def error(sampler: DiffusersSampler, grid: str | None = None) -> tuple[float, float]:
        recipe = Recipe(sampler, grid=Grid(grid) if grid else None)
        with accelerate(pipe, recipe) as traced:
            images = generate(pipe, suite, recipe, 0, 0, 32, 32)
        return float((images - exact).square().mean().sqrt()), traced.nfe

    return error


@pytest.mark.parametrize("name", SAMPLERS)
def test_more_steps_come_nearer_to_the_exact_solution(name, error):
    ten, _ = error(replace(SAMPLERS[name], steps=10))
    forty, nfe = error(replace(SAMPLERS[name], steps=40))
    assert nfe == (79 if name == "heun" else 40)
    assert forty < 0.5 * ten
    assert forty < 0.04


def test_second_order_beats_first_at_20_evaluations(error):
    """On a grid that gives the low noise levels their share. DDIM has its own grid only, Euler takes either."""
    first = [error(replace(SAMPLERS["ddim"], steps=20))[0], error(replace(SAMPLERS["euler"], steps=20))[0],
             error(replace(SAMPLERS["euler"], steps=20), "exponential")[0]]  # fmt: skip
    for name in ("deis", "dpmpp_2m", "unipc"):
        found, nfe = error(replace(SAMPLERS[name], steps=20), "exponential")
        assert nfe == 20
        assert found < 0.5 * min(first), name


def test_on_the_trailing_grid_the_last_step_hides_the_order(error):
    """Known limit of a common grid: the step from t = 49 to 0 dominates, so that second order gains little there."""
    ddim = error(replace(SAMPLERS["ddim"], steps=20))[0]
    for name in ("dpmpp_2m", "unipc"):
        assert 0.7 * ddim < error(replace(SAMPLERS[name], steps=20))[0] < ddim
    for name in ("deis", "heun"):
        assert error(replace(SAMPLERS[name], steps=20 if name == "deis" else 10))[0] > ddim


def test_heun_is_of_second_order_and_euler_of_first(error):
    """Halving the step divides the error by 4 or 2, on the power law in sigma that both take."""
    for name, order in (("heun", 2.0), ("euler", 1.0)):
        coarse, fine = (error(replace(SAMPLERS[name], steps=steps), "exponential")[0] for steps in (20, 40))
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35), name


def test_ddim_leaves_its_grid_when_the_steps_do_not_divide_the_schedule(error):
    """Known flaw of diffusers: DDIM steps by T // N, the trailing grid by T / N. Otherwise it is Euler's method."""
    for steps, same in ((20, True), (40, True), (30, False), (60, False)):
        ddim, euler = (error(replace(SAMPLERS[name], steps=steps))[0] for name in ("ddim", "euler"))
        assert (abs(ddim / euler - 1) < 1e-3) == same, steps


# --- grids


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("grid", GRIDS)
def test_sigmas_strictly_decrease_to_zero(grid, steps):
    scheduler = replace(SAMPLERS["dpmpp_2m"], steps=steps).build(LINEAR, Grid(grid))
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    assert len(sigmas) == steps + 1
    assert (sigmas[1:] < sigmas[:-1]).all()
    assert sigmas[-1] == 0
    full = sigmas_of(LINEAR)
    if grid != "leading":
        assert float(sigmas[0]) == pytest.approx(full[-1], rel=1e-3)
    if grid in POWER_LAWS:
        assert float(sigmas[-2]) == pytest.approx(full[0], rel=1e-3)


def test_leading_grid_starts_below_the_largest_noise():
    """Lin et al. 2024: why `leading` is not the default; it begins where the model's noise is not yet pure."""
    scheduler = replace(SAMPLERS["dpmpp_2m"], steps=10).build(LINEAR, Grid("leading"))
    scheduler.set_timesteps(10)
    assert float(scheduler.timesteps[0]) == 900
    assert float(scheduler.sigmas[0]) < 0.5 * sigmas_of(LINEAR)[-1]


@pytest.mark.parametrize(
    ("grid", "steps", "repeated"),
    [("karras", 20, False), ("karras", 100, True), ("exponential", 20, False), ("exponential", 50, True)],
)
def test_diffusers_multistep_rounds_timesteps_so_that_the_last_repeat(grid, steps, repeated):
    """Its sigmas differ but the network is told the same integer timestep; see also tests/suites/test_mixture.py."""
    scheduler = replace(SAMPLERS["dpmpp_2m"], steps=steps).build(LINEAR, Grid(grid))
    scheduler.set_timesteps(steps)
    assert not scheduler.timesteps.is_floating_point()
    assert (len(scheduler.timesteps.unique()) < steps) == repeated


@pytest.mark.parametrize("steps", [6, 15])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "unipc", "deis"])
def test_power_laws_are_the_same_for_every_sampler(name, steps):
    """N sigmas from the schedule's largest to its smallest. Euler and Heun would end at the last trailing one."""
    full = sigmas_of(LINEAR)
    ramp = np.linspace(0, 1, steps)
    laws = {
        "karras": (full[-1] ** (1 / 7) + ramp * (full[0] ** (1 / 7) - full[-1] ** (1 / 7))) ** 7,
        "exponential": np.exp(np.log(full[-1]) + ramp * (np.log(full[0]) - np.log(full[-1]))),
    }
    for grid, expected in laws.items():
        scheduler = replace(SAMPLERS[name], steps=steps).build(LINEAR, Grid(grid))
        scheduler.set_timesteps(steps)
        found = scheduler.sigmas.double().numpy()
        if name == "heun":
            found = np.append(found[:-1:2], found[-1])  # every inner sigma stands twice
        np.testing.assert_allclose(found[:-1], expected, rtol=2e-3)
        # DEIS repeats its last sigma: its last step goes nowhere, and it ends at sigma(t = 0) as everywhere.
        assert found[-1] == (found[-2] if name == "deis" else 0)


def test_grid_overrides_the_samplers_own_spacing_and_refuses_what_the_class_lacks():
    spaced = DiffusersSampler("EulerDiscreteScheduler", 5, options={"timestep_spacing": "leading"})
    assert spaced.build(LINEAR).config["timestep_spacing"] == "leading"
    assert spaced.build(LINEAR, Grid("linspace")).config["timestep_spacing"] == "linspace"
    for name in POWER_LAWS:
        with pytest.raises(IncompatibleError, match=f"grid '{name}' cannot .* it takes: trailing, linspace, leading"):
            SAMPLERS["ddim"].build(LINEAR, Grid(name))


# --- settings


def test_options_are_copied_and_named():
    options = {"set_alpha_to_one": True}
    sampler = DiffusersSampler("DDIMScheduler", 7, options=options)
    options["set_alpha_to_one"] = False
    assert sampler.build(LINEAR).config["set_alpha_to_one"] is True
    assert (sampler.name, sampler.label) == ("DDIM", "DDIM-7")
    assert replace(sampler, name="mine").label == "mine-7"
    with pytest.raises(FrozenInstanceError):
        sampler.steps = 8


def test_steps_are_bounded_by_the_models_schedule():
    short = LINEAR | {"num_train_timesteps": 100}
    for name in SAMPLERS:
        assert replace(SAMPLERS[name], steps=100).build(short)
        with pytest.raises(ConfigError, match=r"steps is 101, more than the 100 timesteps .* allowed: 1\.\.100"):
            replace(SAMPLERS[name], steps=101).build(short)


def test_accels_own_schedulers_are_named_in_the_same_way():
    """On the trailing grid, without thresholding, on the model's schedule; what does not fit fails at once."""
    config = SD | {"thresholding": True, "prediction_type": "v_prediction"}
    sampler = DiffusersSampler("DEISScheduler", 5, options={"variant": "rhoab", "ab_order": 2})
    scheduler = sampler.build(config)
    assert type(scheduler) is DEISScheduler
    assert (sampler.label, sampler.evaluations) == ("DEIS-5", 5)
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["thresholding"] is False
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    assert sampler.build(config, Grid("karras")).grid == Grid("karras")
    with pytest.raises(ConfigError, match="2 steps are too few for ab_order=2"):
        replace(sampler, steps=2).build(config)


def test_a_flow_with_dynamic_shifting_is_built_before_its_exponent_is_known():
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    for kind in ("exponential", "linear"):
        scheduler = DiffusersSampler("DEISScheduler", 5).build(config | {"time_shift_type": kind})
        scheduler.set_timesteps(5, mu=1.5)
        assert scheduler.timesteps[0] == 1000


@pytest.mark.parametrize(
    ("scheduler", "options", "said"),
    [("UNet2DModel", {}, "unknown scheduler 'UNet2DModel'"),
     ("SchedulerMixin", {}, "unknown scheduler 'SchedulerMixin'"),
     ("BaseScheduler", {}, "unknown scheduler 'BaseScheduler'"),
     ("DEISSheduler", {}, "unknown scheduler 'DEISSheduler'. Did you mean DEISScheduler"),
     ("DEISScheduler", {"solver_order": 2}, "option of DEISScheduler 'solver_order'"),
     ("", {}, "unknown scheduler ''"),
     ("EulerDiscreteScheduler", {"solver_order": 2}, "option of EulerDiscreteScheduler 'solver_order'"),
     ("DDIMScheduler", {"self": 1}, "option of DDIMScheduler 'self'")],
)  # fmt: skip
def test_what_is_not_a_scheduler_or_an_option_is_refused(scheduler, options, said):
    with pytest.raises(ConfigError, match=said):
        DiffusersSampler(scheduler, 5, options=options)
