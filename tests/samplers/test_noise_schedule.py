"""The continuous noise schedule: diffusers' levels at integer timesteps, one-to-one in between, exact ends."""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext

import diffusers
import numpy as np
import pytest

from accel.errors import AccelError, ConfigError
from accel.samplers.noise_schedule import BETA_SCHEDULES, noise_schedule

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SD = LINEAR | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CONFIGS = {
    "linear": LINEAR,
    "sd": SD,
    "cosine": LINEAR | {"beta_schedule": "squaredcos_cap_v2"},
    "short": LINEAR | {"num_train_timesteps": 200},
    "trained": LINEAR | {"num_train_timesteps": 50, "trained_betas": np.geomspace(1e-4, 0.3, 50).tolist()},
    "constant": LINEAR | {"beta_start": 0.01, "beta_end": 0.01},
    "zero_snr": SD | {"rescale_betas_zero_snr": True},
}
FLOW = {"num_train_timesteps": 1000, "use_flow_sigmas": True}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


# --- variance preserving


def test_noise_levels_are_those_of_diffusers(config):
    """diffusers accumulates in float32, which loses digits of alpha_bar and, at t = 0, of 1 - alpha_bar."""
    alpha_bar = diffusers.DPMSolverMultistepScheduler(**config).alphas_cumprod.double().numpy()
    schedule = noise_schedule(config)
    assert (schedule.total, schedule.t_min, schedule.t_max) == (len(alpha_bar), 0, len(alpha_bar) - 1)
    alpha, sigma = schedule.alpha_sigma(np.arange(schedule.total))
    zero_snr = config.get("rescale_betas_zero_snr", False)
    # The rescaling divides by differences: float32 is off by as much as the second to last alpha_bar is small.
    np.testing.assert_allclose(alpha**2, alpha_bar, rtol=0.02 if zero_snr else 2e-4, atol=1e-6)
    np.testing.assert_allclose(sigma**2, 1 - alpha_bar, rtol=1e-3)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)


@pytest.mark.parametrize("name", ["linear", "sd", "cosine", "short", "trained", "constant"])
def test_levels_lose_no_digits_to_the_summation(name):
    """The same betas multiplied with 50 digits: 1 - alpha_bar at t = 0 is where float64 products would lose most."""
    config = CONFIGS[name]
    total, ends = config["num_train_timesteps"], (config["beta_start"], config["beta_end"])
    bar = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
    betas = {
        "linear": [ends[0] + i / (total - 1) * (ends[1] - ends[0]) for i in range(total)],
        "scaled_linear": [
            (ends[0] ** 0.5 + i / (total - 1) * (ends[1] ** 0.5 - ends[0] ** 0.5)) ** 2 for i in range(total)
        ],
        "squaredcos_cap_v2": [min(1 - bar[i + 1] / bar[i], 0.999) for i in range(total)],
    }[config["beta_schedule"]]
    with localcontext(Context(prec=50)):
        product, expected = Decimal(1), []
        for beta in config.get("trained_betas", betas):
            product *= 1 - Decimal(beta)
            expected.append(float(((1 - product) / product).sqrt()))
    # 1e-11: the cosine betas themselves are differences of numbers near 1.
    np.testing.assert_allclose(noise_schedule(config).rho(np.arange(total)), expected, rtol=1e-11)


def test_zero_snr_keeps_the_first_level_and_ends_at_what_diffusers_puts_for_zero():
    """Lin et al. 2024, algorithm 1: sqrt(alpha_bar) is shifted and scaled linearly; the first stays, the last is 0."""
    plain, zero = noise_schedule(SD), noise_schedule(CONFIGS["zero_snr"])
    a, b = (s.alpha_sigma(np.arange(1000))[0] for s in (plain, zero))
    assert b[0] == pytest.approx(a[0], rel=1e-12)
    assert b[-1] ** 2 == pytest.approx(2.0**-24, rel=1e-6)
    np.testing.assert_allclose(np.diff(b[:-1]) / np.diff(a[:-1]), a[0] / (a[0] - a[-1]), rtol=1e-9)


def test_levels_between_timesteps_are_those_that_diffusers_inverts(config):
    """log rho is linear in t, so `_sigma_to_t` of diffusers finds the timestep again, and so does `timestep`."""
    schedule = noise_schedule(config)
    euler = diffusers.EulerDiscreteScheduler()
    for t in (0.0, 0.25, 7.5, schedule.total / 2 + 0.125, schedule.t_max - 0.5, schedule.t_max):
        rho = schedule.rho(t)
        assert float(euler._sigma_to_t(rho, schedule.log_rho)) == pytest.approx(t, abs=1e-6)
        assert float(schedule.timestep(rho)) == pytest.approx(t, abs=1e-7)
    low, high = np.log(schedule.rho([3, 4]))
    assert np.log(schedule.rho(3.25)) == pytest.approx(0.75 * low + 0.25 * high, rel=1e-14)


def test_levels_rise_with_the_timestep_and_of_rho_agrees(config):
    schedule = noise_schedule(config)
    t = np.linspace(0, schedule.t_max, 3777)
    rho = schedule.rho(t)
    assert (np.diff(rho) > 0).all()
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(sigma / alpha, rho, rtol=1e-14)
    for found, expected in zip(schedule.of_rho(rho), (alpha, sigma), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_beyond_the_ends_the_level_stays_at_the_end(config):
    schedule = noise_schedule(config)
    assert schedule.timestep(1e12) == schedule.t_max
    assert schedule.timestep(1e-12) == 0


# --- flow


def test_a_flow_is_a_straight_line():
    schedule = noise_schedule(FLOW)
    assert schedule.flow
    assert (schedule.t_min, schedule.t_max) == (1, 1000)
    t = np.array([1, 10.5, 500, 999, 1000])
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_array_equal(sigma, t / 1000)
    np.testing.assert_array_equal(alpha, 1 - sigma)
    assert alpha[-1] == 0
    np.testing.assert_allclose(schedule.rho(t[:-1]), sigma[:-1] / alpha[:-1], rtol=1e-14)
    for found, expected in zip(schedule.of_rho(schedule.rho(t[:-1])), (alpha, sigma), strict=True):
        np.testing.assert_allclose(found, expected[:-1], rtol=1e-13)


def test_a_flow_inverts_and_is_finite_where_alpha_is_zero():
    schedule = noise_schedule(FLOW)
    t = np.linspace(1, 999, 321)
    np.testing.assert_allclose(schedule.timestep(schedule.rho(t)), t, rtol=1e-12)
    assert schedule.rho(1000) == schedule.rho(999) == pytest.approx(999)
    assert schedule.timestep(1e-9) == 1
    assert schedule.timestep(1e15) <= 1000


def test_flow_levels_are_those_of_diffusers_flow_schedulers():
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    _, sigma = noise_schedule(FLOW).alpha_sigma(flow.timesteps.double().numpy())
    np.testing.assert_allclose(sigma, flow.sigmas.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "flow"),
    [
        (diffusers.DDPMScheduler().config, False),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction").config, False),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config, True),
        (diffusers.FlowMatchHeunDiscreteScheduler().config, True),
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction").config, True),
        ({"prediction_type": "flow_prediction"}, True),
        ({}, False),
    ],
)
def test_a_flow_is_known_by_its_scheduler_config(config, flow):
    assert noise_schedule(config).flow == flow


# --- both


@pytest.mark.parametrize("config", [LINEAR, FLOW], ids=["linear", "flow"])
def test_a_later_start_changes_the_end_only(config):
    schedule = noise_schedule(config)
    part = schedule.starting_at(600.5)
    assert (part.t_max, part.t_min, part.total) == (600.5, schedule.t_min, 1000)
    assert part.rho(300.25) == schedule.rho(300.25)
    assert part.identity == schedule.identity


def test_identity_tells_schedules_apart():
    """Of everything that changes a noise level, and of nothing else."""
    every = [*CONFIGS.values(), FLOW, FLOW | {"num_train_timesteps": 500}]
    assert len({noise_schedule(c).identity for c in every}) == len(every)
    assert noise_schedule(LINEAR | {"steps_offset": 1}).identity == noise_schedule({}).identity


def test_a_config_of_any_diffusers_scheduler_gives_the_same_schedule():
    configs = [getattr(diffusers, f"{n}Scheduler")(**SD).config for n in ("DDIM", "PNDM", "EulerDiscrete", "DDPM")]
    assert {noise_schedule(c).identity for c in configs} == {noise_schedule(SD).identity}


def test_shared_levels_cannot_be_written_to():
    schedule = noise_schedule(LINEAR)
    with pytest.raises(ValueError, match="read-only"):
        schedule.log_rho[0] = 0
    assert schedule.log_rho.dtype == np.float64


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps is 1; allowed: an integer >= 2"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5"),
        ({"beta_schedule": "liner"}, "unknown beta_schedule 'liner'. Did you mean linear"),
        ({"beta_schedule": "sigmoid"}, f"Allowed: {', '.join(sorted(BETA_SCHEDULES))}"),
        ({"beta_start": 0.5}, "beta_start is 0.5; allowed: a number in"),
        ({"beta_start": 0.0}, "beta_start is 0.0"),
        ({"beta_end": 1.0}, "beta_end is 1.0"),
        ({"trained_betas": [0.1, 1.5]}, "trained_betas is 1.5"),
        ({"trained_betas": [0.1, float("nan")]}, "trained_betas is nan"),
        ({"trained_betas": [0.1]}, "the number of trained_betas is 1"),
        ({"trained_betas": []}, "the number of trained_betas is 0"),
    ],
)
def test_bad_input_is_one_clear_error(config, said):
    with pytest.raises(ConfigError, match=said) as caught:
        noise_schedule(config)
    assert isinstance(caught.value, AccelError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [LINEAR, FLOW], ids=["linear", "flow"])
@pytest.mark.parametrize("t", [-1.0, 0.0, 1001.0, float("nan")])
def test_a_start_outside_the_schedule_is_refused(config, t):
    if t == 0 and config is LINEAR:
        assert noise_schedule(config).starting_at(t).t_max == 0
        return
    with pytest.raises(ConfigError, match="start timestep is"):
        noise_schedule(config).starting_at(t)
