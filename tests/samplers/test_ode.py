"""The adaptive ODE solver against exact solutions, its cost, and the pipelines that it cannot run."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import GaussianFlow, dit_pipeline, gaussian_flow

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import AccelError, ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG, IntervalCFG
from accel.samplers import AdaptiveODE
from accel.samplers.grids import Grid, PowerGrid
from accel.samplers.ode import initial_latents
from accel.samplers.predictor import Predictor
from accel.suites.digits.flow import DigitsFlowSuite
from accel.suites.mixture import MixtureSuite
from accel.suites.mixture.exact import exact_solution, guided_noise_prediction
from accel.suites.pipeline import PixelPipeline

LABELS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def mixture() -> PixelPipeline:
    return MixtureSuite().pipeline()


def noise(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def solved(pipe, sampler, x, scale: float = 1.0, **call):
    """The pipeline's result from the noise `x`, and the Run."""
    recipe = Recipe(sampler, guidance=CFG(scale) if scale > 1 else None)
    with accelerate(pipe, recipe) as run:
        return run(latents=x, guidance_scale=scale, output_type="pt", **call).images, run


def exact(net, x: torch.Tensor, scale: float) -> torch.Tensor:
    """The exact solution at the smallest noise level, and the one plain step from there to sigma = 0."""
    start, end = (float(net.rho(t)) for t in (999, 0))
    state = exact_solution(net, x, LABELS, start, end, scale)
    eps = guided_noise_prediction(net, state, end, torch.tensor(LABELS), scale)
    alpha = 1 / np.sqrt(1 + end**2)
    return (state - alpha * end * eps) / alpha


# --- the result


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_result_is_the_exact_solution_and_a_plain_step(mixture, scale):
    x = noise(4, 1, 2, 4)
    expected = exact(mixture.unet, x, scale)
    found, _ = solved(mixture, AdaptiveODE(1e-9, 1e-9, "DOP853"), x, scale, class_labels=LABELS)
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-7


@pytest.mark.parametrize(("method", "last"), [("RK45", 1e-6), ("DOP853", 1e-6), ("RK23", 1e-4)])
def test_error_falls_with_the_tolerance_and_the_cost_rises(mixture, method, last):
    x = noise(4, 1, 2, 4)
    expected, errors, cost = exact(mixture.unet, x, 1.0), [], []
    for tolerance in (1e-2, (1e-2 * last) ** 0.5, last):
        found, run = solved(mixture, AdaptiveODE(tolerance, tolerance, method), x, class_labels=LABELS)
        errors.append(float((found - expected).abs().max()))
        cost.append(run.nfe)
    assert errors[0] > 5 * errors[1] > 25 * errors[2], errors
    assert errors[2] < 30 * last
    assert cost[0] < cost[1] < cost[2]


def test_guidance_of_the_recipe_is_part_of_the_ode(mixture):
    """Inside the interval only: between the conditional and the guided solution, and different from both."""
    x, sampler = noise(4, 1, 2, 4), AdaptiveODE(1e-4, 1e-4)
    results = {}
    for guidance in (CFG(3.0), IntervalCFG(3.0, 0.0, 1e6), IntervalCFG(3.0, 0.3, 3.0), IntervalCFG(3.0, 1e5, 1e6)):
        with accelerate(mixture, Recipe(sampler, guidance=guidance)) as run:
            result = run(latents=x, class_labels=LABELS, guidance_scale=3.0, output_type="pt").images
        results[guidance.label] = result, run.nfe
    everywhere, always, some, never = results.values()
    conditional, _ = solved(mixture, sampler, x, class_labels=LABELS)
    torch.testing.assert_close(always[0], everywhere[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(never[0], conditional, rtol=0, atol=1e-9)
    assert min(float((some[0] - r).abs().max()) for r in (everywhere[0], conditional)) > 1e-2


@pytest.mark.parametrize("method", ["RK45", "DOP853"])
def test_a_flow_is_solved_from_pure_noise(method):
    """The quantiles of a Gaussian stay its quantiles: a closed form, to the smallest level and a plain step."""
    x = noise(3, 1, 2, 2)
    found, _ = solved(gaussian_flow(), AdaptiveODE(1e-9, 1e-9, method), x, batch_size=3)
    at_end = GaussianFlow.solution(x, 1.0)
    (velocity,) = GaussianFlow()(at_end, 1.0)
    torch.testing.assert_close(found, at_end - 0.001 * velocity, rtol=0, atol=1e-7)
    # The plain step of length 1 / T misses the very end by its own error only.
    torch.testing.assert_close(found, GaussianFlow.solution(x, 0.0), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_trained_flow_agrees_with_a_fine_midpoint_rule():
    """Nothing of accel's in the second calculation but the network itself."""
    suite = DigitsFlowSuite()
    pipe, x = suite.pipeline(), noise(2, 1, 16, 16, dtype=torch.float32)
    labels = torch.tensor([3, 8])
    found, _ = solved(pipe, AdaptiveODE(1e-3, 1e-3), x, class_labels=labels.tolist())

    def velocity(x, s):
        return pipe.unet(x, torch.tensor(1000 * s), class_labels=labels, return_dict=False)[0]

    levels = 0.001 + 0.999 * np.linspace(1, 0, 41) ** 2  # fine towards the data, where the velocity changes fast
    for start, end in itertools.pairwise(levels):
        middle = x + (end - start) / 2 * velocity(x, start)
        x = x + (end - start) * velocity(middle, (start + end) / 2)
    expected = x - 0.001 * velocity(x, 0.001)
    assert (found - expected).square().mean().sqrt() < 0.01
    assert expected.std() > 0.3


def test_network_in_another_dtype_than_the_latents_is_no_hindrance(mixture):
    """float32 noise: the solver itself computes in float64, the result has the latents' dtype."""
    x = noise(4, 1, 2, 4)
    found, _ = solved(mixture, AdaptiveODE(1e-4, 1e-4), x.float(), class_labels=LABELS)
    assert found.dtype == torch.float32
    assert (found - exact(mixture.unet, x, 1.0)).abs().max() < 5e-3


# --- cost


def test_evaluations_are_counted(mixture):
    x, sampler = noise(4, 1, 2, 4), AdaptiveODE(1e-4, 1e-4)
    for scale, rows in ((1.0, 1), (3.0, 2)):
        made = []
        handle = mixture.unet.register_forward_pre_hook(lambda module, args, made=made: made.append(len(args[0])))
        try:
            _, run = solved(mixture, sampler, x, scale, class_labels=LABELS)
        finally:
            handle.remove()
        assert set(made) == {4 * rows}
        assert run.nfe == rows * len(made) > 20 * rows
        assert len(run.trace) == run.clock.num_steps == 1, "the plain step is the trajectory, the rest its prelude"
        assert run.clock.runs == 1
        assert run.clock.prelude[0].timestep == 999


def test_prelude_is_that_of_the_last_call(mixture):
    with accelerate(mixture, Recipe(AdaptiveODE(1e-2, 1e-2))) as run:
        for _ in range(2):
            run(latents=noise(4, 1, 2, 4), class_labels=LABELS, output_type="pt")
            first = run.nfe
        assert run.nfe == first == len(run.clock.prelude) + 1


def test_macs_are_counted_for_every_evaluation(mixture):
    with accelerate(mixture, Recipe(AdaptiveODE(1e-2, 1e-2)), count_macs=True) as run:
        run(class_labels=[3], generator=generators(0, 0, 1), output_type="pt")
        assert run.macs == run.nfe * run.trace[-1].macs > 0


# --- how it is called


def test_noise_is_what_the_pipeline_itself_would_draw(mixture):
    """From the samples' own generators, so that its images can be compared with any sampler's."""
    suite, sampler = MixtureSuite(), AdaptiveODE(1e-5, 1e-5)
    with accelerate(mixture, Recipe(sampler)):
        drawn = generate(mixture, suite, Recipe(sampler), 7, 0, 4, 4)
    x = initial_latents(mixture, {"generator": generators(7, 0, 4)})
    assert torch.equal(solved(mixture, sampler, x, class_labels=LABELS)[0], drawn)

    first = []
    handle = mixture.unet.register_forward_pre_hook(lambda module, args: first.append(args[0]))
    try:
        mixture(class_labels=LABELS, generator=generators(7, 0, 4), num_inference_steps=2)
    finally:
        handle.remove()
    assert torch.equal(first[0], x)


def test_samples_of_other_batches_agree_within_the_tolerance(mixture):
    suite, recipe = MixtureSuite(), Recipe(AdaptiveODE(1e-5, 1e-5))
    with accelerate(mixture, recipe):
        whole, single = (generate(mixture, suite, recipe, 7, 0, 4, batch) for batch in (4, 1))
    assert not torch.equal(whole, single), "the steps are shared"
    torch.testing.assert_close(whole, single, rtol=0, atol=2e-4)


def test_generators_are_needed_one_for_each_sample(mixture):
    with accelerate(mixture, Recipe(AdaptiveODE())) as run:
        for generator in (None, torch.Generator()):
            with pytest.raises(AccelError, match="one generator for each sample, or `latents`"):
                run(class_labels=LABELS, generator=generator)


def test_other_arguments_of_the_pipeline_are_passed_on(mixture):
    x, sampler = noise(4, 1, 2, 4), AdaptiveODE(1e-2, 1e-2)
    plain, _ = solved(mixture, sampler, x, class_labels=LABELS)
    with accelerate(mixture, Recipe(sampler)) as run:
        call = {"latents": x, "class_labels": LABELS, "num_inference_steps": 30}
        assert torch.equal(run(**call, output_type="pt", return_dict=False)[0], plain)
        assert run(**call, output_type="np").images.shape == (4, 2, 4, 1)


def test_pipeline_is_left_as_it_was(mixture):
    scheduler = mixture.scheduler
    with accelerate(mixture, Recipe(AdaptiveODE(1e-2, 1e-2))) as run:
        own = mixture.scheduler
        run(latents=noise(4, 1, 2, 4), class_labels=LABELS)
        assert mixture.scheduler is own
    assert mixture.scheduler is scheduler
    assert "forward" not in mixture.unet.__dict__


# --- refusals


@pytest.mark.parametrize("grid", [Grid("karras"), PowerGrid()], ids=lambda g: g.name)
def test_a_grid_is_refused(mixture, grid):
    with pytest.raises(IncompatibleError, match=r"chooses its own steps; use grid=none"):
        Recipe(AdaptiveODE(), grid).check(mixture)


def test_a_pipeline_without_latents_is_refused_before_anything_runs():
    pipe = dit_pipeline()
    for attempt in (Recipe(AdaptiveODE()).check, lambda pipe: accelerate(pipe, Recipe(AdaptiveODE())).__enter__()):
        with pytest.raises(IncompatibleError, match="DiTPipeline takes no latents, so sampler ode"):
            attempt(pipe)
    assert "forward" not in pipe.transformer.__dict__


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"rtol": 0.0}, "sampler.rtol is 0.0"), ({"rtol": 2.0}, "sampler.rtol"), ({"rtol": float("nan")}, "sampler.rtol"),
     ({"atol": -1e-9}, "sampler.atol"), ({"atol": "small"}, "sampler.atol"), ({"steps": 10}, "steps of the adaptive"),
     ({"steps": 0}, "steps of the adaptive"), ({"method": "BDF"}, "unknown method .* Allowed: DOP853, RK23, RK45")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveODE(**setting)


def test_a_diverging_model_is_one_clear_error(mixture):
    """A network that gives NaN ends the solver, not the process."""
    handle = mixture.unet.register_forward_hook(lambda module, args, output: (output[0] * float("nan"),))
    try:
        with pytest.raises(AccelError, match="solver stopped: the prediction at timestep 999 is not finite"):
            solved(mixture, AdaptiveODE(1e-2, 1e-2), noise(4, 1, 2, 4), class_labels=LABELS)
    finally:
        handle.remove()


def test_label_has_the_settings_that_matter():
    assert AdaptiveODE().label == "ode(RK45,1e-05)"
    assert replace(AdaptiveODE(), rtol=1e-3, method="DOP853").label == "ode(DOP853,0.001)"


def test_solve_ends_at_the_smallest_noise_level(mixture):
    """Part by part: the state before the plain step."""
    x = noise(4, 1, 2, 4)
    predict = Predictor(mixture, class_labels=LABELS)
    with torch.no_grad():
        found = AdaptiveODE(1e-9, 1e-9, "DOP853").solve(predict, predict, x)
    start, end = (float(mixture.unet.rho(t)) for t in (999, 0))
    assert (found - exact_solution(mixture.unet, x, LABELS, start, end)).abs().max() < 1e-7
