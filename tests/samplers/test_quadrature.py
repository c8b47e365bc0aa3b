"""Weights of the multistep methods: against adaptive quadrature, closed forms and what every such rule must satisfy."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import fsum, log

import numpy as np
import pytest
from scipy.integrate import quad

from accel.samplers.grids import Grid, PowerGrid
from accel.samplers.noise_schedule import noise_schedule
from accel.samplers.quadrature import adams_bashforth, lagrange

SCHEDULES = {
    "linear": noise_schedule({}),
    "sd": noise_schedule({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
    "cosine": noise_schedule({"beta_schedule": "squaredcos_cap_v2"}),
    "flow": noise_schedule({"use_flow_sigmas": True}),
}
COORDINATES = ["t", "rho", "logrho"]


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def variable(schedule, coordinate: str):
    return {"t": schedule.timestep, "rho": lambda rho: rho, "logrho": np.log}[coordinate]


def steps_of(schedule, grid, steps: int, order: int):
    """(levels newest first, end) of some steps of a trajectory that goes to the smallest noise level."""
    rho = schedule.rho(np.append(grid.times(schedule, steps, False), schedule.t_min))
    for i in {order, steps // 2, steps - 1}:
        if order <= i < steps:
            yield rho[i - order : i + 1][::-1], float(rho[i + 1])


def integral(function, schedule, start: float, end: float) -> float:
    """Adaptive quadrature in log rho, piece by piece between the integer timesteps, where t(rho) has kinks."""
    first, last = (float(schedule.timestep(v)) for v in (start, end))
    kinks = schedule.rho(np.arange(np.ceil(first) - 1, last, -1.0)).tolist()
    edges = [start, *(k for k in kinks if end < k < start), end]
    pieces = [
        quad(lambda s: function(np.exp(s)) * np.exp(s), log(a), log(b), epsabs=0, epsrel=2e-14)[0]
        for a, b in pairwise(edges)
        if log(a) > log(b)
    ]
    return fsum(pieces)


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("order", [1, 3])
def test_weights_are_those_of_adaptive_quadrature(schedule, coordinate, order):
    u = variable(schedule, coordinate)
    for grid, steps in ((PowerGrid(), 7), (Grid("exponential"), 40)):
        for rho, end in steps_of(schedule, grid, steps, order):
            nodes = u(rho)

            def basis(level, j, nodes=nodes):
                at = u(level)
                return np.prod([(at - m) / (nodes[j] - m) for i, m in enumerate(nodes) if i != j])

            expected = [integral(lambda v, j=j: basis(v, j), schedule, rho[0], end) for j in range(order + 1)]
            found = adams_bashforth(schedule, coordinate, rho, end)
            # The sum of a rule with weights of both signs can be no better than its largest weight.
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_constants_are_integrated_exactly(schedule, coordinate, order):
    for grid in (PowerGrid(), Grid("trailing"), Grid("karras")):
        for steps in (5, 10, 50):
            for rho, end in steps_of(schedule, grid, steps, order):
                weights = adams_bashforth(schedule, coordinate, rho, end)
                assert weights.shape == (order + 1,)
                assert abs(weights.sum() - (end - rho[0])) <= 1e-13 * np.abs(weights).sum()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_powers_of_the_variable_are_integrated_exactly(schedule, order):
    """Up to the number of earlier values, and not beyond; closed forms, where integrals of u(rho)^m have one."""
    for rho, end in steps_of(schedule, PowerGrid(), 12, order):
        a, b = float(rho[0]), end
        closed = {
            "rho": [lambda v, m=m: v ** (m + 1) / (m + 1) for m in range(5)],
            "logrho": [
                lambda v: v,
                lambda v: v * (log(v) - 1),
                lambda v: v * (log(v) ** 2 - 2 * log(v) + 2),
                lambda v: v * (log(v) ** 3 - 3 * log(v) ** 2 + 6 * log(v) - 6),
                lambda v: v * (log(v) ** 4 - 4 * log(v) ** 3 + 12 * log(v) ** 2 - 24 * log(v) + 24),
            ],
        }
        if schedule.flow:  # t = T rho / (1 + rho)
            closed["t"] = [
                lambda v: v,
                lambda v: schedule.total * (v - log(1 + v)),
                lambda v: schedule.total**2 * (v - 2 * log(1 + v) - 1 / (1 + v)),
                lambda v: schedule.total**3 * (v - 3 * log(1 + v) - 3 / (1 + v) + 1 / (2 * (1 + v) ** 2)),
            ]
        for coordinate, powers in closed.items():
            weights = adams_bashforth(schedule, coordinate, rho, end)
            values = variable(schedule, coordinate)(rho)
            for m, antiderivative in enumerate(powers[: order + 1]):
                exact = antiderivative(b) - antiderivative(a)
                scale = np.abs(weights * values**m).sum() + abs(antiderivative(a))
                assert abs(weights @ values**m - exact) < 2e-12 * scale, (coordinate, m)
            if order + 1 < len(powers):
                exact = powers[order + 1](b) - powers[order + 1](a)
                assert abs(weights @ values ** (order + 1) - exact) > 1e-6 * abs(exact), "one power too many"


def test_order_zero_is_eulers_step(schedule):
    for coordinate in COORDINATES:
        assert adams_bashforth(schedule, coordinate, np.array([3.0]), 1.25) == pytest.approx([-1.75], rel=1e-14)


def test_rational_nodes_in_rho_have_rational_weights():
    """The integral of the Lagrange basis in exact arithmetic, on uneven nodes."""
    nodes, end = [Fraction(7), Fraction(10), Fraction(16), Fraction(33)], Fraction(9, 2)
    for order in range(4):
        expected = []
        for j in range(order + 1):
            basis = [Fraction(1)]  # coefficients, constant first
            for m in range(order + 1):
                if m != j:
                    scale = nodes[j] - nodes[m]
                    lower = [-nodes[m] * c / scale for c in basis] + [Fraction(0)]
                    basis = [a + b / scale for a, b in zip(lower, [Fraction(0), *basis], strict=True)]
            integral = sum(c * (end ** (i + 1) - nodes[0] ** (i + 1)) / (i + 1) for i, c in enumerate(basis))
            expected.append(float(integral))
        rho = np.array([float(n) for n in nodes[: order + 1]])
        found = adams_bashforth(SCHEDULES["linear"], "rho", rho, float(end))
        np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("order", "classical"),
    [
        (1, [3 / 2, -1 / 2]),
        (2, [23 / 12, -16 / 12, 5 / 12]),
        (3, [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
    ],
)
def test_equal_steps_in_rho_have_the_classical_adams_bashforth_weights(order, classical):
    rho = 0.5 + 0.7 * np.arange(1, order + 2)
    found = adams_bashforth(SCHEDULES["linear"], "rho", rho, 0.5)
    np.testing.assert_allclose(found, -0.7 * np.array(classical), rtol=1e-13)


def test_the_three_variables_agree_in_the_limit_of_small_steps():
    """They differ by the curvature of u(rho): halving the steps must halve the difference of second-order weights."""
    schedule = SCHEDULES["linear"]
    for coordinate in ("t", "logrho"):
        differences = []
        for h in (0.02, 0.01):
            rho = np.array([1.0, 1.0 + h])
            a, b = (adams_bashforth(schedule, c, rho, 1.0 - h) for c in (coordinate, "rho"))
            differences.append(np.abs(a - b).max() / h)
        assert 0 < differences[1] < 0.6 * differences[0]


def test_lagrange_basis_is_one_at_its_node_and_zero_at_the_others():
    nodes = np.array([3.0, 1.0, -2.0, 0.5])
    np.testing.assert_allclose(lagrange(nodes, nodes), np.eye(4), atol=1e-15)
    at = np.linspace(-3, 4, 50)
    np.testing.assert_allclose(lagrange(nodes, at).sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(nodes**3 @ lagrange(nodes, at), at**3, atol=1e-12)
