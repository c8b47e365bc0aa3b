"""The samplers' update equations, as pure functions in float64, against closed forms and solutions that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from accel.samplers.dc_solver import dynamic_compensation, unipc_correct, unipc_predict, unipc_weights
from accel.samplers.deis import (
    TABLEAUX,
    adams_bashforth_step,
    adams_bashforth_weights,
    constant_steps,
    runge_kutta_stage,
)
from accel.samplers.dpmpp_3m import missing_curvature
from accel.samplers.langevin_chain import dpmpp_2m_step, gibbs_step, langevin_step, lower_state, to_level
from accel.samplers.noise_schedule import noise_schedule
from accel.samplers.ode import probability_flow, timestep
from accel.samplers.predictor_corrector import PREDICTORS, Levels, langevin_correct, reverse_sde_step
from accel.samplers.quadrature import adams_bashforth
from accel.samplers.rf_solver import flow_velocity, half_step, midpoint_step
from accel.samplers.scheduler import convert

KINDS = ("epsilon", "sample", "v_prediction")
X0, EPS = (torch.tensor([v], dtype=torch.float64) for v in (0.8, -0.3))
BETAS = noise_schedule({"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"})
FLOW = noise_schedule({"num_train_timesteps": 1000, "use_flow_sigmas": True})


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([float(value)], dtype=torch.float64)


def output_of(kind: str, alpha: float, sigma: float) -> torch.Tensor:
    """What a model with prediction type `kind` says that believes in X0 and EPS."""
    return {"epsilon": EPS, "sample": X0, "v_prediction": alpha * EPS - sigma * X0, "flow_prediction": EPS - X0}[kind]


# --- DEIS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_adams_bashforth_integrates_polynomials_of_its_degree(k, kind):
    """d x_bar / d rho = eps(rho) of degree k, on uneven levels; one degree more is missed."""
    rho = np.array([0.9, 1.3, 2.5, 4.0])[: k + 1]  # newest first
    alpha, sigma = (v / math.sqrt(1 + 0.9**2) for v in (1.0, 0.9))
    end, a, s = 0.35, 1 / math.sqrt(1 + 0.35**2), 0.35 / math.sqrt(1 + 0.35**2)
    for degree in range(k + 2):
        eps = np.poly1d(np.linspace(1.0, -0.6, degree + 1))
        x0, now = 0.7, eps(rho[0])
        x = alpha * x0 + sigma * now
        output = {"epsilon": now, "sample": x0, "v_prediction": alpha * now - sigma * x0}[kind]
        c = adams_bashforth(BETAS, "rho", rho, end)
        weights = adams_bashforth_weights(c[1:], a, s, convert(kind, alpha, sigma))
        found = adams_bashforth_step(scalar(x), scalar(output), [scalar(eps(r)) for r in rho[1:]], *weights)
        exact = a * (x / alpha + eps.integ()(end) - eps.integ()(rho[0]))
        assert (abs(float(found) - exact) < 1e-12) == (degree <= k), degree


def test_adams_bashforth_starts_a_flow_at_alpha_zero():
    """x = eps says nothing about x_0, but a velocity does: (1 - s) x_0 + s eps at the end, with what came before."""
    weights = adams_bashforth_weights(np.array([]), 0.25, 0.75, convert("flow_prediction", 0.0, 1.0))
    found = adams_bashforth_step(EPS, output_of("flow_prediction", 0.0, 1.0), [], *weights)
    torch.testing.assert_close(found, 0.25 * X0 + 0.75 * EPS, rtol=1e-14, atol=0)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_weights_of_constant_steps_are_the_integrals_of_equal_steps(k):
    """Against the polynomial through equally spaced nodes, integrated; on other nodes they stay the same."""
    h, equal = -0.5, 2.0 + 0.5 * np.arange(k + 1)
    basis = [np.poly1d(np.delete(equal, j), r=True) / np.prod(equal[j] - np.delete(equal, j)) for j in range(k + 1)]
    exact = [b.integ()(2.0 + h) - b.integ()(2.0) for b in basis]
    np.testing.assert_allclose(constant_steps(BETAS, equal, 2.0 + h), exact, rtol=1e-12)
    uneven = np.append(2.0, 2.0 + np.array([0.1, 3.0, 9.0])[:k])
    np.testing.assert_allclose(constant_steps(BETAS, uneven, 2.0 + h), exact, rtol=1e-12)


@pytest.mark.parametrize("name", TABLEAUX)
def test_runge_kutta_has_its_stability_polynomial(name):
    """eps = rate x_bar + 0.2: every method with as many stages as its order gives the truncated exponential series."""
    tableau, rate, start, h = TABLEAUX[name], 0.9, 2.0, -0.6
    x_bar, slopes = 0.4, []
    state = x_bar
    x0 = x_bar - start * (rate * x_bar + 0.2)  # x_bar = x_0 + rho eps
    for row, c in zip((*tableau.a[1:], tableau.b), (*tableau.c[1:], 1.0), strict=True):
        slopes.append(scalar(rate * state + 0.2))
        alpha = 1 / math.sqrt(1 + (start + c * h) ** 2)
        found = runge_kutta_stage(scalar(x0), slopes, row, alpha, alpha * (start + c * h), h)
        state = float(found) / alpha
    series = sum((rate * h) ** k / math.factorial(k) for k in range(tableau.order + 1))
    assert tableau.order == len(tableau.b)
    assert state + 0.2 / rate == pytest.approx((x_bar + 0.2 / rate) * series, rel=1e-13)


# --- UniPC and its compensation


@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize(("p", "degrees"), [(1, (0, 0)), (2, (0, 2)), (3, (2, 3))])
def test_unipc_integrates_polynomials_in_lambda(p, degrees, data, kind):
    """x / sigma moves by the integral of e^lambda x_0, x / alpha by that of -e^-lambda eps; in closed form."""
    lam, end = np.array([0.3, -0.2, -1.1])[:p], 0.7
    rho = np.exp(-np.array([0.3, end]))
    alpha = 1 / np.sqrt(1 + rho**2)
    sigma = rho * alpha
    sign, level = (1, sigma) if data else (-1, alpha)
    predict, correct = unipc_weights(alpha, sigma, lam, end, data, kind)
    for degree in range(5):
        m = np.poly1d(np.linspace(1, -0.7, degree + 1))

        def primitive(at, m=m):  # of sign e^{sign lambda} m, by parts
            return math.exp(sign * at) * sum((-sign) ** k * np.polyder(m, k)(at) for k in range(len(m) + 1))

        exact = level[1] * (0.8 / level[0] + primitive(end) - primitive(lam[0]))
        outputs = [scalar(m(v)) for v in lam]
        found = (unipc_predict(scalar(0.8), outputs, predict),
                 unipc_correct(scalar(0.8), outputs, scalar(m(end)), correct))  # fmt: skip
        for value, limit in zip(found, degrees, strict=True):
            assert (abs(float(value) - exact) < 1e-12) == (degree <= limit), (degree, limit)


@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
def test_unipc_to_sigma_zero_gives_the_predicted_data_and_has_no_corrector(data):
    (weights,) = unipc_weights((0.6, 1.0), (0.8, 0.0), np.array([math.log(0.6 / 0.8)]), math.inf, data, "bh2")
    found = unipc_predict(0.6 * X0 + 0.8 * EPS, [X0 if data else EPS], weights)
    torch.testing.assert_close(found, X0, rtol=1e-14, atol=0)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_compensation_is_the_polynomial_through_the_outputs(order, as_tensor):
    positions = [0.0, 1.0, 1.7, 3.2, 4.1][: order + 1]
    for degree in range(order + 2):
        m = np.poly1d(np.linspace(1, -0.7, degree + 1))
        for ratio in (0.4, 1.6):
            given = torch.tensor(ratio, dtype=torch.float64) if as_tensor else ratio
            found = dynamic_compensation([scalar(m(u)) for u in positions], positions, given)
            assert (abs(float(found) - m(1 - ratio)) < 1e-12) == (degree <= order), degree


# --- DPM-Solver++(3M)


@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
def test_missing_curvature_is_half_the_integral_of_the_second_derivative(data):
    """For a parabola: level' times the integral of sign e^{sign lambda} m''/2 (lambda - lambda_i)^2, of which half."""
    lam = [-0.4, 0.1, 0.9, 1.6]
    m = np.poly1d([0.7, -1.0, 0.3])
    rho = math.exp(-lam[3])
    alpha = 1 / math.sqrt(1 + rho**2)
    sign, level = (1, rho * alpha) if data else (-1, alpha)
    at, weights = np.polynomial.legendre.leggauss(40)
    at, weights = lam[2] + (at + 1) / 2 * (lam[3] - lam[2]), weights * (lam[3] - lam[2]) / 2
    integral = float(weights @ (sign * np.exp(sign * at) * 0.7 * (at - lam[2]) ** 2))
    found = missing_curvature([scalar(m(v)) for v in lam[:3]], lam, alpha if data else rho * alpha, data)
    assert float(found) == pytest.approx(level * integral / 2, rel=1e-11)


# --- RF-Solver


@pytest.mark.parametrize("kind", ["flow_prediction", "sample", "epsilon"])
def test_velocity_is_eps_less_x0_whatever_the_model_predicts(kind):
    x = 0.4 * X0 + 0.6 * EPS
    found = flow_velocity(x, output_of(kind, 0.4, 0.6), convert(kind, 0.4, 0.6))
    torch.testing.assert_close(found, EPS - X0, rtol=1e-13, atol=0)


def test_the_midpoint_rule_has_its_stability_polynomial_and_its_error():
    """dx/ds = k x gives 1 + z + z^2/2 with z = k D; dx/ds = s^2 is missed by D^3 / 12, dx/ds = s not at all."""
    width, k = -0.4, 1.3
    middle = half_step(X0, k * X0, width)
    z = k * width
    torch.testing.assert_close(midpoint_step(X0, k * middle, width), X0 * (1 + z + z**2 / 2), rtol=1e-14, atol=0)
    start = 0.9
    for power, missed in ((1, 0.0), (2, width**3 / 12)):
        exact = ((start + width) ** (power + 1) - start ** (power + 1)) / (power + 1)
        moved = float(midpoint_step(X0, scalar((start + width / 2) ** power), width) - X0)
        assert exact - moved == pytest.approx(missed, abs=1e-15)


# --- predictor-corrector


LEVELS = Levels(np.array([3.0, 1.2]), np.array([3.0, 1.2]) / np.sqrt(1 + np.array([9.0, 1.44])), np.array([1.2, 0.5]))


def test_ve_ancestral_is_the_posterior_of_the_diffusion():
    """q(x' | x, x_0) of Gaussian noise: mean x_0 + rho'^2 / rho^2 (x - x_0), variance rho'^2 (1 - rho'^2 / rho^2)."""
    a, b, c = (v[0] for v in PREDICTORS["ancestral"]["ve"](LEVELS))
    x, z = X0 + 3.0 * EPS, scalar(0.9)
    share = 1.2**2 / 3.0**2
    expected = X0 + share * (x - X0) + math.sqrt(1.2**2 * (1 - share)) * z
    torch.testing.assert_close(reverse_sde_step(x, EPS, z, a, b, c), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(reverse_sde_step(x, EPS, None, a, b, c), X0 + share * (x - X0), rtol=1e-13, atol=0)


def variance_error(predictor: str, sde: str, width: float) -> float:
    """Of one step from rho = 1.5 on data N(0, 1), where x_t has variance 1 and x_t / alpha has 1 + rho^2."""
    rho, end = np.array([1.5]), np.array([1.5 - width])
    levels = Levels(rho, rho / np.sqrt(1 + rho**2), end)
    a, b, c = (float(v[0]) for v in PREDICTORS[predictor][sde](levels))
    gain = float(levels.sigma[0]) if sde == "vp" else 1.5 / (1 + 1.5**2)  # of eps = gain x
    before, after = (1.0, 1.0) if sde == "vp" else (1 + 1.5**2, float(1 + end[0] ** 2))
    return abs((a + b * gain) ** 2 * before + c**2 - after)


@pytest.mark.parametrize(
    ("predictor", "sde"),
    [("reverse_diffusion", "vp"), ("euler_maruyama", "vp"), ("reverse_diffusion", "ve"), ("ancestral", "ve"),
     ("euler_maruyama", "ve")],
)  # fmt: skip
def test_predictors_keep_the_variance_to_second_order_of_the_step(predictor, sde):
    """Half the step, a quarter of the error after one step."""
    assert variance_error(predictor, sde, 0.01) / variance_error(predictor, sde, 0.005) == pytest.approx(4.0, rel=0.05)
    assert variance_error(predictor, sde, 0.01) < 1e-3


def test_vp_ancestral_keeps_normal_data_exactly():
    """sqrt(1 - beta)^2 + beta = 1, for steps of any size."""
    assert variance_error("ancestral", "vp", 1.2) < 1e-15


def test_the_predictor_none_changes_nothing():
    for sde in ("vp", "ve"):
        a, b, c = (v[1] for v in PREDICTORS["none"][sde](LEVELS))
        assert torch.equal(reverse_sde_step(X0, EPS, scalar(5.0), a, b, c), X0)


@pytest.mark.parametrize("a", [1.0, 0.7])
def test_langevin_corrector_has_the_signal_to_noise_ratio_that_it_is_given(a):
    """|e g| / |sqrt(2 e) z| = sqrt(a) snr in each sample, and the drift is along the score."""
    x, g, z = draw(0, 3, 1, 4, 4), draw(1, 3, 1, 4, 4), draw(2, 3, 1, 4, 4)
    g[1] *= 7
    drift = langevin_correct(x, g, z, 0.16, a) + langevin_correct(x, g, -z, 0.16, a) - 2 * x  # 2 e g
    noise = langevin_correct(x, g, z, 0.16, a) - langevin_correct(x, g, -z, 0.16, a)  # 2 sqrt(2 e) z
    for i in range(3):
        assert float(drift[i].norm() / noise[i].norm()) == pytest.approx(math.sqrt(a) * 0.16, rel=1e-12)
        assert float((drift[i] * g[i]).sum() / drift[i].norm() / g[i].norm()) == pytest.approx(1.0, rel=1e-12)
    g[2] = 0.0
    assert torch.equal(langevin_correct(x, g, z, 0.16, a)[2], x[2])


# --- the probability-flow ODE


def test_slope_of_a_diffusion_is_that_of_a_gaussians_quantile():
    """x_bar = m + q sqrt(s^2 + rho^2) for data N(m, s^2), by u = ln rho; the model sees alpha x_bar."""
    mean, std, q, u = 0.5, 0.3, scalar(1.7), math.log(2.2)
    asked = []

    def predict(x, t):
        alpha, sigma = map(float, BETAS.alpha_sigma(t))
        asked.append((t, alpha))
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    spread = math.sqrt(std**2 + 2.2**2)
    found = probability_flow(mean + q * spread, u, BETAS, predict)
    assert float(found) == pytest.approx(1.7 * 2.2**2 / spread, rel=1e-9)
    assert asked == [(timestep(u, BETAS), pytest.approx(1 / math.sqrt(1 + 2.2**2)))]


def test_slope_of_a_flow_is_that_of_a_gaussians_quantile():
    """x = (1 - s) m + q r with r^2 = (1 - s)^2 std^2 + s^2, differentiated by s."""
    mean, std, s = 0.5, 0.3, 0.35
    r = math.sqrt((1 - s) ** 2 * std**2 + s**2)

    def predict(x, t):
        assert t == pytest.approx(350.0)
        centred = (x - (1 - s) * mean) / r**2
        return s * centred - mean - (1 - s) * std**2 * centred

    found = probability_flow((1 - s) * mean + scalar(1.7) * r, s, FLOW, predict)
    assert float(found) == pytest.approx(-mean + 1.7 * (s - (1 - s) * std**2) / r, rel=1e-12)


# --- Langevin-Gibbs


def test_langevin_step_keeps_a_gaussian_up_to_its_known_bias():
    """x ~ N(0, v): x' has variance (1 - eta / 2v)^2 v + eta, of which v / (1 - eta / 4v) is the fixed point."""
    eta, sigma = 0.3, torch.tensor([0.5, 2.0], dtype=torch.float64)
    v = 0.09 + sigma**2
    one, zero = torch.ones(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    eps = (sigma / v).reshape(2, 1)  # of x = 1
    gain, noise = langevin_step(one, eps, sigma, zero, eta), langevin_step(zero, zero, sigma, one, eta)
    torch.testing.assert_close(gain.flatten(), 1 - eta / (2 * v), rtol=1e-14, atol=0)
    assert noise.flatten().tolist() == [math.sqrt(eta)] * 2
    fixed = v / (1 - eta / (4 * v))
    torch.testing.assert_close(gain.flatten() ** 2 * fixed + eta, fixed, rtol=1e-13, atol=0)


def test_gibbs_step_stays_within_what_the_model_knows():
    found = gibbs_step(
        torch.zeros(3, 1), lambda x: torch.tensor([1e-4, 0.5, 900.0], dtype=torch.float64), (0.01, 157.0)
    )
    assert found.tolist() == [0.01, 0.5, 157.0]


def test_the_lower_state_is_taken_row_by_row():
    sigma, taken = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0.3, 0.4, 0.5])
    new, old = (torch.ones(3, 1, 2), 2 * torch.ones(3, 1, 2)), (-torch.ones(3, 1, 2), -2 * torch.ones(3, 1, 2))
    level, (x, eps) = lower_state(sigma, new, taken, old)
    assert level.tolist() == pytest.approx([0.2, 0.4, 0.5])
    assert x[:, 0, 0].tolist() == [1, -1, -1], "of equal ones the earlier"
    assert eps[:, 0, 0].tolist() == [2, -2, -2]


def test_states_reach_the_common_level_from_both_sides():
    """From below by noise of the variance that is missing; from above by Euler's step; there, by nothing."""
    sigma = torch.tensor([0.6, 1.5, 1.0], dtype=torch.float64)
    x, eps, z = draw(0, 3, 4), draw(1, 3, 4), draw(2, 3, 4)
    found = to_level(x, eps, sigma, z, 1.0)
    torch.testing.assert_close(found[0], x[0] + 0.8 * z[0], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(found[1], x[1] - 0.5 * eps[1], rtol=1e-13, atol=1e-15)
    assert torch.equal(found[2], x[2])


def test_dpmpp_2m_step_is_exact_for_constant_data_and_extrapolates_half_a_step():
    """With x_0 fixed, x' = x_0 + ratio (x - x_0); with x_0 linear in log sigma it takes the middle of the step."""
    x, ratio = X0 + 2.0 * EPS, 0.55
    for before in (None, X0):
        torch.testing.assert_close(dpmpp_2m_step(x, X0, before, ratio), X0 + ratio * 2.0 * EPS, rtol=1e-13, atol=0)
    slope = scalar(0.2)  # a step
    middle = X0 + slope / 2
    expected = ratio * x + (1 - ratio) * middle
    torch.testing.assert_close(dpmpp_2m_step(x, X0, X0 - slope, ratio), expected, rtol=1e-13, atol=0)
