"""DPM-Solver++(3M): what the factor 2 of the second derivative changes, and that nothing else is changed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from scipy.integrate import quad

from accel.config import choice_of
from accel.errors import ConfigError
from accel.samplers import CorrectedDPMSolver3MScheduler
from accel.samplers.grids import PowerGrid
from accel.samplers.noise_schedule import noise_schedule
from accel.suites.mixture import MixtureSuite
from accel.suites.mixture.exact import exact_solution

ALGORITHMS = {
    "dpmsolver++": {"algorithm_type": "dpmsolver++", "prediction_type": "sample"},
    "dpmsolver": {"algorithm_type": "dpmsolver", "prediction_type": "epsilon", "final_sigmas_type": "sigma_min"},
}
SHIPPED, CORRECTED = DPMSolverMultistepScheduler, CorrectedDPMSolver3MScheduler


def model(x: torch.Tensor, t: float) -> torch.Tensor:
    return torch.sin(1.5 * x + t / 150)


def solve(scheduler, steps: int, **given) -> list[torch.Tensor]:
    """The samples that `step` returns."""
    scheduler.set_timesteps(**given or {"num_inference_steps": steps})
    path = [torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))]
    for t in scheduler.timesteps:
        path.append(scheduler.step(model(path[-1], float(t)), t, path[-1]).prev_sample)
    return path[1:]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_outputs_quadratic_in_lambda_are_integrated_exactly_by_the_corrected_form_alone(algorithm):
    """x / sigma moves by the integral of e^lambda x_0, x / alpha by that of -e^-lambda eps; the Taylor polynomial of a
    parabola is the parabola. The shipped form takes half of its second derivative."""
    rho = np.array([9.0, 4.0, 2.5, 1.1])  # three outputs and the end of the step, unevenly spaced
    lam, alpha = -np.log(rho), 1 / np.sqrt(1 + rho**2)
    sign, level = (1, rho * alpha) if algorithm == "dpmsolver++" else (-1, alpha)
    for degree in range(4):
        m = np.poly1d(np.linspace(1, -0.7, degree + 1))
        integral, _ = quad(lambda at, m=m: sign * math.exp(sign * at) * m(at), lam[2], lam[3], epsabs=0, epsrel=1e-12)
        exact = level[3] * (0.8 / level[2] + integral)
        outputs = [torch.full((1, 1), m(v), dtype=torch.float64) for v in lam[:3]]
        for cls, limit in ((SHIPPED, 1), (CORRECTED, 2)):
            scheduler = cls(solver_order=3, **ALGORITHMS[algorithm])
            scheduler.sigmas, scheduler._step_index = torch.from_numpy(rho), 2
            x = torch.full((1, 1), 0.8, dtype=torch.float64)
            found = float(scheduler.multistep_dpm_solver_third_order_update(outputs, sample=x))
            assert (abs(found - exact) < 1e-10) == (degree <= limit), (cls.__name__, degree)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_corrected_form_is_of_third_order_and_the_shipped_one_of_second(algorithm):
    """On suite `mixture` in float64, which diffusers' `step` is not, so that its updates are called one by one."""
    suite = MixtureSuite()
    net = suite.pipeline().unet
    schedule, grid = noise_schedule(net.config), PowerGrid(kappa=2.0)
    labels = torch.tensor(suite.conditions(0, 8)["class_labels"])
    start = torch.randn(8, *net.sample_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = exact_solution(net, start, labels, float(net.rho(999)), float(net.rho(0)))

    def error(cls, steps: int) -> float:
        scheduler = cls(solver_order=3, **ALGORITHMS[algorithm])
        times = grid.times(schedule, steps, to_zero=False)
        scheduler.sigmas = torch.from_numpy(np.append(schedule.rho(times), schedule.rho(0.0)))
        x, outputs = start, []
        with torch.no_grad():
            for i, t in enumerate(times):
                scheduler._step_index = i
                eps = net(x, t, labels).sample
                alpha, sigma = schedule.alpha_sigma(t)
                outputs.append((x - float(sigma) * eps) / float(alpha) if algorithm == "dpmsolver++" else eps)
                if i == 0:
                    x = scheduler.dpm_solver_first_order_update(outputs[-1], sample=x)
                elif i == 1:
                    x = scheduler.multistep_dpm_solver_second_order_update(outputs, sample=x)
                else:
                    x = scheduler.multistep_dpm_solver_third_order_update(outputs[-3:], sample=x)
        return float((x - exact).square().mean().sqrt())

    for cls, order in ((SHIPPED, 2), (CORRECTED, 3)):
        coarse, fine = error(cls, 160), error(cls, 320)
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3), cls.__name__


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_steps_of_third_order_differ_from_diffusers(algorithm):
    """Fewer than 15 steps: the first two and the last two are of lower order. From the same history, that is."""
    options = {"timestep_spacing": "trailing"} | ALGORITHMS[algorithm]
    shipped, corrected = SHIPPED(solver_order=3, **options), CORRECTED(**options)
    expected = solve(shipped, 8)
    corrected.set_timesteps(8)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    same = []
    for t, reference in zip(corrected.timesteps, expected, strict=True):
        found = corrected.step(model(x, float(t)), t, x).prev_sample
        same.append(torch.equal(found, reference))
        x = reference
    assert same == [True, True, False, False, False, False, True, True]


def test_runs_in_the_dtype_of_the_model():
    scheduler = CORRECTED(timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, float(t)).bfloat16(), t, x).prev_sample
        assert x.dtype == torch.bfloat16
        assert x.isfinite().all()


def test_explicit_timesteps_and_power_laws_are_diffusers_own():
    for options, given in (({}, {"timesteps": [999, 700, 400, 200, 90, 20]}), ({"use_karras_sigmas": True}, {})):
        shipped, corrected = SHIPPED(solver_order=3, **options), CORRECTED(**options)
        paths = [solve(s, 6, **given) for s in (shipped, corrected)]
        assert torch.equal(shipped.sigmas, corrected.sigmas)
        assert torch.equal(paths[0][1], paths[1][1])
        assert not torch.equal(paths[0][-1], paths[1][-1])


# --- settings


def test_it_is_built_from_other_configs_and_saved_and_loaded(tmp_path):
    foreign = (SHIPPED(beta_schedule="scaled_linear"), UniPCMultistepScheduler(solver_order=3, beta_end=0.012))
    for other in foreign:
        made = CORRECTED.from_config(other.config)
        assert made.config.solver_order == 3
        assert all(made.config[k] == other.config[k] for k in ("beta_schedule", "beta_end", "timestep_spacing"))
    made = CORRECTED(500, timestep_spacing="trailing", use_exponential_sigmas=True)
    made.save_pretrained(tmp_path)
    again = CORRECTED.from_pretrained(tmp_path)
    public = [{k: v for k, v in s.config.items() if k[0] != "_"} for s in (made, again)]
    assert public[0] == public[1]
    assert public[0]["num_train_timesteps"] == 500
    assert all(torch.equal(a, b) for a, b in zip(solve(made, 8), solve(again, 8), strict=True))


def test_it_is_for_third_order_and_the_deterministic_algorithms():
    with pytest.raises(ConfigError, match=r"solver_order is 2; allowed: 3\."):
        CORRECTED(solver_order=2)
    with pytest.raises(ConfigError, match=r"solver_order is 2; allowed: 3\."):
        CORRECTED(1000, 1e-4, 0.02, "linear", None, 2)
    for algorithm in ("sde-dpmsolver++", "sde-dpmsolver"):
        with pytest.raises(ConfigError, match=r"algorithm_type of the corrected 3M .*Allowed: dpmsolver, dpmsolver"):
            CORRECTED(algorithm_type=algorithm, final_sigmas_type="sigma_min")
    with pytest.raises(TypeError, match="solver_ordre"):
        CORRECTED(solver_ordre=3)


def test_both_are_in_the_config():
    samplers = [choice_of("sampler", n) for n in ("dpmpp_3m", "dpmpp_3m_corrected")]
    config = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    built = [s.build(config) for s in samplers]
    assert [type(s) for s in built] == [SHIPPED, CORRECTED]
    ours, theirs = ({k: v for k, v in s.config.items() if k[0] != "_"} for s in built)
    assert ours == theirs, "nothing but the factor differs"
    for a, b in itertools.pairwise([s.evaluations for s in samplers]):
        assert a == b == 10
