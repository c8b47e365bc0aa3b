"""DEIS: the special cases that other schedulers have, classical weights, orders of convergence, and what it refuses."""

from __future__ import annotations

import math
from fractions import Fraction

import diffusers
import numpy as np
import pytest
import torch

from accel.config import choice_of
from accel.errors import AccelError, ConfigError
from accel.samplers import DEISScheduler, DiffusersSampler
from accel.samplers.deis import IPNDM, TABLEAUX
from accel.samplers.grids import PowerGrid
from accel.suites.mixture.exact import exact_solution
from accel.suites.mixture.model import MixtureDenoiser

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SD = LINEAR | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"num_train_timesteps": 1000, "use_flow_sigmas": True}
AB = ["tab", "rhoab", "logrhoab", "ipndm"]
EVERY = [{"variant": v, "ab_order": r} for v in AB for r in range(4)]
EVERY += [{"variant": "rhork", "tableau": name} for name in TABLEAUX]


def label(options) -> str:
    return "-".join(map(str, options.values())) if isinstance(options, dict) else str(options)


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = gauss(3, 1, 2, 4)
MEAN, VARIANCE = gauss(1, 1, 2, 4, seed=1), gauss(1, 1, 2, 4, seed=2).square() / 4


def data(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x_0 | x_t] of independent Gaussians; finite at alpha = 0, where it is their mean."""
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def as_kind(kind: str, x0: torch.Tensor, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """What a model with prediction type `kind` says if it believes in x0."""
    eps = (x - alpha * x0) / sigma
    return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow_prediction": eps - x0}[kind]


def follow(scheduler, x: torch.Tensor, denoise=data, kind: str = "epsilon", levels=None) -> torch.Tensor:
    """The trajectory's end; `levels` (alpha, sigma) of every evaluation unless the scheduler knows its schedule."""
    if levels is None:
        levels = zip(*scheduler.schedule.alpha_sigma(scheduler.timesteps.double().numpy()), strict=True)
    for t, (alpha, sigma) in zip(scheduler.timesteps, levels, strict=True):
        output = as_kind(kind, denoise(x, float(alpha), float(sigma)), x, float(alpha), float(sigma))
        x = scheduler.step(output, t, x).prev_sample
    return x


def deis(steps: int, config=LINEAR, **options) -> DEISScheduler:
    scheduler = DEISScheduler(**config, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def exact_alpha_bar(config) -> torch.Tensor:
    """In float64; diffusers' own cumulative products are float32."""
    return torch.from_numpy(1 / (1 + np.exp(2 * DEISScheduler(**config).schedule.log_rho)))


# --- special cases


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
@pytest.mark.parametrize("config", [LINEAR, SD], ids=["linear", "sd"])
@pytest.mark.parametrize("variant", [*AB, "rhork"])
def test_order_zero_is_ddim(variant, config, steps):
    """All variants, when nothing but the current prediction is used. DDIM has the trailing grid if N divides T."""
    ddim = diffusers.DDIMScheduler(**config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    ddim.alphas_cumprod = exact_alpha_bar(config)
    ddim.set_timesteps(steps)
    alpha_bar = ddim.alphas_cumprod[ddim.timesteps]
    expected = follow(ddim, X, levels=zip(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), strict=True))
    scheduler = deis(steps, config, variant=variant, ab_order=0, tableau="euler")
    assert scheduler.timesteps.tolist() == ddim.timesteps.tolist()
    torch.testing.assert_close(follow(scheduler, X), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize("steps", [5, 14, 15, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_log_rho_is_the_deis_of_diffusers(order, steps, lower_order_final):
    """Given exact noise levels; diffusers' float32 ones let its closed forms cancel."""
    options = {"timestep_spacing": "trailing", "lower_order_final": lower_order_final}
    ours = deis(steps, SD, variant="logrhoab", ab_order=order - 1, final_sigma="min", **options)
    theirs = diffusers.DEISMultistepScheduler(**SD, solver_order=order, **options)
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    theirs.sigmas = torch.from_numpy(ours.nodes.rho)
    levels = list(zip(ours.nodes.alpha, ours.nodes.sigma, strict=True))[:-1]
    expected = follow(theirs, X, levels=levels)
    torch.testing.assert_close(follow(ours, X), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "flow_prediction"])
def test_log_rho_is_the_deis_of_diffusers_for_every_prediction_type(kind):
    config = FLOW if kind == "flow_prediction" else LINEAR
    times = [990.0, 800.0, 611.0, 400.0, 200.0, 90.0, 20.0]
    ours = deis(7, config, variant="logrhoab", ab_order=2, final_sigma="min", prediction_type=kind, grid=times)
    theirs = diffusers.DEISMultistepScheduler(**config, solver_order=3, prediction_type=kind, lower_order_final=False)
    theirs.set_timesteps(7)
    theirs.timesteps = ours.timesteps
    theirs.sigmas = torch.from_numpy(ours.nodes.sigma if config is FLOW else ours.nodes.rho)
    levels = list(zip(ours.nodes.alpha, ours.nodes.sigma, strict=True))[:-1]
    expected = follow(theirs, X, kind=kind, levels=levels)
    torch.testing.assert_close(follow(ours, X, kind=kind), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", ["trailing", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_runge_kutta_heun_is_the_heun_of_diffusers(steps, grid):
    """Heun's method of Karras et al. is Heun's method in rho, with an Euler step to sigma = 0."""
    ours = deis(steps, SD, variant="rhork", tableau="heun", grid=grid)
    theirs = diffusers.HeunDiscreteScheduler(**SD, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert len(ours.timesteps) == len(theirs.timesteps) == 2 * steps - 1
    if grid == "trailing":
        np.testing.assert_allclose(ours.timesteps, theirs.timesteps)
    rho = ours.nodes.rho
    theirs.sigmas = torch.from_numpy(np.concatenate([rho[:1], np.repeat(rho[1:-1], 2), rho[-1:]]))
    theirs.timesteps = ours.timesteps
    theirs.set_begin_index(0)
    x_bar = X / ours.nodes.alpha[0]  # where diffusers' Heun lives
    for t, level in zip(theirs.timesteps, theirs.sigmas, strict=False):
        alpha, sigma = (float(v) for v in ours.schedule.of_rho(float(level)))
        x = alpha * x_bar
        x_bar = theirs.step(as_kind("epsilon", data(x, alpha, sigma), x, alpha, sigma), t, x_bar).prev_sample
    torch.testing.assert_close(follow(ours, X), x_bar, rtol=0, atol=1e-10)


# --- weights


def weights_of_last_step(scheduler, index: int) -> np.ndarray:
    """C_0, C_1, ... of step `index` in d(x / alpha), by telling one evaluation at a time that eps is 1 there."""
    alpha = scheduler.nodes.alpha
    found = []
    for at in range(index, -1, -1):
        scheduler.set_timesteps(scheduler.num_inference_steps)
        x = torch.zeros(1, 1, dtype=torch.float64)
        for i in range(index + 1):
            before = x
            x = scheduler.step(torch.full_like(x, float(i == at)), scheduler.timesteps[i], before).prev_sample
        found.append(float(x / alpha[index + 1] - before / alpha[index]))
    return np.array(found)


@pytest.mark.parametrize("ab_order", [1, 2, 3])
def test_rho_ab_and_ipndm_on_equal_steps_have_the_classical_weights(ab_order):
    """Adams-Bashforth as in any textbook, the start-up of growing order included."""
    uniform = PowerGrid(space="rho", kappa=1.0).spec()
    classical = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    for variant in ("rhoab", "ipndm"):
        scheduler = deis(8, SD, variant=variant, ab_order=ab_order, grid=uniform, final_sigma="min")
        step = scheduler.nodes.rho[1] - scheduler.nodes.rho[0]
        np.testing.assert_allclose(np.diff(scheduler.nodes.rho), step, rtol=1e-9)
        for index in (0, 1, 2, 3, 7):
            expected = np.zeros(index + 1)
            order = min(ab_order, index)
            expected[: order + 1] = classical[order]
            np.testing.assert_allclose(weights_of_last_step(scheduler, index) / step, expected, atol=1e-8)


@pytest.mark.parametrize("ab_order", [0, 1, 2, 3])
def test_ipndm_keeps_the_classical_weights_on_any_grid(ab_order):
    """Its definition: the weights know the size of the step and nothing of the ones before."""
    assert [Fraction(w).limit_denominator(100) for w in IPNDM[3]] == [Fraction(n, 24) for n in (55, -59, 37, -9)]
    scheduler = deis(6, LINEAR, variant="ipndm", ab_order=ab_order, grid="karras", final_sigma="min")
    step = np.diff(scheduler.nodes.rho)
    found = weights_of_last_step(scheduler, 5)[: ab_order + 1]
    np.testing.assert_allclose(found, np.array(IPNDM[ab_order]) * step[5], rtol=1e-8)


@pytest.mark.parametrize("variant", ["tab", "rhoab", "logrhoab"])
def test_a_polynomial_of_the_order_is_integrated_without_error(variant):
    """eps = u^r is followed exactly once r earlier values are known, where u is the variant's variable."""
    scheduler = deis(9, SD, variant=variant, ab_order=2, grid=PowerGrid().spec(), final_sigma="min")
    nodes = scheduler.nodes
    u = {"tab": nodes.t / 1000, "rhoab": nodes.rho, "logrhoab": np.log(nodes.rho)}[variant]
    weights = weights_of_last_step(scheduler, 6)[:3]
    fine = np.exp(np.linspace(np.log(nodes.rho[6]), np.log(nodes.rho[7]), 200_001))
    values = {"tab": scheduler.schedule.timestep(fine) / 1000, "rhoab": fine, "logrhoab": np.log(fine)}[variant]
    exact = np.trapezoid(values**2, fine) if hasattr(np, "trapezoid") else np.trapz(values**2, fine)
    assert weights @ u[6:3:-1] ** 2 == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(
    ("given", "steps", "orders"),
    [
        (False, 6, [0, 1, 2, 2, 2, 2]),
        (True, 6, [0, 1, 2, 2, 1, 0]),
        (True, 14, [0, 1, *[2] * 10, 1, 0]),
        (True, 15, [0, 1, *[2] * 13]),
        (6, 6, [0, 1, 2, 2, 2, 2]),
        (7, 6, [0, 1, 2, 2, 1, 0]),
        (0, 6, [0, 1, 2, 2, 2, 2]),
    ],
)
def test_lower_order_final_lets_the_order_fall_in_short_trajectories(given, steps, orders):
    scheduler = deis(steps, SD, variant="rhoab", ab_order=2, lower_order_final=given, final_sigma="min")
    found = [np.count_nonzero(np.abs(weights_of_last_step(scheduler, i)) > 1e-9) - 1 for i in range(steps)]
    assert found == orders


@pytest.mark.parametrize("options", EVERY, ids=label)
def test_no_more_predictions_are_kept_than_are_used(options):
    """Each is as large as the sample, on the GPU."""
    scheduler, x = deis(8, SD, **options), X
    stages = len(TABLEAUX[options["tableau"]].b) if "tableau" in options else options["ab_order"]
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
        assert len(scheduler.memory.get("eps", [])) <= stages


@pytest.mark.parametrize("variant", AB)
def test_the_step_to_sigma_zero_gives_the_predicted_data(variant):
    scheduler = deis(5, SD, variant=variant, ab_order=3)
    x = X
    for t, alpha, sigma in zip(scheduler.timesteps, scheduler.nodes.alpha, scheduler.nodes.sigma, strict=False):
        last = data(x, float(alpha), float(sigma))
        x = scheduler.step(as_kind("epsilon", last, x, float(alpha), float(sigma)), t, x).prev_sample
    torch.testing.assert_close(x, last, rtol=0, atol=1e-12)


# --- Runge-Kutta tableaux


def conditions(a, b, c) -> dict[int, list]:
    """Left minus right side of every order condition (Butcher), by order; zero where it holds."""
    dot = lambda u, v: sum((p * q for p, q in zip(u, v, strict=True)), Fraction(0))  # noqa: E731
    times = lambda v: [dot(row, v) for row in a]  # noqa: E731
    mul = lambda u, v: [p * q for p, q in zip(u, v, strict=True)]  # noqa: E731
    c2, c3, ac = mul(c, c), mul(c, mul(c, c)), times(c)
    return {
        1: [sum(b) - 1],
        2: [dot(b, c) - Fraction(1, 2)],
        3: [dot(b, c2) - Fraction(1, 3), dot(b, ac) - Fraction(1, 6)],
        4: [
            dot(b, c3) - Fraction(1, 4),
            dot(b, mul(c, ac)) - Fraction(1, 8),
            dot(b, times(c2)) - Fraction(1, 12),
            dot(b, times(ac)) - Fraction(1, 24),
        ],
        5: [dot(b, mul(c2, c2)) - Fraction(1, 5)],
    }


@pytest.mark.parametrize("name", TABLEAUX)
def test_tableaux_have_exactly_their_order(name):
    """In rational arithmetic: every condition up to the order holds, and one of the next order does not."""
    tableau = TABLEAUX[name]
    exact = lambda values: [Fraction(v).limit_denominator(1000) for v in values]  # noqa: E731
    stages = len(tableau.b)
    assert [len(row) for row in tableau.a] == list(range(stages)), "explicit"
    a = [exact(row) + [Fraction(0)] * (stages - len(row)) for row in tableau.a]
    b, c = exact(tableau.b), exact(tableau.c)
    for floats, rationals in zip([tableau.b, tableau.c], [b, c], strict=True):
        np.testing.assert_allclose(floats, [float(r) for r in rationals], rtol=1e-15)
    assert [sum(row) for row in a] == c
    found = conditions(a, b, c)
    assert all(value == 0 for order in range(1, tableau.order + 1) for value in found[order])
    assert any(value != 0 for value in found[tableau.order + 1])


def test_every_tableau_of_the_paper_is_there():
    assert {"euler", "heun", "kutta", "ralston3", "heun3", "houwen3", "ssprk3", "rk4"} <= set(TABLEAUX)
    assert {t.order for t in TABLEAUX.values()} == {1, 2, 3, 4}


@pytest.mark.parametrize("name", TABLEAUX)
@pytest.mark.parametrize("final_sigma", ["zero", "min"])
def test_evaluations_are_at_most_what_the_sampler_states(name, final_sigma):
    """All stages in every step; a step to sigma = 0 has one."""
    options = {"variant": "rhork", "tableau": name, "final_sigma": final_sigma}
    sampler = DiffusersSampler("DEISScheduler", 5, options=options)
    stages = len(TABLEAUX[name].b)
    assert sampler.evaluations == 5 * stages == 5 * sampler.build(LINEAR).order
    expected = 5 * stages if final_sigma == "min" else 4 * stages + 1
    assert len(sampler.build(LINEAR).timesteps) == expected


def test_stage_times_are_between_the_ends_of_their_step():
    """Uniform in rho, so not in t, and fractional; the stages at the ends are at the grid's own timesteps."""
    scheduler = deis(3, SD, variant="rhork", tableau="rk4", final_sigma="min", grid="trailing")
    t = scheduler.timesteps.reshape(3, 4).numpy()
    np.testing.assert_array_equal(t[:, 0], [999, 666, 332])
    np.testing.assert_array_equal(t[:, 3], [666, 332, 0])
    np.testing.assert_array_equal(t[:, 1], t[:, 2])
    rho = scheduler.schedule.rho
    np.testing.assert_allclose(rho(t[:, 1]), (rho(t[:, 0]) + rho(t[:, 3])) / 2, rtol=1e-12)


# --- convergence on suite `mixture`


@pytest.fixture(scope="module")
def error():
    """error(steps, grid, **options) -> root mean square distance to the exact solution, float64, to timestep 0."""
    net = MixtureDenoiser(**LINEAR)
    x, labels = gauss(6, 1, 2, 4), torch.arange(6) % 4
    exact = exact_solution(net, x, labels, float(net.rho(999)), float(net.rho(0)))

    def error(steps: int, grid, **options) -> float:
        scheduler, now = deis(steps, LINEAR, final_sigma="min", grid=grid, **options), x
        for t in scheduler.timesteps:
            now = scheduler.step(net(now, t, labels).sample, t, now).prev_sample
        return float((now - exact).square().mean().sqrt())

    return error


def slope(error, steps: tuple[int, int], grid: str, **options) -> float:
    spec = PowerGrid().spec() if grid == "t^2" else grid
    coarse, fine = (error(n, spec, **options) for n in steps)
    return math.log2(coarse / fine) / math.log2(steps[1] / steps[0])


@pytest.mark.parametrize("ab_order", [1, 2, 3])
@pytest.mark.parametrize(
    ("variant", "grid", "steps"),
    [
        # t(rho) has kinks at the integer timesteps, which tab sees on finer grids than these: then it is of order 2.
        ("tab", "t^2", (40, 80)),
        ("tab", "exponential", (40, 160)),
        ("rhoab", "t^2", (160, 320)),
        ("rhoab", "exponential", (80, 320)),
        ("logrhoab", "t^2", (40, 320)),
        ("logrhoab", "exponential", (20, 160)),
    ],
)
def test_multistep_converges_with_its_order(error, variant, grid, steps, ab_order):
    found = slope(error, steps, grid, variant=variant, ab_order=ab_order)
    assert found == pytest.approx(ab_order + 1, abs=0.3)


@pytest.mark.parametrize("grid", ["t^2", "exponential"])
def test_order_zero_converges_with_order_one(error, grid):
    assert slope(error, (40, 80), grid, ab_order=0) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("ab_order", [2, 3])
@pytest.mark.parametrize("grid", ["t^2", "exponential"])
def test_ipndm_is_of_second_order_on_smooth_grids(error, grid, ab_order):
    """Weights of constant steps are wrong by the change of the step, O(h^2): no more history helps."""
    assert slope(error, (80, 160), grid, variant="ipndm", ab_order=ab_order) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("grid", ["t^2", "exponential"])
@pytest.mark.parametrize("name", TABLEAUX)
def test_runge_kutta_converges_with_its_order(error, name, grid):
    found = slope(error, (40, 80), grid, variant="rhork", tableau=name)
    assert found == pytest.approx(TABLEAUX[name].order, abs=0.3)


def test_at_ten_evaluations_the_multistep_variants_beat_ddim_and_runge_kutta_does_not(error):
    """What the paper's tables say of few steps, on its quadratic grid."""
    grid = PowerGrid().spec()
    ddim = error(10, grid, ab_order=0)
    for variant in AB:
        assert error(10, grid, variant=variant, ab_order=2) < 0.5 * ddim, variant
    assert error(5, grid, variant="rhork", tableau="heun") > ddim


def test_float32_samples_follow_the_float64_trajectory():
    for options in EVERY:
        scheduler = deis(10, SD, grid="karras", **options)
        double = follow(scheduler, X)
        scheduler.set_timesteps(10)
        single = follow(scheduler, X.float(), lambda x, alpha, sigma: data(x.double(), alpha, sigma).float())
        assert single.dtype == torch.float32
        assert (single.double() - double).abs().max() < 2e-4, options


# --- prediction types


@pytest.mark.parametrize("options", EVERY, ids=label)
def test_all_prediction_types_of_one_denoiser_give_one_trajectory(options):
    expected = follow(deis(6, SD, **options), X)
    for kind in ("sample", "v_prediction"):
        found = follow(deis(6, SD, prediction_type=kind, **options), X, kind=kind)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (expected - MEAN).abs().max() > 0.01, "not a denoiser that says the same at all noise levels"


@pytest.mark.parametrize("options", EVERY, ids=label)
def test_all_prediction_types_of_one_flow_give_one_trajectory(options):
    times = [980.0, 700.0, 450.0, 333.3, 120.0, 15.0]
    expected = follow(deis(6, FLOW, prediction_type="epsilon", grid=times, **options), X)
    for kind in ("sample", "flow_prediction"):
        found = follow(deis(6, FLOW, prediction_type=kind, grid=times, **options), X, kind=kind)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        whole = [follow(deis(6, FLOW, prediction_type=k, **options), X, kind=k) for k in (kind, "sample")]
        torch.testing.assert_close(*whole, rtol=0, atol=1e-10)  # from alpha = 0, where eps cannot be predicted
        assert whole[0].isfinite().all()


def test_order_zero_on_a_flow_is_eulers_method_in_sigma():
    """x' = x + (sigma' - sigma) v: what FlowMatchEulerDiscreteScheduler does, on the same timesteps."""
    scheduler = deis(7, FLOW, ab_order=0, prediction_type="flow_prediction", flow_shift=3.0)
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    euler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7).tolist())
    np.testing.assert_allclose(scheduler.timesteps.numpy(), euler.timesteps.numpy(), rtol=1e-6)
    euler.sigmas = torch.from_numpy(scheduler.nodes.sigma)
    levels = list(zip(scheduler.nodes.alpha, scheduler.nodes.sigma, strict=True))[:-1]
    expected = follow(euler, X, kind="flow_prediction", levels=levels)
    # diffusers steps in float32.
    torch.testing.assert_close(follow(scheduler, X, kind="flow_prediction"), expected.double(), rtol=0, atol=1e-6)


# --- where it ends


SCHEDULES = {"linear": LINEAR, "sd": SD, "zero_snr": SD | {"rescale_betas_zero_snr": True}, "flow": FLOW}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", EVERY, ids=label)
def test_point_mass_is_reached_exactly(options, schedule):
    """Data that is a single point has a constant eps along the ODE: no solver errs, from alpha = 0 either."""
    config, point = SCHEDULES[schedule], gauss(1, 1, 2, 4, seed=3)
    kinds = {"flow": ["flow_prediction", "sample"], "zero_snr": ["v_prediction"]}.get(schedule, ["epsilon", "sample"])
    for kind in kinds:
        for steps in (4, 10, 25):
            scheduler = deis(steps, config, prediction_type=kind, **options)
            assert (scheduler.nodes.alpha[0] == 0) == (schedule == "flow")
            found = follow(scheduler, X, lambda x, alpha, sigma: point.expand_as(x), kind)
            torch.testing.assert_close(found, point.expand_as(X), rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", EVERY, ids=label)
def test_point_mass_at_the_smallest_noise_level_keeps_its_noise(options):
    """final_sigma='min' ends at alpha_0 x0 + sigma_0 eps."""
    point = gauss(1, 1, 2, 4, seed=3)
    scheduler = deis(8, SD, final_sigma="min", **options)
    nodes = scheduler.nodes
    eps = (X - nodes.alpha[0] * point) / nodes.sigma[0]
    found = follow(scheduler, X, lambda x, alpha, sigma: point.expand_as(x))
    torch.testing.assert_close(found, nodes.alpha[-1] * point + nodes.sigma[-1] * eps, rtol=0, atol=1e-9)
    assert nodes.rho[-1] == scheduler.schedule.rho(0)


@pytest.mark.parametrize("variant", AB)
def test_a_flow_may_have_several_evaluations_next_to_sigma_one(variant):
    """rho = sigma / alpha is infinite at the first and in the thousands at the next ones: all nodes stay apart."""
    rho = np.geomspace(1e5, 1e-3, 300)
    times = [1000.0, *(1000 * rho / (1 + rho))]
    assert sum(t > 999 for t in times) > 50
    scheduler = DEISScheduler(**FLOW, variant=variant, prediction_type="flow_prediction", final_sigma="min")
    scheduler.set_timesteps(timesteps=times[:-1])
    found = follow(scheduler, X, kind="flow_prediction")
    exact = MEAN + VARIANCE.sqrt() * X  # the ODE of a Gaussian scales its noise
    assert (found - exact).abs().max() < 0.02
    strong = deis(100, FLOW, variant=variant, prediction_type="flow_prediction", flow_shift=50.0)
    assert (strong.timesteps > 999).sum() > 3
    assert (np.diff(strong.nodes.rho) < 0).all()


# --- thresholding


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("ratio", "limit"), [(0.995, 1.0), (0.8, 1.0), (0.7, 1.5), (1.0, 100.0)])
def test_thresholding_is_that_of_diffusers(kind, ratio, limit):
    """One step with values far outside [-1, 1], of which each sample has other quantiles."""
    options = {"dynamic_thresholding_ratio": ratio, "sample_max_value": limit, "prediction_type": kind}
    ours = deis(4, SD, ab_order=0, final_sigma="min", thresholding=True, **options)
    theirs = diffusers.DEISMultistepScheduler(
        **SD, solver_order=1, thresholding=True, timestep_spacing="trailing", **options
    )
    theirs.set_timesteps(4)
    theirs.sigmas = torch.from_numpy(ours.nodes.rho)
    x, output = gauss(5, 3, 8, 8), gauss(5, 3, 8, 8, seed=1) * torch.arange(1, 6).reshape(-1, 1, 1, 1)
    for index, t in enumerate(ours.timesteps):
        for scheduler in (ours, theirs):
            scheduler.set_begin_index(index)
            scheduler._step_index = None
        expected = theirs.step(output, t, x).prev_sample
        torch.testing.assert_close(ours.step(output, t, x).prev_sample, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", EVERY, ids=label)
def test_thresholding_keeps_every_variant_within_the_range(options):
    """And changes nothing for data that is within [-1, 1] anyway."""
    bounded = lambda x, alpha, sigma: data(x, alpha, sigma).tanh()  # noqa: E731
    far = lambda x, alpha, sigma: 5 * data(x, alpha, sigma)  # noqa: E731
    plain, clipped = (follow(deis(6, SD, thresholding=on, **options), X, bounded) for on in (False, True))
    torch.testing.assert_close(plain, clipped, rtol=0, atol=1e-9)
    assert follow(deis(6, SD, thresholding=True, **options), X, far).abs().max() <= 1 + 1e-9
    assert follow(deis(6, SD, **options), X, far).abs().max() > 1.5


# --- configuration and bad input


def test_the_configs_samplers_are_these_variants():
    expected = {
        "deis_tab": {"variant": "tab", "ab_order": 2},
        "deis_rhoab": {"variant": "rhoab", "ab_order": 2},
        "deis_logrhoab": {"variant": "logrhoab", "ab_order": 2},
        "deis_rhork": {"variant": "rhork", "tableau": "heun"},
        "ipndm": {"variant": "ipndm", "ab_order": 3},
    }
    made = {name: choice_of("sampler", name) for name in expected}
    for (name, options), sampler in zip(expected.items(), made.values(), strict=True):
        assert (sampler.name, sampler.scheduler, dict(sampler.options)) == (name, "DEISScheduler", options)
        scheduler = sampler.build(SD | {"timestep_spacing": "leading", "steps_offset": 1})
        assert float(scheduler.timesteps[0]) == 999, "the trailing grid, unless a recipe says otherwise"
        assert float(scheduler.sigmas[-1]) == 0
    assert made["deis_rhork"].evaluations == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "tba"}, "unknown DEIS variant 'tba'. Did you mean tab"),
        ({"variant": None}, "unknown DEIS variant 'None'"),
        ({"ab_order": 4}, r"ab_order of variant tab is 4; allowed: an integer in \[0, 3\]"),
        ({"ab_order": -1}, "ab_order of variant tab is -1"),
        ({"ab_order": 1.0}, "ab_order of variant tab is 1.0"),
        ({"variant": "ipndm", "ab_order": 4}, "ab_order of variant ipndm is 4"),
        ({"variant": "rhork", "tableau": "rk5"}, "unknown Runge-Kutta tableau 'rk5'. Did you mean rk4"),
        ({"lower_order_final": -1}, "lower_order_final is -1; allowed: an integer >= 0"),
        ({"lower_order_final": "auto"}, "lower_order_final is 'auto'"),
        ({"prediction_type": "epsilom"}, "unknown prediction_type 'epsilom'. Did you mean epsilon"),
        ({"prediction_type": "v_prediction", "use_flow_sigmas": True}, "velocity of a flow is 'flow_prediction'"),
        ({"final_sigma": "none"}, "unknown final_sigma 'none'. Allowed: min, zero"),
        ({"grid": "trialing"}, "unknown grid 'trialing'. Did you mean trailing"),
        ({"thresholding": True, "dynamic_thresholding_ratio": 2.0}, "dynamic_thresholding_ratio is 2.0"),
        ({"thresholding": True, "sample_max_value": 0.5}, "sample_max_value is 0.5"),
        ({"flow_shift": 0.0}, "flow_shift is 0.0"),
        ({"beta_schedule": "liner"}, "unknown beta_schedule 'liner'"),
    ],
)
def test_settings_out_of_range_are_one_clear_error(options, said):
    with pytest.raises(ConfigError, match=said) as caught:
        DEISScheduler(**options)
    assert "\n" not in str(caught.value)


EPS_FLOW = FLOW | {"prediction_type": "epsilon"}


@pytest.mark.parametrize(
    ("config", "call", "said"),
    [
        ({}, {"num_inference_steps": 3}, "3 steps are too few for ab_order=3: .* ab_order <= 2, or at least 4 steps"),
        ({"ab_order": 1}, {"num_inference_steps": 1}, "1 steps are too few for ab_order=1"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps is 0; allowed: an integer >= 1"),
        ({}, {"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({}, {}, "num_inference_steps is None"),
        ({}, {"num_inference_steps": 1001}, "1001 steps are more than the 1000"),
        ({}, {"timesteps": []}, "`timesteps` has no timesteps"),
        ({}, {"timesteps": [9, 8, 8, 7]}, "`timesteps` with 4 steps is not strictly decreasing: timestep 8 is"),
        ({}, {"timesteps": [5, 6, 7, 8]}, "`timesteps` with 4 steps is not strictly decreasing"),
        ({}, {"timesteps": [1000, 8, 7, 6]}, "from 1000 to 6; allowed: 999 down to 0"),
        ({}, {"timesteps": [9, 8, 7, -1]}, "from 9 to -1; allowed: 999 down to 0"),
        ({}, {"timesteps": [9, float("nan"), 7, 1]}, "allowed: 999 down to 0"),
        ({}, {"timesteps": [9, 8, 7, 6], "sigmas": [1.0]}, "both timesteps and sigmas are given"),
        ({}, {"sigmas": [1.0, 0.5, 0.2, 0.1]}, "sigmas are for flow models; pass timesteps"),
        ({"final_sigma": "min"}, {"timesteps": [9, 8, 7, 0]}, "timestep 0 is where final_sigma='min' ends"),
        (EPS_FLOW, {"num_inference_steps": 5}, "begins at timestep 1000, where alpha = 0 and a prediction of eps"),
        (FLOW | {"prediction_type": "sample"}, {"sigmas": [1.2, 0.5]}, "`sigmas` has timesteps from 1200 to 500"),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 5}, "mu is missing; with use_dynamic_shifting=true"),
    ],
)
def test_trajectories_that_do_not_fit_are_one_clear_error(config, call, said):
    scheduler = DEISScheduler(**config)
    with pytest.raises(ConfigError, match=said) as caught:
        scheduler.set_timesteps(**call)
    assert "\n" not in str(caught.value)
    with pytest.raises(AccelError, match="before set_timesteps"):
        scheduler.step(X, 999, X)  # a refused trajectory was not begun


def test_steps_in_the_wrong_place_are_one_clear_error():
    scheduler = DEISScheduler(ab_order=1)
    with pytest.raises(AccelError, match=r"step\(\) was called before set_timesteps\(\)"):
        scheduler.step(X, 999, X)
    scheduler.set_timesteps(2)
    with pytest.raises(ConfigError, match=r"timestep 700 is not in this trajectory: \[999, 499\]"):
        scheduler.step(X, 700, X)
    for t in scheduler.timesteps:
        scheduler.step(X, t, X)
    with pytest.raises(AccelError, match="more than 2 times; call set_timesteps"):
        scheduler.step(X, 499, X)


def test_a_runge_kutta_step_cannot_begin_in_its_middle():
    scheduler = deis(3, variant="rhork", tableau="rk4")
    scheduler.set_begin_index(2)
    with pytest.raises(AccelError, match="evaluation 2 is stage 3 of a Runge-Kutta step"):
        scheduler.step(X, scheduler.timesteps[2], X)
