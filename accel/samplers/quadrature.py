"""Exact weights of exponential-integrator multistep methods, in float64.

The probability-flow ODE in x / alpha is d(x / alpha) / d rho = eps. A step from rho_i to rho_{i+1} integrates the
polynomial through the last evaluations of eps; methods differ in the variable u(rho) that the polynomial lives in:

    C_j = integral from rho_i to rho_{i+1} of l_j(u(rho)) d rho,   l_j = Lagrange basis on u_i, u_{i-1}, ..., u_{i-k}

Source: Zhang & Chen 2023 (arXiv:2204.13902), eq. 12-15. The paper's code sums 10,000 rectangles (error 1e-2 of the
result at 5 steps); here Gauss-Legendre panels between the kinks of u(rho) are exact to about 1e-14.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from accel.samplers.noise_schedule import NoiseSchedule


def lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Lagrange basis polynomials on `nodes` (K,), evaluated at `at` (Q,): (K, Q)."""
    basis = np.ones((len(nodes), len(at)))
    for j, node in enumerate(nodes):
        for m, other in enumerate(nodes):
            if m != j:
                basis[j] *= (at - other) / (node - other)
    return basis


def adams_bashforth(schedule: NoiseSchedule, coordinate: str, rho: np.ndarray, end: float) -> np.ndarray:
    """C_j, j = 0..K-1, for the step from rho[0] to `end`; `rho` (K,) are the noise levels of eps, newest first.

    `coordinate`: `t` (tAB-DEIS), `rho` (rhoAB-DEIS) or `logrho`, the variable of the polynomial.
    """
    points, weights = _panels(schedule, coordinate, rho[0], end)
    u = {"t": schedule.timestep, "rho": np.asarray, "logrho": np.log}[coordinate]
    return lagrange(u(rho), u(points)) @ weights


def _panels(schedule, coordinate, start, end) -> tuple[np.ndarray, np.ndarray]:
    # Quadrature in rho: points and weights. On each panel the integrand must be smooth.
    if coordinate == "rho":
        edges, count = np.array([start, end]), 4  # a cubic: exact
    elif coordinate == "logrho":
        pieces = max(1, int(np.ceil(abs(np.log(end / start)) / 0.5)))
        edges, count = start * (end / start) ** (np.arange(pieces + 1) / pieces), 16
    else:
        # t(rho) has a kink at each integer timestep
        first, last = schedule.timestep(start), schedule.timestep(end)
        whole = np.arange(np.ceil(first) - 1, last, -1.0)
        edges, count = np.concatenate([[start], schedule.rho(whole[whole < first]), [end]]), 12
    x, w = _gauss(count)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


@lru_cache(maxsize=8)
def _gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(count)
