"""What schedulers take from each other's configs, and what is refused: other noise levels, edges of schedules."""

import diffusers
import numpy as np
import pytest
import torch
from tiny import GaussianFlow

from accel.core.recipe import Recipe, accelerate
from accel.errors import AccelError, IncompatibleError
from accel.samplers import DiffusersSampler
from accel.samplers.deis import TABLEAUX, DEISScheduler
from accel.samplers.dpmpp_3m import CorrectedDPMSolver3MScheduler
from accel.samplers.grids import Grid
from accel.samplers.noise_schedule import refuse_others
from accel.samplers.predictor_corrector import PredictorCorrectorScheduler
from accel.samplers.scheduler import BaseScheduler

# What pipelines compute the exponent of dynamic shifting from.
SHIFTING = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 128, "max_image_seq_len": 8192}
OWN = (DEISScheduler, CorrectedDPMSolver3MScheduler)
MEANS = {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "shift", "use_dynamic_shifting"}


def entries(scheduler):
    return {k: scheduler.config.get(k) for k in MEANS}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("cls", OWN)
def test_the_shift_of_a_flow_survives_the_way_there_and_back(cls, dynamic):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic, **SHIFTING)
    ours = cls.from_config(theirs.config)
    assert entries(ours) == entries(theirs)
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert entries(back) == entries(theirs)
    again = cls.from_config(ours.config)
    assert dict(again.config) == dict(ours.config)


def test_a_flow_made_by_hand_tells_its_shift_too():
    made = DEISScheduler(use_flow_sigmas=True, prediction_type="sample", flow_shift=3.0)
    assert diffusers.FlowMatchEulerDiscreteScheduler.from_config(made.config).config.shift == 3.0
    again = DEISScheduler.from_config(made.config, flow_shift=2.0)
    assert (again.config.prediction_type, again.config.shift, again.config.flow_shift) == ("sample", 2.0, 2.0)


def test_a_recipes_scheduler_keeps_what_the_pipeline_reads():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **SHIFTING)
    for name in ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DEISScheduler", "RFSolverScheduler"):
        made = DiffusersSampler(name, 4).build(theirs.config)
        assert {k: made.config.get(k) for k in SHIFTING} == SHIFTING, name


OTHERS = {
    "EDM": (diffusers.EDMEulerScheduler(), "sigma_data"),
    "CogVideoX": (diffusers.CogVideoXDDIMScheduler(), "snr_shift_scale"),
    "continuous": (diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type"),
    "inverted": (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_noise_levels_are_refused_by_classes_that_do_not_have_them(name):
    theirs, key = OTHERS[name]
    for cls in OWN:
        with pytest.raises(IncompatibleError, match=key):
            cls.from_config(theirs.config)
    for scheduler in ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        with pytest.raises(IncompatibleError):
            DiffusersSampler(scheduler, 4).build(theirs.config)
    kind = type(theirs).__name__
    made = DiffusersSampler(kind, 4).build(theirs.config)
    assert type(made) is type(theirs)
    assert made.config[key] == theirs.config[key]


def test_cogvideox_runs_on_its_own_levels_under_its_own_schedulers():
    """snr_shift_scale = 3: sigma / alpha at t = 900 is 14.5 in the model, and 60.8 without it."""
    theirs = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=False)
    made = DiffusersSampler("CogVideoXDPMScheduler", 4).build(theirs.config)
    assert torch.equal(made.alphas_cumprod, theirs.alphas_cumprod)


def test_compatible_classes_are_those_whose_configs_are_taken():
    for cls in DEISScheduler().compatibles:
        if not hasattr(cls, "_backends"):
            assert isinstance(DEISScheduler.from_config(cls().config), BaseScheduler), cls
    assert "EDMEulerScheduler" not in BaseScheduler._compatibles
    refuse_others({"sigma_data": 0.5}, ["sigma_data"])


# --- edges


@pytest.mark.parametrize("grid", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_a_grid_that_begins_twice_at_one_timestep_is_refused(name, grid):
    """Cosine betas: sigma falls from 20,000 to 600 within the last timestep."""
    cosine = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2").config
    bare = getattr(diffusers, name).from_config(cosine, **{f"use_{grid}_sigmas": True})
    bare.set_timesteps(20)
    if bare.timesteps[0] == bare.timesteps[1]:  # diffusers 0.41 calls the first of most of them 999, and the second 998
        with pytest.raises(IncompatibleError, match=r"first timestep.*deis_logrhoab"):
            DiffusersSampler(name, 20).build(cosine, Grid(grid))
    else:
        DiffusersSampler(name, 20).build(cosine, Grid(grid))
    DiffusersSampler("DEISScheduler", 20).build(cosine, Grid(grid))
    DiffusersSampler(name, 20).build(cosine)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_levels_that_are_no_numbers_are_refused(name):
    """shift_terminal stretches the levels so that the last one is where it says; a single one cannot be both ends."""
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1).config
    with pytest.raises(IncompatibleError, match="cannot make 1 steps on this model's noise schedule"):
        DiffusersSampler(name, 1).build(config)
    DiffusersSampler(name, 4).build(config)


@pytest.mark.parametrize("grid", ["karras", "exponential"])
def test_a_grid_of_ones_own_is_kept_where_a_pipeline_passes_sigmas(grid):
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for options in ({"grid": grid}, {f"use_{grid}_sigmas": True}):
        scheduler = DEISScheduler(ab_order=1, **flow, **options)
        scheduler.set_timesteps(5)
        expected = scheduler.timesteps
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 5, 5).tolist())
        assert torch.equal(scheduler.timesteps, expected)
    plain = DEISScheduler(ab_order=1, **flow)
    plain.set_timesteps(sigmas=[1.0, 0.7, 0.2])
    assert plain.timesteps.tolist() == pytest.approx([1000, 700, 200])


def test_the_state_of_pc_ve_is_not_scaled_before_there_is_a_grid():
    scheduler = PredictorCorrectorScheduler(sde="ve")
    with pytest.raises(AccelError, match=r"call scheduler\.set_timesteps"):
        scheduler.scale_model_input(torch.ones(1, 1, 2, 2), 999)


# --- Runge-Kutta where a flow begins, at rho = infinity


def error(tableau, steps, total):
    """Root mean square of the end state's distance to the exact one of a Gaussian flow with `total` timesteps."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "num_train_timesteps": total}
    scheduler = DEISScheduler(variant="rhork", tableau=tableau, **flow)
    scheduler.set_timesteps(steps)
    noise = x = torch.randn(64, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = GaussianFlow()
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t * 1000 / total)[0], t, x).prev_sample
    return float((x - GaussianFlow.solution(noise, 0)).pow(2).mean().sqrt())


@pytest.mark.parametrize("tableau", TABLEAUX)
def test_runge_kutta_from_pure_noise_depends_on_no_last_timestep(tableau):
    at_thousand = error(tableau, 5, 1000)
    assert at_thousand < (0.11 if tableau == "euler" else 0.08)
    for total in (100, 100_000):
        assert error(tableau, 5, total) == pytest.approx(at_thousand, rel=1e-9)


@pytest.mark.parametrize("tableau", ["heun", "midpoint", "kutta", "rk4"])
def test_runge_kutta_from_pure_noise_converges(tableau):
    """Of second order: the last step, to sigma = 0, is Euler's with a width that falls with the others."""
    assert np.log2(error(tableau, 40, 1000) / error(tableau, 80, 1000)) == pytest.approx(2, abs=0.2)


def test_the_corrected_3m_of_a_flow_ends_where_the_flow_does():
    from tiny import gaussian_flow

    pipe = gaussian_flow()
    with accelerate(pipe, Recipe(DiffusersSampler("CorrectedDPMSolver3MScheduler", 40))):
        noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        found = pipe(batch_size=8, latents=noise, output_type="pt").images
    assert float((found - GaussianFlow.solution(noise.double(), 0)).pow(2).mean().sqrt()) < 0.02
