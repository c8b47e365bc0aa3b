"""The refined grid holds the grid itself, and the converged trajectory is the exact one at the grid's own times."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny import GaussianFlow, gaussian_flow

from accel.samplers import DCSolverScheduler
from accel.samplers.grids import PowerGrid
from accel.samplers.predictor import Predictor
from accel.search.trajectories import converged_states, refined, trajectory
from accel.suites.mixture import MixtureSuite
from accel.suites.mixture.exact import exact_solution

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SQUARE = PowerGrid(kappa=2.0).spec()
GRIDS = {
    "trailing": "trailing",
    "linspace": "linspace",
    "karras": "karras",
    "exponential": "exponential",
    "t^2": SQUARE,
    "fractions": [990.5, 640.25, 99.125, 30.0, 7.5],
    "crowded": [990.0, 989.5, 989.25, 3.5, 3.0],
}
LABELS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def mixture():
    return MixtureSuite().pipeline()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduler_on(grid, final: str = "zero", steps: int = 5, **options) -> DCSolverScheduler:
    scheduler = DCSolverScheduler(grid=grid, final_sigma=final, **options)
    scheduler.set_timesteps(steps)
    return scheduler


# --- the refined grid


@pytest.mark.parametrize("options", [{}, FLOW, {"rescale_betas_zero_snr": True}], ids=["vp", "flow", "zero snr"])
@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize("name", GRIDS)
def test_refined_grid_contains_the_grid(name, final, options):
    scheduler = scheduler_on(GRIDS[name], final, **options)
    schedule = scheduler.schedule
    for wanted in (1, 20, 200):
        times, index = refined(scheduler, wanted)
        assert np.array_equal(times[index], scheduler.nodes.t[:-1]), "the very same numbers"
        assert (np.diff(times) < 0).all()
        assert (np.diff(index) >= 2).all(), "every step is cut"
        assert schedule.t_min <= times[-1]
        assert (times[-1] == schedule.t_min) == (final == "zero"), "a step to sigma = 0 is cut to the smallest level"
        assert 0.75 * wanted <= len(times) <= max(wanted, 10) + 5
        fine = DCSolverScheduler.from_config(scheduler.config)
        fine.set_timesteps(timesteps=times)
        assert np.array_equal(fine.nodes.t[:-1], times)


def test_pieces_of_a_step_are_even_in_log_noise_level():
    for options in ({}, FLOW):
        scheduler = scheduler_on([900, 500, 100], steps=3, **options)
        times, index = refined(scheduler, 30)
        log_rho = np.log(scheduler.schedule.rho(times))
        for a, b in zip(index, [*index[1:], len(times) - 1], strict=True):
            assert b - a == 10
            np.testing.assert_allclose(np.diff(log_rho[a : b + 1]), (log_rho[b] - log_rho[a]) / 10, rtol=1e-9)


def test_beginning_of_a_flow_where_the_noise_level_is_clipped_is_cut_too():
    """sigma / alpha is infinite at T; the schedule clips it from T - 1 on, where two times may still differ."""
    for grid in ([1000, 999.4, 500], [1000, 999.75, 999.5], [1000, 998.5, 400], [999.5, 999.25, 3]):
        scheduler = scheduler_on(grid, steps=3, **FLOW)
        times, index = refined(scheduler, 30)
        assert (np.diff(times) < 0).all()
        assert times[index].tolist() == grid


# --- the converged trajectory


@pytest.mark.parametrize(
    ("grid", "final", "scale", "tolerance"),
    [("trailing", "zero", 3.0, 1e-5), (SQUARE, "min", 3.0, 1e-5), ("karras", "zero", 1.0, 2e-4),
     ("karras", "min", 3.0, 2e-4)],
)  # fmt: skip
def test_converged_states_are_the_exact_solution_at_the_grid_times(mixture, grid, final, scale, tolerance):
    """Karras' first steps are long in log rho: fewest pieces where the mixture's components separate."""
    x, net = noise(4, 1, 2, 4), mixture.unet
    scheduler = scheduler_on(grid, final, 4)
    predict = Predictor(mixture, class_labels=LABELS, guidance_scale=scale)
    found = converged_states(scheduler, predict, x, 160)
    nodes, schedule = scheduler.nodes, scheduler.schedule
    assert len(found) == 5
    assert torch.equal(found[0], x)

    def exact(x: torch.Tensor, start: float, end: float) -> torch.Tensor:
        return exact_solution(net, x, LABELS, float(schedule.rho(start)), float(schedule.rho(end)), scale, 1e-9, 1e-10)

    state = x
    for i in range(1, 4):
        state = exact(state, nodes.t[i - 1], nodes.t[i])
        assert (found[i] - state).abs().max() < tolerance
    state = exact(state, nodes.t[3], schedule.t_min)
    if final == "zero":  # the plain step from the smallest level that every sampler ends with
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(schedule.t_min))
        with torch.no_grad():
            state = (state - sigma * predict(state, schedule.t_min)) / alpha
    assert (found[4] - state).abs().max() < 20 * tolerance, "the last state is predicted, not corrected"


def test_more_evaluations_converge_with_order_three(mixture):
    x, predict = noise(4, 1, 2, 4), Predictor(mixture, class_labels=LABELS)
    scheduler = scheduler_on("trailing", "min", 4)
    exact = exact_solution(mixture.unet, x, LABELS, *map(float, scheduler.nodes.rho[[0, 3]]), 1.0, 1e-11, 1e-12)
    errors = [float((converged_states(scheduler, predict, x, n)[3] - exact).abs().max()) for n in (48, 96, 192)]
    for coarse, fine in itertools.pairwise(errors):
        assert 2**2.5 < coarse / fine < 2**6, errors


@pytest.mark.parametrize(("final", "end"), [("zero", 1e-4), ("min", 1e-4)])
@pytest.mark.parametrize("grid", ["trailing", SQUARE, [1000, 999.4, 500, 20.0]], ids=["trailing", "t^2", "clipped"])
def test_converged_states_of_a_flow_are_exact(grid, final, end):
    x, pipe = noise(3, 1, 2, 2), gaussian_flow()
    scheduler = scheduler_on(grid, final, 4, **FLOW)
    found = converged_states(scheduler, Predictor(pipe, batch_size=3), x, 200)
    for i, t in enumerate(scheduler.nodes.t):
        error = (found[i] - GaussianFlow.solution(x, t)).abs().max()
        assert error < (end if i == 4 else 1e-6), (i, t)


@pytest.mark.parametrize(
    "options",
    [{"compensation_ratios": [1.0, 1.0, 1.3, 0.8], "solver_order": 2}, {"corrector": False, "solver_order": 1},
     {"disable_corrector": [0, 1]}, {"predict_x0": False}],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_reference_does_not_depend_on_the_solver_that_is_compared(mixture, options):
    x, predict = noise(4, 1, 2, 4), Predictor(mixture, class_labels=LABELS)
    one, other = (
        converged_states(scheduler_on("trailing", "zero", 4, **o), predict, x, 24) for o in ({}, dict(options))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_trajectory_is_what_the_pipeline_goes_through(mixture):
    """Any scheduler, the states of the pipeline's own loop, the result included."""
    scheduler, x = scheduler_on("trailing", "zero", 5), noise(4, 1, 2, 4)
    found = trajectory(scheduler, Predictor(mixture, class_labels=LABELS, guidance_scale=2.0), x)
    original, seen = mixture.scheduler, []
    mixture.scheduler = DCSolverScheduler.from_config(scheduler.config)
    handle = mixture.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:4]))
    try:
        end = mixture(
            class_labels=LABELS, guidance_scale=2.0, latents=x, num_inference_steps=5, output_type="pt"
        ).images
    finally:
        handle.remove()
        mixture.scheduler = original
    assert all(torch.equal(a, b) for a, b in zip(found, [*seen, end], strict=True))
