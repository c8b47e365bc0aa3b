"""UniPC and DC-Solver against diffusers, against the ODE, and against the paper's text written down a second time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from scipy.integrate import quad

from accel.errors import ConfigError
from accel.samplers import DCSolverScheduler, DiffusersSampler
from accel.samplers.dc_solver import phi
from accel.samplers.grids import PowerGrid
from accel.suites.mixture import MixtureSuite
from accel.suites.mixture.exact import exact_solution

KINDS = ("epsilon", "sample", "v_prediction")
SQUARE = PowerGrid(kappa=2.0).spec()
RATIOS = (1.0, 1.0, 1.3, 0.6, 1.7, -0.4, 1.1, 2.0)


def model(x: torch.Tensor, t: float) -> torch.Tensor:
    """Nonlinear in x and in t; rows do not see each other."""
    return torch.sin(1.5 * x + t / 150) + 0.3 * x.roll(1, -1)


def noise(batch: int = 2, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(batch, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def solve(scheduler, steps: int | None = None, x: torch.Tensor | None = None, begin: int = 0) -> list[torch.Tensor]:
    """[x_begin, x_{begin+1}, ...], the samples that `step` returns. steps=None: set_timesteps was called."""
    if steps is not None:
        scheduler.set_timesteps(steps)
    scheduler.set_begin_index(begin)
    path = [noise() if x is None else x]
    for t in scheduler.timesteps[begin:]:
        path.append(scheduler.step(model(path[-1], float(t)), t, path[-1]).prev_sample)
    return path


def both(steps: int, final: str = "zero", **options) -> tuple[DCSolverScheduler, UniPCMultistepScheduler]:
    """Ours and diffusers' UniPC, which is given our timesteps and noise levels in float64."""
    common = {"timestep_spacing": "trailing"} | options
    ours = DCSolverScheduler(**common, final_sigma=final)
    ours.set_timesteps(steps)
    theirs = UniPCMultistepScheduler(**common)
    theirs.set_timesteps(steps)
    flow = ours.schedule.flow
    theirs.sigmas = torch.from_numpy(ours.nodes.sigma if flow else ours.nodes.rho)
    theirs.timesteps = ours.timesteps
    return ours, theirs


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < tolerance * max(1.0, float(b.abs().max()))


# --- UniPC: all ratios 1


@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_ratios_it_is_unipc(order, kind, data):
    for steps, lower, off in itertools.product((5, 8, 10), (True, False), ([], [0, 2])):
        options = {"solver_order": order, "solver_type": kind, "predict_x0": data, "lower_order_final": lower}
        ours, theirs = both(steps, "min", **options, disable_corrector=off)
        assert_near(solve(ours), solve(theirs))


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
def test_any_prediction_type_is_unipc(prediction, data):
    ours, theirs = both(8, "min", solver_order=3, prediction_type=prediction, predict_x0=data)
    assert_near(solve(ours), solve(theirs))


@pytest.mark.parametrize("prediction", KINDS)
def test_thresholded_it_is_unipc(prediction):
    options = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}
    ours, theirs = both(8, prediction_type=prediction, solver_order=3, **options)
    plain, _ = both(8, prediction_type=prediction, solver_order=3)
    found = solve(ours)
    assert_near(found, solve(theirs))
    assert (found[-1] - solve(plain)[-1]).abs().max() > 0.1, "the threshold did something"


@pytest.mark.parametrize(
    ("option", "value"),
    [("use_karras_sigmas", True), ("use_exponential_sigmas", True), ("timestep_spacing", "linspace"),
     ("timestep_spacing", "leading"), ("beta_schedule", "squaredcos_cap_v2"), ("rescale_betas_zero_snr", True)],
)  # fmt: skip
def test_on_any_grid_and_schedule_it_is_unipc(option, value):
    ours, theirs = both(8, solver_order=3, **{option: value})
    assert_near(solve(ours), solve(theirs))


@pytest.mark.parametrize("options", [{}, {"timestep_spacing": "linspace"}, {"use_exponential_sigmas": True}])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_in_float32_it_is_the_unipc_that_pipelines_run(options, order):
    """Nothing patched. Exponential: diffusers cuts timesteps to integers, so that the model is told something else."""
    common = {"timestep_spacing": "trailing", "prediction_type": "sample"} | options
    x, theirs = noise(dtype=torch.float32), UniPCMultistepScheduler(**common, solver_order=order)
    ours = DCSolverScheduler.from_config(theirs.config)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    if "use_exponential_sigmas" in options:
        assert (ours.timesteps - theirs.timesteps).abs().max() < 1
        theirs.timesteps = ours.timesteps
    else:
        assert torch.equal(ours.timesteps, theirs.timesteps)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=1e-4)
    # their betas are float32, which moves the smallest sigma by 8e-5: the last one here, if the grid is exponential
    assert_near(solve(ours, x=x), solve(theirs, x=x), 1e-3 if "use_exponential_sigmas" in options else 2e-5)


@pytest.mark.parametrize("lower", [True, False])
def test_started_in_the_middle_it_is_unipc(lower):
    ours, theirs = both(8, "min", solver_order=3, lower_order_final=lower)
    assert_near(solve(ours, begin=3), solve(theirs, begin=3))


def test_flow_matching_it_is_unipc():
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 3}
    ours = DCSolverScheduler(**options, grid=[990, 800, 600, 400, 250, 100, 30])
    ours.set_timesteps(7)
    theirs = UniPCMultistepScheduler(**options)
    theirs.set_timesteps(7)
    theirs.sigmas, theirs.timesteps = torch.from_numpy(ours.nodes.sigma), ours.timesteps
    assert_near(solve(ours), solve(theirs))


def test_predictor_of_order_1_is_ddim():
    ours = DCSolverScheduler(solver_order=1, corrector=False)
    ours.set_timesteps(10)
    ddim = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    ddim.set_timesteps(10)
    rho = ours.schedule.rho(np.arange(1000))
    ddim.alphas_cumprod = torch.from_numpy(1 / (1 + rho**2))
    x = expected = noise()
    for found, t in zip(solve(ours)[1:], ddim.timesteps, strict=True):
        expected = ddim.step(model(expected, float(t)), int(t), expected).prev_sample
        assert_near([found], [expected])
    assert not torch.equal(x, expected)


@pytest.mark.parametrize("lower", [True, False])
def test_predictor_of_order_2_is_dpm_solver_2m(lower):
    """diffusers computes this one in float32 whatever the sample is."""
    ours = DCSolverScheduler(solver_order=2, corrector=False, lower_order_final=lower)
    theirs = DPMSolverMultistepScheduler(solver_order=2, timestep_spacing="trailing", lower_order_final=lower)
    corrected = DCSolverScheduler(solver_order=2, lower_order_final=lower)
    x = noise(dtype=torch.float32)
    found, expected = solve(ours, 8, x)[-1], solve(theirs, 8, x)[-1]
    assert_near([found], [expected], 1e-5)
    assert (solve(corrected, 8, x)[-1] - expected).abs().max() > 0.01


# --- coefficients


@pytest.mark.parametrize("z", [-6.0, -1.01, -0.99, -1e-3, 1e-3, 0.5, 1.5, 7.0])
def test_phi_is_its_integral(z):
    """phi_k(z) = integral of e^{(1-s)z} s^{k-1}/(k-1)! ds from 0 to 1, less 1/k!: the usual phi function less its value
    at 0."""
    for k in (1, 2, 3):
        value, _ = quad(lambda s, k=k: math.expm1((1 - s) * z) * s ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=0)
        assert phi(k, z) == pytest.approx(value, rel=1e-11)


@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize(("order", "degrees"), [(2, (0, 2)), (3, (2, 3))])
def test_outputs_that_are_polynomials_in_lambda_are_integrated_exactly(order, degrees, data, kind):
    """The order conditions of the paper: UniP-3 to degree 2, UniC-p to degree p, whatever B is. UniP-2 with its 1/2 is
    exact for constants only."""
    scheduler = DCSolverScheduler(
        solver_order=order, solver_type=kind, predict_x0=data, prediction_type="sample" if data else "epsilon"
    )
    scheduler.set_timesteps(8)
    nodes, i = scheduler.nodes, 4
    lam, alpha, sigma = np.log(nodes.alpha[:-1] / nodes.sigma[:-1]), nodes.alpha, nodes.sigma

    def scalar(v) -> torch.Tensor:
        return torch.full((1, 1), float(v), dtype=torch.float64)

    for degree in range(5):
        m = np.poly1d(np.linspace(1, -0.7, degree + 1))
        sign, level = (1, sigma) if data else (-1, alpha)
        # x / sigma moves by the integral of e^lambda x_0, x / alpha by that of - e^-lambda eps
        integral, _ = quad(
            lambda at, m=m, sign=sign: sign * math.exp(sign * at) * m(at), lam[i], lam[i + 1], epsabs=0, epsrel=1e-12
        )
        exact = level[i + 1] * (0.8 / level[i] + integral)
        state = {"sample": scalar(0.8), "outputs": [scalar(m(v)) for v in lam[i : i - 3 : -1]]}
        predicted = scheduler.predict(i, state)
        corrected = scheduler.absorb(i + 1, state, scalar(m(lam[i + 1])), predicted)["sample"]
        for value, limit in zip((predicted, corrected), degrees, strict=True):
            assert (abs(float(value) - exact) < 1e-11 * max(1, abs(exact))) == (degree <= limit), (degree, limit)


# --- compensation


def textbook(nodes, order, kind, data, corrector, lower, dc, ratios, x) -> list[torch.Tensor]:
    """DC-Solver as the paper tells it, step by step, on data in epsilon prediction; all histories kept for ever."""
    t, alpha, sigma = nodes.t, nodes.alpha, nodes.sigma
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    m, path = [], [x]

    def convert(i, x):
        eps = model(x, t[i])
        return (x - sigma[i] * eps) / alpha[i] if data else eps

    def update(i, x, p, new=None):
        h = lam[i + 1] - lam[i]
        z, scale = (-h, alpha[i + 1]) if data else (h, sigma[i + 1])
        ratio = sigma[i + 1] / sigma[i] if data else alpha[i + 1] / alpha[i]
        base = ratio * x - scale * np.expm1(z) * m[i]
        b = z if kind == "bh1" else np.expm1(z)
        r = [(lam[i - j] - lam[i]) / h for j in range(1, p)]
        d = [(m[i - j] - m[i]) / rj for j, rj in enumerate(r, 1)]
        if new is not None:
            r, d = [*r, 1.0], [*d, new - m[i]]
        phis, factorial = [np.expm1(z) / z - 1], 1
        for k in range(1, len(r)):
            factorial *= k + 1
            phis.append(phis[-1] / z - 1 / factorial)
        right = [math.factorial(k + 1) * f / b for k, f in enumerate(phis)]
        a = [0.5] if len(r) == 1 else np.linalg.solve([[rj**k for rj in r] for k in range(len(r))], right) if r else []
        return base - scale * b * sum((float(aj) * dj for aj, dj in zip(a, d, strict=True)), torch.zeros_like(x))

    steps = len(t) - 1
    corrected, p = x, 0
    for i in range(steps):
        m.append(convert(i, path[-1]))
        if i and corrector:
            new = m.pop()
            corrected = update(i - 1, corrected, p, new)
            m.append(new)
        else:
            corrected = path[-1]
        if ratios[i] != 1:
            at, window = ratios[i] * t[i] + (1 - ratios[i]) * t[i - 1], t[i - dc : i + 1]
            powers = np.linalg.solve(np.vander(window).T, np.vander([at], dc + 1)[0])  # weights by monomials
            m[i] = sum(float(w) * v for w, v in zip(powers, m[i - dc : i + 1], strict=True))
        p = min(order, i + 1, steps - i) if lower else min(order, i + 1)
        path.append(update(i, corrected, p))
    return path


@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize("corrector", [True, False], ids=["UniPC", "UniP"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_ratios_do_what_the_paper_says(order, corrector, data):
    """Above all: a replaced output stays replaced, in later predictors, correctors and interpolations."""
    for dc, kind, lower in itertools.product((1, 2, 3), ("bh1", "bh2"), (True, False)):
        ratios = [1.0] * dc + list(RATIOS[dc:])
        scheduler = DCSolverScheduler(
            solver_order=order, solver_type=kind, predict_x0=data, corrector=corrector, lower_order_final=lower,
            dc_order=dc, compensation_ratios=ratios, final_sigma="min", grid={"type": "PowerGrid", "kappa": 1.5},
        )  # fmt: skip
        found = solve(scheduler, 8)
        arguments = (scheduler.nodes, order, kind, data, corrector, lower, dc)
        # the monomial basis of the reference costs digits
        assert_near(found, textbook(*arguments, ratios, noise()), 1e-8)
        plain = textbook(*arguments, [1.0] * 8, noise())
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(found[4:], plain[4:], strict=True))


def test_ratio_1_is_bit_for_bit_no_ratio():
    plain = solve(DCSolverScheduler(), 8)
    for found in (
        solve(DCSolverScheduler(compensation_ratios=[1.0] * 8), 8),
        solve(DCSolverScheduler(compensation_ratios=[1] * 8, dc_order=4), 8),
    ):
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


@pytest.fixture
def state():
    """state(scheduler, index) -> the state that `step` would have at `index`, and the sample there."""

    def state(scheduler, index):
        scheduler.set_timesteps(8)
        held, x = {}, noise()
        for i in range(index + 1):
            if i:
                x = scheduler.predict(i - 1, held)
            held = scheduler.absorb(i, held, model(x, float(scheduler.nodes.t[i])), x)
        return held

    return state


@pytest.mark.parametrize("dc", [1, 2, 3, 4])
def test_outputs_that_are_polynomials_in_t_are_extrapolated_exactly(dc):
    """Up to degree K, at t' = q t_i + (1 - q) t_{i-1}, on uneven timesteps."""
    scheduler = DCSolverScheduler(dc_order=dc, grid=[990, 800, 777, 400.5, 250, 100, 30, 2.5])
    scheduler.set_timesteps(8)
    t, i = scheduler.nodes.t, 6
    for degree in range(dc + 2):
        values = torch.from_numpy((t / 1000) ** degree)
        held = {"sample": None, "outputs": [values[i - k].reshape(1, 1) for k in range(dc + 1)]}
        for ratio in (0.3, 1.0, 2.5, torch.tensor(-0.7, dtype=torch.float64)):
            at = float(ratio) * t[i] + (1 - float(ratio)) * t[i - 1]
            replaced = float(scheduler.compensate(i, held, ratio)["outputs"][0])
            hit = abs(replaced - (at / 1000) ** degree) < 1e-12
            assert hit == (degree <= dc or float(ratio) == 1), (degree, ratio)


def test_a_number_and_a_tensor_as_ratio_agree_and_1_gives_the_output_itself(state):
    scheduler = DCSolverScheduler()
    held = state(scheduler, 4)
    before = [m.clone() for m in held["outputs"]]
    for ratio in (0.4, 1.7):
        number = scheduler.compensate(4, held, ratio)
        tensor = scheduler.compensate(4, held, torch.tensor(ratio, dtype=torch.float64))
        assert_near([number["outputs"][0]], [tensor["outputs"][0]], 1e-13)
        assert all(a is b for a, b in zip(number["outputs"][1:], held["outputs"][1:], strict=True))
    for one in (1.0, torch.tensor(1.0)):
        assert torch.equal(scheduler.compensate(4, held, one)["outputs"][0], held["outputs"][0])
    assert all(torch.equal(a, b) for a, b in zip(before, held["outputs"], strict=True)), "the state is not changed"


def test_each_sample_may_have_its_own_ratio(state):
    scheduler = DCSolverScheduler()
    held = state(scheduler, 4)
    ratios = torch.tensor([0.5, 1.4], dtype=torch.float64).reshape(2, 1, 1, 1)
    together = scheduler.predict(4, scheduler.compensate(4, held, ratios))
    for row, ratio in enumerate((0.5, 1.4)):
        alone = scheduler.predict(4, scheduler.compensate(4, held, ratio))
        assert (together[row] - alone[row]).abs().max() < 1e-13


@pytest.mark.parametrize("options", [{}, {"solver_order": 3, "solver_type": "bh1"}, {"predict_x0": False},
                                     {"corrector": False}, {"thresholding": True}], ids=str)  # fmt: skip
def test_gradient_by_the_ratio_is_that_of_finite_differences(options, state):
    """Through compensation, predictor, the model and corrector: what a search for ratios descends along."""
    scheduler, i = DCSolverScheduler(**options), 4
    held, target = state(scheduler, i), noise(seed=9)

    def loss(ratio: torch.Tensor) -> torch.Tensor:
        trial = scheduler.compensate(i, held, ratio)
        x = scheduler.predict(i, trial)
        end = scheduler.absorb(i + 1, trial, model(x, float(scheduler.nodes.t[i + 1])), x)
        return (end["sample"] - target).square().mean()

    for at in (1.0, 0.7):
        ratio = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(ratio), ratio)
        step = 1e-6
        up, down = (float(loss(torch.tensor(at + s, dtype=torch.float64))) for s in (step, -step))
        difference = (up - down) / (2 * step)
        assert abs(float(slope)) > 1e-4
        assert float(slope) == pytest.approx(difference, rel=1e-5)


def test_the_pure_parts_are_what_step_does(state):
    ratios = list(RATIOS)
    path = solve(DCSolverScheduler(compensation_ratios=ratios, solver_order=3), 8)
    scheduler, held, x = DCSolverScheduler(solver_order=3), {}, noise()
    scheduler.set_timesteps(8)
    for i in range(8):
        held = scheduler.absorb(i, held, model(x, float(scheduler.nodes.t[i])), x)
        held = scheduler.compensate(i, held, torch.tensor(ratios[i], dtype=torch.float64))
        x = scheduler.predict(i, held)
        assert_near([x], [path[i + 1]], 1e-12)


def test_started_in_the_middle_ratios_wait_for_their_history():
    """K + 1 = 3 outputs exist from the third evaluation on; before that, ratios have no effect."""
    steps, begin = 8, 3
    plain = solve(DCSolverScheduler(), steps, begin=begin)
    early = [1.0] * 3 + [0.5, 0.5] + [1.0] * 3
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain, solve(DCSolverScheduler(compensation_ratios=early), steps, begin=begin), strict=True)
    )
    late = [1.0] * 5 + [0.5] + [1.0] * 2
    found = solve(DCSolverScheduler(compensation_ratios=late), steps, begin=begin)
    same = [torch.equal(a, b) for a, b in zip(plain, found, strict=True)]
    assert same == [True, True, True, False, False, False]


# --- convergence


@pytest.fixture(scope="module")
def slope():
    """slope(steps, grid, **options) -> log2 of the error with `steps` over that with twice as many, at sigma(t = 0)."""
    suite = MixtureSuite()
    net = suite.pipeline().unet
    labels = torch.tensor(suite.conditions(0, 8)["class_labels"])
    x = torch.randn(8, *net.sample_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = exact_solution(net, x, labels, float(net.rho(999)), float(net.rho(0)))

    @torch.no_grad()
    def slope(steps: int, grid: str | dict, **options) -> float:
        errors = []
        for count in (steps, 2 * steps):
            scheduler = DCSolverScheduler(final_sigma="min", grid=grid, **options)
            scheduler.set_timesteps(count)
            at = x
            for t in scheduler.timesteps:
                at = scheduler.step(net(at, t, labels).sample, t, at).prev_sample
            errors.append(float((at - exact).square().mean().sqrt()))
        assert 1e-10 < errors[1] < 0.01
        return math.log2(errors[0] / errors[1])

    return slope


@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_p_is_of_order_p_plus_1(order, data, slope):
    kind, steps = "bh1" if order == 2 else "bh2", 160 if order == 3 else 80
    found = slope(steps, SQUARE, solver_order=order, solver_type=kind, predict_x0=data, lower_order_final=False)
    assert found == pytest.approx(order + 1, abs=0.3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_the_corrector_it_is_of_order_p(order, slope):
    found = slope(80, SQUARE, solver_order=order, corrector=False, lower_order_final=False)
    assert found == pytest.approx(order, abs=0.3)


def test_lower_order_final_costs_the_higher_order(slope):
    """As in diffusers at any number of steps: the last step is of order 1 and errs in h^2, and so does the result."""
    assert slope(160, "exponential", solver_order=3, predict_x0=False) == pytest.approx(2, abs=0.3)


# --- ends of the trajectory, flows


@pytest.mark.parametrize("data", [True, False], ids=["data", "noise"])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("lower", [True, False])
def test_the_last_step_to_sigma_zero_returns_the_predicted_data(lower, kind, data):
    scheduler = DCSolverScheduler(solver_order=3, solver_type=kind, predict_x0=data, lower_order_final=lower)
    path = solve(scheduler, 6)
    t, x = float(scheduler.timesteps[-1]), path[-2]
    alpha, sigma = scheduler.nodes.alpha[-2], scheduler.nodes.sigma[-2]
    eps = model(x, t)
    corrected = scheduler.memory["sample"]
    # in noise prediction the corrected x enters, in data prediction the output is all
    expected = ((x if data else corrected) - sigma * eps) / alpha
    assert (path[-1] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize("options", [{}, {"flow_shift": 3.0}, {"flow_shift": 20.0}, {"grid": "karras"}], ids=str)
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
def test_a_flow_from_pure_noise_carries_a_gaussian_where_it_belongs(kind, options, final):
    """x_0 ~ N(0, s^2) has velocity (sigma - alpha s^2) x / (alpha^2 s^2 + sigma^2), and x moves like the square root of
    that variance. At t = T alpha is 0 and lambda infinite; shift 20 puts several timesteps between T - 1 and T."""
    std, x, errors = 0.7, noise(), []
    for steps in (32, 128):
        scheduler = DCSolverScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, final_sigma=final, solver_type=kind, **options
        )
        scheduler.set_timesteps(steps)
        assert scheduler.nodes.alpha[0] == 0
        at = x
        for t in scheduler.timesteps:
            sigma = float(t) / 1000
            alpha = 1 - sigma
            velocity = (sigma - alpha * std**2) * at / (alpha**2 * std**2 + sigma**2)
            at = scheduler.step(velocity, t, at).prev_sample
        last = scheduler.nodes.sigma[-1]
        exact = x * math.sqrt((1 - last) ** 2 * std**2 + last**2)
        errors.append(float((at - exact).abs().max()))
    assert errors[1] < 0.03
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_flow_may_stop_right_below_pure_noise(order):
    """At t = T - 1 and between it and T, where clipped noise levels would coincide."""
    for grid in ([1000, 999, 700, 300], [1000, 999.9, 999.5, 999, 500]):
        scheduler = DCSolverScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, grid=grid, solver_order=order
        )
        path = solve(scheduler, len(grid))
        assert max(float(x.abs().max()) for x in path) < 30


def test_a_flow_matching_pipelines_config_makes_a_flow():
    scheduler = DCSolverScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    scheduler.set_timesteps(4)
    assert scheduler.schedule.flow
    np.testing.assert_allclose(scheduler.nodes.sigma, [1, 0.9, 0.75, 0.5, 0], atol=1e-12)


# --- settings and state


def test_configs_of_other_schedulers_and_the_own_one_are_taken(tmp_path):
    for foreign in (DPMSolverMultistepScheduler(solver_type="heun"), UniPCMultistepScheduler(solver_type="bh2")):
        assert DCSolverScheduler.from_config(foreign.config).config.solver_type == "bh2"
    own = DCSolverScheduler(solver_order=3, solver_type="bh1", compensation_ratios=list(RATIOS), disable_corrector=[0])
    own.save_pretrained(tmp_path)
    again = DCSolverScheduler.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(solve(own, 8), solve(again, 8), strict=True))
    assert UniPCMultistepScheduler.from_config(own.config).config.solver_type == "bh1"


def test_the_callers_list_is_neither_changed_nor_watched():
    ratios, off = list(RATIOS), [0]
    scheduler = DCSolverScheduler(compensation_ratios=ratios, disable_corrector=off)
    first = solve(scheduler, 8)
    assert ratios == list(RATIOS)
    assert off == [0]
    ratios[3], off[0] = 7.0, 1
    assert torch.equal(solve(scheduler, 8)[-1], first[-1])
    assert scheduler.config.compensation_ratios == list(RATIOS)


def test_trajectories_do_not_see_each_other():
    scheduler = DCSolverScheduler(compensation_ratios=list(RATIOS))
    first = solve(scheduler, 8)[-1]
    scheduler.set_timesteps(8)
    x = noise(seed=5)
    for t in scheduler.timesteps[:5]:  # broken off in the middle
        x = scheduler.step(model(x, float(t)), t, x).prev_sample
    assert torch.equal(solve(scheduler, 8)[-1], first)


def test_a_saved_state_goes_on_where_it_was():
    scheduler = DCSolverScheduler(compensation_ratios=list(RATIOS), solver_order=3)
    path = solve(scheduler, 8)
    scheduler.set_timesteps(8)
    for i in range(5):
        scheduler.step(model(path[i], float(scheduler.timesteps[i])), scheduler.timesteps[i], path[i])
    saved = scheduler.state_dict()
    other = DCSolverScheduler(compensation_ratios=list(RATIOS), solver_order=3)
    other.set_timesteps(8)
    other.load_state_dict(saved)
    x = path[5]
    for t in other.timesteps[5:]:
        x = other.step(model(x, float(t)), t, x).prev_sample
    assert torch.equal(x, path[-1])


def test_half_precision_samples_are_combined_in_float32():
    scheduler = DCSolverScheduler(compensation_ratios=list(RATIOS))
    scheduler.set_timesteps(8)
    x = noise(dtype=torch.float16)
    out = scheduler.step(model(x, 999.0), scheduler.timesteps[0], x).prev_sample
    assert out.dtype == torch.float16
    assert all(m.dtype == torch.float32 for m in scheduler.memory["outputs"])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"solver_order": 4}, r"solver_order is 4; allowed: an integer in \[1, 3\]"),
     ({"solver_type": "bh3"}, "unknown solver_type 'bh3'.*Allowed: bh1, bh2"),
     ({"predict_x0": "yes"}, "predict_x0 is 'yes'; allowed: true, false"),
     ({"lower_order_final": 15}, "lower_order_final is 15; allowed: true, false"),
     ({"corrector": None}, "corrector is None"),
     ({"disable_corrector": [-1]}, "a step of disable_corrector is -1"),
     ({"disable_corrector": 0}, "disable_corrector is 0; allowed: a list"),
     ({"dc_order": 0}, r"dc_order is 0; allowed: an integer in \[1, 4\]"),
     ({"compensation_ratios": "1 1 1"}, "compensation_ratios is '1 1 1'; allowed: a list"),
     ({"compensation_ratios": [1, 1, float("nan")]}, r"compensation_ratios\[2\] is nan"),
     ({"compensation_ratios": [1, 1, float("inf")]}, r"compensation_ratios\[2\] is inf"),
     ({"compensation_ratios": [1, 1, "2"]}, r"compensation_ratios\[2\] is '2'"),
     ({"compensation_ratios": [1, 0.9, 1]}, r"compensation_ratios\[1\] is 0.9; allowed: 1 for the first 2 steps"),
     ({"compensation_ratios": [1, 1, 0.9], "dc_order": 3}, r"\[2\] is 0.9; allowed: 1 for the first 3 steps")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        DCSolverScheduler(**options)


def test_another_number_of_ratios_than_steps_is_refused():
    for count in (0, 7, 9):
        scheduler = DCSolverScheduler(compensation_ratios=[1.0] * count)
        with pytest.raises(ConfigError, match=f"has {count} ratios, but the trajectory has 8 steps"):
            scheduler.set_timesteps(8)
    sampler = DiffusersSampler("DCSolverScheduler", 5, options={"compensation_ratios": [1.0] * 8})
    with pytest.raises(ConfigError, match="has 8 ratios, but the trajectory has 5 steps"):
        sampler.build({"num_train_timesteps": 1000})


def test_noise_prediction_of_a_flow_from_alpha_zero_is_refused():
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "predict_x0": False}
    with pytest.raises(ConfigError, match="starts at alpha = 0"):
        DCSolverScheduler(**options).set_timesteps(5)
    path = solve(DCSolverScheduler(**options, grid=[990, 700, 400, 100]), 4)
    assert path[-1].isfinite().all()


def test_few_steps_lower_the_order():
    for steps in (1, 2):
        ours, theirs = both(steps, "min", solver_order=3)
        assert_near(solve(ours), solve(theirs))
