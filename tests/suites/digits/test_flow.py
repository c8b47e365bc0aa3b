"""Suite `digits_flow`: its shipped flow model, what it shares with suite `digits`, and samplers on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from shipped import check_shipped

from accel.config import choice_of, compose, instantiate
from accel.core.recipe import Recipe, accelerate
from accel.errors import IncompatibleError, IntegrityError
from accel.evaluation.generate import generate
from accel.evaluation.score import score, score_images
from accel.guidance.cfg import CFG
from accel.samplers import DiffusersSampler
from accel.samplers.grids import PowerGrid
from accel.suites.base import ASSETS
from accel.suites.digits import data
from accel.suites.digits.flow import DigitsFlowSuite
from accel.suites.digits.models import FLOW_SCHEDULER, build_unet

SHIPPED = ASSETS / "digits_flow"


@pytest.fixture(scope="module")
def suite() -> DigitsFlowSuite:
    # Without the weights every test here fails with the remedy; they ship with the repository.
    suite = DigitsFlowSuite()
    suite.fingerprint()
    return suite


@pytest.fixture(scope="module")
def flow(suite):
    return suite.pipeline()


def choice(name: str, steps: int) -> DiffusersSampler:
    return choice_of("sampler", name, f"sampler.steps={steps}")


def images(suite, pipe, recipe: Recipe, count: int = 4):
    with accelerate(pipe, recipe) as run:
        return generate(pipe, suite, recipe, 0, 0, count, count), run


# --- shipped weights


def test_shipped_files_are_small_half_precision_and_listed():
    check_shipped(SHIPPED, 4e6)


def test_network_and_scheduler_are_what_the_code_builds(flow):
    fresh = build_unet("flow")
    assert {k: v.shape for k, v in flow.unet.state_dict().items()} == {
        k: v.shape for k, v in fresh.state_dict().items()
    }
    assert all(p.dtype == torch.float32 for p in flow.unet.parameters())
    assert not flow.unet.training
    assert {k: flow.scheduler.config[k] for k in FLOW_SCHEDULER} == FLOW_SCHEDULER


def test_velocity_is_that_of_the_data(flow):
    """At sigma = 1 the input is pure noise and v = eps - E[x_0 | class]: the noise minus the mean digit."""
    train, labels = data.load("train")
    x = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for label in (0, 1, 7):
            v = flow.unet(x, 1000.0, class_labels=torch.full((64,), label), return_dict=False)[0]
            mean = data.to_model(train[labels == label]).mean(0)
            error = ((x - v).mean(0) - mean).square().mean().sqrt()
            others = (data.to_model(train).mean(0) - mean).square().mean().sqrt()
            assert error < 0.3 * others, label


# --- what it generates


def test_digits_are_recognised_and_near_the_reference(suite, flow):
    """Ten evaluations of RF-Solver; noise that is only half removed is told apart."""
    made, run = images(suite, flow, Recipe(choice("rf_solver", 5)), 100)
    assert run.nfe == 10
    conditions = suite.conditions(0, 100)
    found = score(suite, score_images(suite, made, conditions), None)
    assert found["accuracy"].value > 0.97
    assert found["fid_digits"].value < 5
    assert found["nearest"].value > 0.1, "not copies of training images"
    noisy = made + 0.5 * torch.randn(made.shape, generator=torch.Generator().manual_seed(0))
    assert score(suite, score_images(suite, noisy, conditions), None)["fid_digits"].value > 10


def test_the_converged_recipe_has_converged(suite, flow):
    """Against another grid; uniform steps, a quarter as many, are farther from both."""
    other_grid = PowerGrid(space="t", kappa=1.5)
    fine, _ = images(suite, flow, Recipe(choice("rf_solver", 120), other_grid), 1)
    found, run = images(suite, flow, suite.converged(None), 1)
    plain, _ = images(suite, flow, Recipe(choice("rf_solver", 25)), 1)
    assert run.nfe == 200
    error, other = ((x - fine).square().mean().sqrt().item() for x in (found, plain))
    assert error < 5e-4
    assert other > 3 * error


@pytest.fixture(scope="module", params=[None, CFG(2.0)], ids=["plain", "cfg"])
def guided_target(request, suite, flow):
    """A guidance and nearly converged images under it."""
    sampler = DiffusersSampler("DEISScheduler", 60, options={"ab_order": 2})
    return request.param, images(suite, flow, Recipe(sampler, PowerGrid(space="t", kappa=1.5), request.param), 2)[0]


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun", "rf_solver", "unipc", "dpmpp_2m"])
def test_samplers_of_flows_come_nearer_to_the_converged_images(name, guided_target, suite, flow):
    guidance, target = guided_target
    (few, _), (many, run) = (images(suite, flow, Recipe(choice(name, n), guidance=guidance), 2) for n in (4, 12))
    error = [(made - target).square().mean().sqrt() for made in (few, many)]
    assert error[1] < 0.6 * error[0]
    assert error[1] < 0.1
    assert run.clock.num_steps == 12
    evaluations = {"rf_solver": 24, "flow_heun": 23}.get(name, 12)
    assert run.nfe == evaluations * (2 if guidance else 1)


def test_the_clock_knows_the_noise_level_of_a_flow(suite, flow):
    for name, expected in (("rf_solver", [1, 0.75, 0.5, 0.25]), ("flow_euler", [1, 0.5])):
        _, run = images(suite, flow, Recipe(choice(name, 2)), 1)
        assert [e.sigma for e in run.trace] == pytest.approx(expected)
        assert [e.timestep for e in run.trace] == pytest.approx([1000 * s for s in expected])


def test_the_pipeline_runs_its_own_scheduler(suite, flow):
    """FlowMatch schedulers have neither init_noise_sigma nor scale_model_input."""
    assert not hasattr(flow.scheduler, "init_noise_sigma")
    assert not hasattr(flow.scheduler, "scale_model_input")
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    made = flow(class_labels=[0, 1], generator=generators, num_inference_steps=4, output_type="pt").images
    assert torch.isfinite(made).all()
    assert made.shape == (2, 1, 16, 16)


@pytest.mark.parametrize("name", ["ddim", "heun", "deis", "pc"])
def test_samplers_of_diffusion_models_are_refused(name, flow):
    with pytest.raises(IncompatibleError, match="flow model"):
        Recipe(choice(name, 4)).check(flow)


def test_samplers_of_flows_are_refused_on_suite_digits(pipe):
    for name in ("rf_solver", "flow_euler", "flow_heun"):
        with pytest.raises(IncompatibleError, match="needs a flow model"):
            Recipe(choice(name, 4)).check(pipe)


# --- as a suite


def test_everything_but_the_denoiser_is_of_suite_digits(suite, digits):
    assert suite.reference_identity() == digits.reference_identity()
    assert suite.feature_space == digits.feature_space
    assert suite.conditions(3, 15) == digits.conditions(3, 15)
    assert suite.models() == {}
    assert not suite.fingerprint().items() & digits.fingerprint().items()
    assert any(k.endswith("diffusion_pytorch_model.safetensors") for k in suite.fingerprint())


def test_config_builds_it():
    made = instantiate(compose(["suite=digits_flow"])["suite"])
    assert made == DigitsFlowSuite()
    assert made.name == "digits_flow"


@pytest.mark.parametrize("how", ["changed", "missing", "no folder"])
def test_damaged_weights_are_named_with_the_remedy(how, tmp_path):
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "digits_flow"))
    path = folder / "flow" / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "changed":
        path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")
    elif how == "missing":
        path.unlink()
    else:
        shutil.rmtree(folder)
    made = DigitsFlowSuite(flow_weights=str(folder))
    for use in (made.fingerprint, made.pipeline):
        with pytest.raises(IntegrityError, match="make train SUITE=digits_flow"):
            use()
    made.reference_identity()  # the classifier's folder is in order
