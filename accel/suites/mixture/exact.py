"""Exact probability-flow ODE of suite `mixture`: the endpoint that every sampler must converge to.

With x_bar = x / alpha and rho = sigma / alpha the ODE of a variance-preserving model is d x_bar / d rho = eps(x, rho),
x = x_bar / sqrt(1 + rho^2) (Zhang & Chen 2022, DEIS, proposition 3; Song et al. 2021, DDIM, eq. 14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.integrate import solve_ivp

from accel.errors import AccelError, ConfigError, check_float
from accel.suites.mixture.model import MixtureDenoiser

CHUNK = 128  # samples integrated as one system: they share the step sizes, so a chunk should not grow without limit
MIN_RTOL = 2.3e-14  # scipy's own floor is 100 * eps = 2.2e-14
MAX_RHO = 1e6  # beyond any noise schedule; infinity and NaN end here


@torch.no_grad()
def exact_solution(
    model: MixtureDenoiser,
    x_start: torch.Tensor,
    labels: torch.Tensor | Sequence[int] | int | None,
    rho_start: float,
    rho_end: float = 0.0,
    guidance_scale: float = 1.0,
    rtol: float = 1e-12,
    atol: float = 1e-13,
) -> torch.Tensor:
    """Solution at `rho_end` of the probability-flow ODE that passes through `x_start` at `rho_start`.

    d x_bar / d rho = eps_u + s (eps_c - eps_u), s = `guidance_scale`, eps_u = the null label's prediction.
    `x_start` (B, C, H, W) and the result (same shape, float64) are in variance-preserving scale; at rho 0 the result
    is x0. `labels` as in `MixtureDenoiser.noise_prediction`. `rho_end` > `rho_start` runs the ODE towards noise.
    Solver: DOP853 in u = asinh(rho / c); `solution_error` measures its error (below 1e-10 at these tolerances).
    Raises ConfigError for a model that is not float64 or a value out of range, AccelError if the solver fails.
    """
    # c = smallest standard deviation. The solution is smooth in log rho above c and in rho below it: asinh is both,
    # and rho = 0 is an ordinary point (eps is O(rho) there), so no limit has to be taken by hand.
    scale = float(model.stds.min())
    return _integrate(
        model,
        x_start,
        labels,
        (rho_start, rho_end),
        guidance_scale,
        (rtol, atol),
        to_variable=lambda rho: math.asinh(rho / scale),
        to_rho=lambda u: (scale * math.sinh(u), scale * math.cosh(u)),
    )


@torch.no_grad()
def solution_error(
    model: MixtureDenoiser,
    x_start: torch.Tensor,
    labels: torch.Tensor | Sequence[int] | int | None,
    rho_start: float,
    rho_end: float = 0.0,
    guidance_scale: float = 1.0,
    rtol: float = 1e-12,
    atol: float = 1e-13,
) -> float:
    """Self-check: largest |exact_solution - second integration| over all elements; arguments as in `exact_solution`.

    The second integration shares no step with the first: its variable is rho itself, its tolerances the tightest that
    float64 allows. About three times the cost of the solution, so give it a few samples.
    """
    first = exact_solution(model, x_start, labels, rho_start, rho_end, guidance_scale, rtol, atol)
    second = _integrate(
        model,
        x_start,
        labels,
        (rho_start, rho_end),
        guidance_scale,
        (MIN_RTOL, 1e-15),
        to_variable=float,
        to_rho=lambda rho: (rho, 1.0),
    )
    return float((first - second).abs().max())


def _integrate(model, x_start, labels, rhos, guidance_scale, tolerances, to_variable, to_rho) -> torch.Tensor:
    """`to_variable(rho)` -> integration variable u; `to_rho(u)` -> (rho, d rho / d u)."""
    if model.dtype != torch.float64:
        raise ConfigError(f"model is {model.dtype}; allowed: torch.float64, e.g. MixtureDenoiser(**model.config).")
    rhos, (rtol, atol) = tuple(map(float, rhos)), tolerances
    for name, value in zip(("rho_start", "rho_end"), rhos, strict=True):
        check_float(name, value, 0.0, MAX_RHO)
    check_float("guidance_scale", guidance_scale, 0.0)
    check_float("rtol", rtol, MIN_RTOL, 1.0)
    check_float("atol", atol, 0.0, 1.0)
    model.check_shape(x_start)
    labels = model.expand_labels(labels, len(x_start))
    if not bool(x_start.isfinite().all()):
        raise ConfigError("x_start is not finite; allowed: finite numbers.")
    x = x_start.to(model.device, torch.float64)
    solutions = [
        _integrate_chunk(model, part, part_labels, rhos, guidance_scale, tolerances, to_variable, to_rho)
        for part, part_labels in zip(x.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return torch.cat(solutions).to(x_start.device)


def _integrate_chunk(model, x, labels, rhos, guidance_scale, tolerances, to_variable, to_rho) -> torch.Tensor:
    predict = guided_predictor(model, labels, guidance_scale)

    def slope(u: float, flat: np.ndarray) -> np.ndarray:
        rho, derivative = to_rho(u)
        at = torch.from_numpy(flat).reshape(x.shape).to(x.device) / math.sqrt(1 + rho**2)
        eps = predict(at, rho)
        return (eps * derivative).flatten().cpu().numpy()

    start, end = rhos
    x_bar = (x * math.sqrt(1 + start**2)).flatten().cpu().numpy()
    span = (to_variable(start), to_variable(end))
    if span[0] == span[1]:
        return x.clone()
    # scipy controls the root mean square over the whole system; this keeps a single sample's error within tolerance.
    rtol, atol = (tolerance / math.sqrt(len(x)) for tolerance in tolerances)
    result = solve_ivp(slope, span, x_bar, method="DOP853", rtol=max(rtol, MIN_RTOL), atol=atol, t_eval=[span[1]])
    if not result.success or not np.isfinite(result.y).all():
        raise AccelError(f"the ODE solver stopped between rho {start} and {end}: {result.message}")
    return (torch.from_numpy(result.y[:, -1]).reshape(x.shape) / math.sqrt(1 + end**2)).to(x.device)


def guided_noise_prediction(
    model: MixtureDenoiser, x: torch.Tensor, rho: float, labels: torch.Tensor, guidance_scale: float
) -> torch.Tensor:
    """eps_u + s (eps_c - eps_u), (B, C, H, W), s = `guidance_scale`; s = 1 evaluates the conditional alone."""
    return guided_predictor(model, labels, guidance_scale)(x, rho)


def guided_predictor(
    model: MixtureDenoiser, labels: torch.Tensor, guidance_scale: float
) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """(x, rho) -> `guided_noise_prediction` with these labels, one for each sample."""
    conditional = model.predictor(labels, len(labels))
    if guidance_scale == 1.0:
        return conditional
    unconditional = model.predictor(model.null_label, len(labels))

    def predict(x: torch.Tensor, rho: float) -> torch.Tensor:
        cond, uncond = conditional(x, rho), unconditional(x, rho)
        return uncond + guidance_scale * (cond - uncond)

    return predict
