"""DC-Solver's search for compensation ratios: greedy over the steps, by gradient through the denoiser.

Zhao et al. 2024 (arXiv:2409.03755), alg. 1: with the ratios of earlier steps fixed, q_i minimises the mean squared
difference between the state after step i (its predictor and its corrector) and the converged trajectory at t_{i+1},
over ten initial noises. Deviations from the authors' code, each for a defect of theirs: the reference is evaluated
exactly at the grid times; q stays within 1 +- `bound` (q = 1 + bound tanh theta); the best iterate is kept, not the
last; weight decay is off; and a ratio that does not also help on `held_out` other noises falls back to 1, as do all of
them if the whole trajectory's end on those noises is no better.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import denoiser_name
from accel.errors import ConfigError, check_float, check_int
from accel.samplers.dc_solver import DCSolverScheduler
from accel.samplers.predictor import Predictor
from accel.search.trajectories import converged_states


@dataclass(frozen=True)
class RatioSearch:
    """Settings of a ratio search; part of its artefact's key."""

    noises: int = 10
    held_out: int = 10
    iterations: int = 20
    lr: float = 0.1
    bound: float = 0.5
    reference: int = 200  # evaluations of the converged trajectory
    EPOCH = 1

    def __post_init__(self) -> None:
        for name in ("noises", "held_out", "iterations", "reference"):
            check_int(f"search.{name}", getattr(self, name), 1)
        check_float("search.lr", self.lr, 1e-6, 10.0)
        check_float("search.bound", self.bound, 0.0, 10.0)

    @property
    def samples(self) -> int:
        """Noises that the search needs: those it fits, then those it validates on."""
        return self.noises + self.held_out


@dataclass
class FoundRatios:
    """What a search found: the ratios and the squared errors at the end of the trajectory, without and with them."""

    ratios: list[float]
    rejected: list[int]  # steps whose ratio fell back to 1 on the held-out noises
    fit: tuple[float, float]
    held_out: tuple[float, float]
    seconds: float
    calls: int  # of the guided model, each on a batch of noises


def search_ratios(
    scheduler: DCSolverScheduler,
    predict: Predictor,
    noise: torch.Tensor,
    settings: RatioSearch,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> FoundRatios:
    """Ratios for `scheduler`'s grid (`set_timesteps` has been called) and the model and guidance of `predict`.

    noise (B, ...): `settings.samples` initial states. `on_step(done, total)`: progress, in steps.
    """
    if len(noise) != settings.samples:
        raise ConfigError(f"the search got {len(noise)} noises; allowed: {settings.samples}, to fit and to validate.")
    began, called, fit = time.perf_counter(), predict.calls, slice(0, settings.noises)
    steps, first = scheduler.nodes.steps, scheduler.config.dc_order
    with frozen(predict.pipe):
        exact = converged_states(scheduler, predict, noise, settings.reference)
        ratios, rejected = [1.0] * steps, []
        state, x = {}, noise
        for i in range(steps):
            with torch.no_grad():
                state = scheduler.absorb(i, state, predict(x, float(scheduler.timesteps[i])), x)
            if i >= first:
                found = _fit(scheduler, predict, i, state, exact[i + 1], settings)
                errors = {q: _errors(scheduler, predict, i, state, q, exact[i + 1]) for q in (1.0, found)}
                if errors[found][settings.noises :].mean() < errors[1.0][settings.noises :].mean():
                    ratios[i] = found
                elif found != 1.0:
                    rejected.append(i)
            with torch.no_grad():
                state = scheduler.compensate(i, state, ratios[i]) if ratios[i] != 1 else state
                x = scheduler.predict(i, state)
            on_step(i + 1, steps)
        after = _squared(x, exact[-1])
        before = _squared(_end(scheduler, predict, noise), exact[-1])
    if not after[settings.noises :].mean() < before[settings.noises :].mean():
        rejected, ratios, after = [i for i in range(steps) if ratios[i] != 1 or i in rejected], [1.0] * steps, before
    held = slice(settings.noises, None)
    return FoundRatios(
        ratios,
        rejected,
        (float(before[fit].mean()), float(after[fit].mean())),
        (float(before[held].mean()), float(after[held].mean())),
        time.perf_counter() - began,
        predict.calls - called,
    )


def _fit(scheduler, predict, i: int, state: dict[str, Any], target: torch.Tensor, settings: RatioSearch) -> float:
    n = settings.noises
    state = {"sample": state["sample"][:n], "outputs": [m[:n] for m in state["outputs"]]}
    few = _subset(predict, n, settings.samples)
    theta = torch.zeros((), dtype=torch.float64, device=target.device, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=settings.lr)
    best = (float("inf"), 1.0)
    for _ in range(settings.iterations):
        ratio = 1 + settings.bound * torch.tanh(theta)
        error = _squared(_after(scheduler, few, i, state, ratio.to(target.dtype)), target[:n]).mean()
        if float(error.detach()) < best[0]:
            best = (float(error.detach()), float(ratio.detach()))
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    predict.calls += few.calls
    return best[1]


def _after(scheduler, predict, i: int, state, ratio) -> torch.Tensor:
    """The state after step i under a ratio: corrected where there is a corrector, which evaluates the model."""
    trial = scheduler.compensate(i, state, ratio)
    x = scheduler.predict(i, trial)
    last = i + 1 == scheduler.nodes.steps
    if last or not scheduler.corrects(i):
        return x
    return scheduler.absorb(i + 1, trial, predict(x, float(scheduler.timesteps[i + 1])), x)["sample"]


@torch.no_grad()
def _errors(scheduler, predict, i: int, state, ratio: float, target: torch.Tensor) -> torch.Tensor:
    return _squared(_after(scheduler, predict, i, state, ratio), target)


@torch.no_grad()
def _end(scheduler: DCSolverScheduler, predict: Predictor, x: torch.Tensor) -> torch.Tensor:
    state: dict[str, Any] = {}
    for i, t in enumerate(scheduler.timesteps):
        state = scheduler.absorb(i, state, predict(x, float(t)), x)
        x = scheduler.predict(i, state)
    return x


def _squared(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (x - target).double().flatten(1).square().mean(1)


def _subset(predict: Predictor, count: int, total: int) -> Predictor:
    # The same prediction for the first of `total` samples only: per-sample arguments are cut.
    def few(name: str, value: Any) -> Any:
        if name == "batch_size":
            return count
        return value[:count] if isinstance(value, (list, torch.Tensor)) and len(value) == total else value

    return Predictor(predict.pipe, predict.clock, **{k: few(k, v) for k, v in predict.call.items()})


@contextmanager
def frozen(pipe: Any):
    """No gradients of weights within the context: only those of the ratio are wanted."""
    net: nn.Module = getattr(pipe, denoiser_name(pipe))
    wanted = [p for p in net.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
