"""RF-Solver and the flow baselines, on the flow of Gaussian data, whose solution is known.

With x_0 ~ N(MEAN, STD^2) the marginal at sigma is N((1 - sigma) MEAN, (1 - sigma)^2 STD^2 + sigma^2), the velocity is
linear in x, and the flow keeps each sample's quantile.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from accel.config import choice_of
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.samplers import DEISScheduler, DiffusersSampler, RFSolverScheduler
from accel.samplers.grids import Grid, PowerGrid

MEAN, STD = 0.5, 0.4
FLOW = {"num_train_timesteps": 1000, "shift": 1.0}
VP = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
OURS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def draw(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def std(sigma: float) -> float:
    return ((1 - sigma) ** 2 * STD**2 + sigma**2) ** 0.5


def velocity(x: torch.Tensor, sigma: float, mean: float = MEAN) -> torch.Tensor:
    """E[eps - x_0 | x] from the joint Gaussian of x_0 and x."""
    centred = (x - (1 - sigma) * mean) / std(sigma) ** 2
    return sigma * centred - mean - (1 - sigma) * STD**2 * centred


def exact(noise: torch.Tensor) -> torch.Tensor:
    return MEAN + STD * noise


def sample(scheduler, x: torch.Tensor, begin: int = 0, field=velocity) -> torch.Tensor:
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(field(x, float(t) / 1000), t, x).prev_sample
    return x


def solver(steps: int | None = None, **options) -> RFSolverScheduler:
    made = RFSolverScheduler(**OURS | options)
    if steps:
        made.set_timesteps(steps)
    return made


def ends(made: RFSolverScheduler) -> torch.Tensor:
    return torch.from_numpy(made.nodes.sigma).float()


def euler(steps: int) -> DEISScheduler:
    """In float64, unlike diffusers'; `test_deis_of_order_zero_is_euler_on_a_flow`."""
    made = DEISScheduler(**OURS, ab_order=0)
    made.set_timesteps(steps)
    return made


def choice(name: str) -> DiffusersSampler:
    return choice_of("sampler", name)


# --- the solver


def test_velocity_of_this_file_is_the_flows():
    """d/d sigma of a quantile's path, by differences: the judge is judged."""
    noise, h = draw(0, 100), 1e-5
    for sigma in (0.0001, 0.3, 0.9, 0.9999):
        path = [(1 - s) * MEAN + std(s) * noise for s in (sigma - h, sigma, sigma + h)]
        torch.testing.assert_close((path[2] - path[0]) / (2 * h), velocity(path[1], sigma), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", ["trailing", "exponential", {"type": "PowerGrid", "space": "t", "kappa": 2.0}])
def test_is_the_papers_taylor_step_and_the_midpoint_rule(grid):
    """Both written out on the scheduler's own sigmas."""
    made = solver(6, grid=grid)
    noise = draw(0, 2, 1, 4, 4)
    taylor = midpoint = noise
    sigmas = made.nodes.sigma
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    for a, b in itertools.pairwise(sigmas):
        d = b - a
        v = velocity(taylor, a)
        slope = (velocity(taylor + d / 2 * v, a + d / 2) - v) / (d / 2)
        taylor = taylor + d * v + d**2 / 2 * slope
        midpoint = midpoint + d * velocity(midpoint + d / 2 * velocity(midpoint, a), a + d / 2)
    found = sample(made, noise)
    torch.testing.assert_close(found, taylor, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, midpoint, rtol=0, atol=1e-12)


def two_peaks(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The velocity when x_0 is half N(MEAN, STD^2) and half N(-2 MEAN, STD^2)."""
    both = torch.stack([velocity(x, sigma), velocity(x, sigma, -2 * MEAN)])
    log = torch.stack([-0.5 * ((x - (1 - sigma) * m) / std(sigma)) ** 2 for m in (MEAN, -2 * MEAN)])
    return (log.softmax(0) * both).sum(0)


def two_peaks_exact(noise: torch.Tensor) -> torch.Tensor:
    """x_0 of equal quantile, F(x_0) = Phi(noise): the flow of one dimension keeps the order. By bisection."""
    low, high = torch.full_like(noise, -9), torch.full_like(noise, 9)
    for _ in range(60):
        x = (low + high) / 2
        below = sum(torch.special.ndtr((x - m) / STD) for m in (MEAN, -2 * MEAN)) / 2 < torch.special.ndtr(noise)
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return low


def test_rf_solver_is_of_second_order_and_euler_of_first():
    """Not on the one Gaussian, where the midpoint rule's error of second order adds up to nothing on uniform steps."""
    noise, steps = draw(0, 2, 1, 4, 4), [40, 80, 160, 320]

    def error(scheduler) -> float:
        found = sample(scheduler, noise, field=two_peaks)
        return float((found - two_peaks_exact(noise)).square().mean().sqrt())

    for make, order in ((solver, 2), (euler, 1)):
        slope = np.polyfit(np.log(steps), [np.log(error(make(n))) for n in steps], 1)[0]
        assert slope == pytest.approx(-order, abs=0.1)
    assert error(solver(20)) < 0.2 * error(euler(40)), "at equal cost"


def test_evaluations_are_at_the_beginning_and_the_middle_of_each_step():
    made = solver(4)
    assert made.timesteps.tolist() == [1000, 875, 750, 625, 500, 375, 250, 125]
    torch.testing.assert_close(made.sigmas[:-1].double(), made.timesteps / 1000)
    assert made.sigmas[-1] == 0
    assert made.order == RFSolverScheduler.stages({}) == 2
    assert made.init_noise_sigma == 1
    assert DiffusersSampler("RFSolverScheduler", 4).evaluations == 8


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_takes_the_config_and_the_shift_of_a_flow_match_scheduler(shift):
    """sigma' = shift s / (1 + (shift - 1) s), as diffusers' scheduler makes of the same sigmas."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    made = RFSolverScheduler.from_config(theirs.config)
    made.set_timesteps(5)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5).tolist())
    torch.testing.assert_close(torch.from_numpy(made.nodes.sigma).float(), theirs.sigmas)
    again = RFSolverScheduler.from_config(theirs.config)
    again.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5).tolist())
    torch.testing.assert_close(again.timesteps, made.timesteps)


def test_dynamic_shifting_takes_mu():
    made = RFSolverScheduler(**OURS, use_dynamic_shifting=True)
    with pytest.raises(ConfigError, match="mu is missing"):
        made.set_timesteps(4)
    made.set_timesteps(4, mu=0.7)
    s = np.linspace(1, 1 / 4, 4)
    np.testing.assert_allclose(made.nodes.sigma[:-1], np.exp(0.7) / (np.exp(0.7) + 1 / s - 1))


def test_data_prediction_gives_the_same_samples():
    """v = (x - x_0) / sigma; finite at sigma = 1, where a noise prediction is not."""
    noise = draw(0, 2, 1, 4, 4)
    made = solver(4, prediction_type="sample")
    x = noise
    for t in made.timesteps:
        sigma = float(t) / 1000
        x = made.step(x - sigma * velocity(x, sigma), t, x).prev_sample
    torch.testing.assert_close(x, sample(solver(4), noise), rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="alpha = 0"):
        solver(4, prediction_type="epsilon")


def test_thresholding_bounds_x0():
    """Predictions of x_0 far above 1 are cut to 1; that constant velocity is integrated exactly, to 1."""
    made = solver(3, thresholding=True)
    x = 5 + draw(0, 2, 1, 4, 4).abs()
    for t in made.timesteps:
        x = made.step(torch.full_like(x, -10.0), t, x).prev_sample
    torch.testing.assert_close(x, torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_samples_are_those_of_float64(dtype):
    noise = draw(0, 2, 1, 4, 4, dtype=dtype)
    found = sample(solver(5), noise)
    assert found.dtype == dtype
    atol = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found.double(), sample(solver(5), noise.double()), rtol=0, atol=atol)


@pytest.mark.parametrize("steps", [1, 2, 3, 500, 1000])
def test_runs_from_one_step_to_all(steps):
    made = solver(steps)
    assert len(made.timesteps) == 2 * steps
    noise = draw(0, 2, 1, 2, 2)
    assert (sample(made, noise) - exact(noise)).abs().max() < 1 / steps**2


def test_image_to_image_begins_at_a_step_only():
    noise = draw(0, 2, 1, 4, 4)
    x0 = exact(noise)
    made = solver(8)
    made.set_begin_index(2 * 3)
    t = made.timesteps[6]
    sigma = float(t) / 1000
    x = made.scale_noise(x0, t, draw(1, 2, 1, 4, 4))
    torch.testing.assert_close(x, (1 - sigma) * x0 + sigma * draw(1, 2, 1, 4, 4))
    found = sample(made, x, 6)
    quantile = (x - (1 - sigma) * MEAN) / std(sigma)
    assert (found - exact(quantile)).abs().max() < 0.02
    unset = solver(8)
    torch.testing.assert_close(sample(unset, x, 6), found)
    made = solver(8)
    made.set_begin_index(7)
    with pytest.raises(AccelError, match="begins at evaluation 7, in the middle of step 3; begin at an even one"):
        made.step(x, made.timesteps[7], x)


def test_a_step_can_be_resumed_in_its_middle():
    noise = draw(0, 2, 1, 4, 4)
    made, again = solver(3), solver(3)
    x = noise
    for t in made.timesteps[:3]:
        x = made.step(velocity(x, float(t) / 1000), t, x).prev_sample
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(sample(again, x, 3), sample(solver(3), noise), rtol=0, atol=0)


def test_config_round_trip(tmp_path):
    made = RFSolverScheduler.from_config({**FLOW, "shift": 2.0, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    made.save_pretrained(tmp_path)
    again = RFSolverScheduler.from_pretrained(tmp_path)
    for one in (made, again):
        one.set_timesteps(3)
    assert again.config.flow_shift == 2.0
    assert torch.equal(made.timesteps, again.timesteps)


# --- other samplers on flows


def built(name: str, steps: int, grid=None, **config):
    scheduler = replace(choice(name), steps=steps).build(FLOW | config, grid)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_has_the_trailing_grid_of_the_other_samplers(shift):
    """diffusers' own grid is uniform from 1 to 1 / T: its last step hardly moves."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = built("flow_euler", 5, shift=shift)
    torch.testing.assert_close(scheduler.sigmas, ends(solver(5, flow_shift=shift)))
    own = FlowMatchEulerDiscreteScheduler(**FLOW)
    own.set_timesteps(5)
    assert own.sigmas[-2] == pytest.approx(0.001)


def test_a_flow_config_of_another_class_keeps_its_shift():
    """UniPC and accel's schedulers call it flow_shift; FlowMatch schedulers call it shift."""
    config = {"num_train_timesteps": 1000, "use_flow_sigmas": True, "flow_shift": 3.0}
    for name in ("flow_euler", "flow_heun", "unipc"):
        for source in (config, FLOW | {"shift": 3.0}):
            scheduler = replace(choice(name), steps=4).build(source)
            assert scheduler.config["flow_shift" if name == "unipc" else "shift"] == 3.0
            if name == "flow_euler":
                scheduler.set_timesteps(4)
                assert scheduler.sigmas[3] == pytest.approx(0.5), "3 s / (1 + 2 s) at s = 1/4"


def test_deis_of_order_zero_is_euler_on_a_flow():
    noise = draw(0, 2, 1, 4, 4)
    found, x = sample(euler(7), noise), noise
    for k in range(7, 0, -1):
        x = x - velocity(x, k / 7) / 7
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.float(), sample(built("flow_euler", 7), noise.float()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun", "rf_solver", "unipc", "dpmpp_2m"])
def test_more_steps_come_nearer_to_the_exact_samples(name):
    """In float32, to sigma = 0, from unit noise."""
    noise = draw(0, 2, 1, 4, 4, dtype=torch.float32)
    few, many = ((sample(built(name, n), noise) - exact(noise)).abs().max() for n in (6, 48))
    assert many < 0.4 * few
    assert many < 0.05


def test_heun_spends_its_last_evaluation_on_the_smallest_sigma():
    scheduler = built("flow_heun", 5)
    assert len(scheduler.timesteps) == 9
    assert scheduler.timesteps[-1] == pytest.approx(1.0)
    with pytest.raises(IncompatibleError, match="grid 'trailing' cannot be used with FlowMatchHeunDiscreteScheduler"):
        built("flow_heun", 5, Grid())


@pytest.mark.parametrize("name", ["trailing", "linspace", "leading"])
def test_flow_euler_takes_the_uniform_grids_and_no_law(name):
    found = built("flow_euler", 4, Grid(name)).sigmas
    torch.testing.assert_close(found, ends(solver(4, grid=name)))
    for grid in (Grid("karras"), PowerGrid()):
        with pytest.raises(IncompatibleError, match="cannot be used with FlowMatchEulerDiscreteScheduler on a flow"):
            built("flow_euler", 4, grid)


def test_a_pipelines_own_sigmas_win():
    """Flow pipelines hand in their sigmas, image-to-image a part of them."""
    scheduler = replace(choice("flow_euler"), steps=4).build(FLOW)
    assert "sigmas" in inspect.signature(scheduler.set_timesteps).parameters, "where pipelines look for it"
    scheduler.set_timesteps(sigmas=[0.5, 0.25], device="cpu")
    assert scheduler.sigmas.tolist() == [0.5, 0.25, 0]
    scheduler.set_timesteps(99)
    assert len(scheduler.timesteps) == 4, "the recipe decides otherwise"


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun", "rf_solver"])
def test_flow_samplers_refuse_diffusion_models(name):
    with pytest.raises(IncompatibleError, match=r"needs a flow model.* betas; use .*"):
        choice(name).build(VP)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "deis", "pc", "pc_ve"])
def test_samplers_without_flows_refuse_flow_models(name):
    """DDIM would take a flow's config and quietly run its default betas."""
    with pytest.raises(IncompatibleError, match="flow model"):
        choice(name).build(FLOW)


def test_diffusers_deis_ends_in_noise_on_a_flow():
    """Why it is refused: its last sigma is repeated."""
    from diffusers import DEISMultistepScheduler

    scheduler = DEISMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(5)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2] == pytest.approx(0.2, abs=0.01)
