"""Samplers of few-step students: against plain pipelines and closed forms, on the clock, and where they are refused."""

from __future__ import annotations

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from accel.config import compose, instantiate
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.core.trajectory import level_of_angle
from accel.errors import ConfigError, IncompatibleError
from accel.records import describe
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.samplers.diffusers_schedulers import unshifted
from accel.samplers.grids import ExplicitGrid
from accel.samplers.noise import adds_noise
from accel.samplers.trigflow import angles, plain_arguments
from accel.testing.suites import BETAS, TinySuite

DMD2 = (999, 749, 499, 249)
CALL = {"class_labels": [3, 5], "output_type": "pt"}


def drawn():
    return {"generator": generators(0, 0, 2)}


def noise(draws):
    return torch.cat([torch.randn((1, 1, 8, 8), generator=each) for each in draws])


def images(pipe, recipe):
    with accelerate(pipe, recipe) as run:
        return pipe(**CALL, **drawn()).images, run


@pytest.mark.parametrize("grid", [None, DMD2])
@torch.no_grad()
def test_lcm_is_its_equation_on_its_own_and_on_any_times(grid):
    """x' = sqrt(abar') x_0 + sqrt(1 - abar') z; z of each sample from its own generator, none at the end."""
    pipe = TinySuite("unet").pipeline()
    found, run = images(pipe, Recipe(method("sampler", "lcm", steps=4), grid and ExplicitGrid(timesteps=grid)))
    times = grid or (999, 759, 499, 259)
    assert [call.timestep for call in run.trace] == list(times)
    abar = np.cumprod(1 - np.linspace(BETAS["beta_start"], BETAS["beta_end"], 1000))
    assert [call.sigma for call in run.trace] == pytest.approx([math.sqrt(1 / abar[t] - 1) for t in times], rel=1e-4)
    draws = generators(0, 0, 2)
    x, labels = noise(draws), torch.tensor([3, 5])
    for t, after in zip(times, (*times[1:], None), strict=True):
        alpha, sigma = math.sqrt(abar[t]), math.sqrt(1 - abar[t])
        v = pipe.unet(x, t, class_labels=labels).sample
        x = (alpha * x.double() - sigma * v.double()).float()
        if after is not None:
            x = math.sqrt(abar[after]) * x + math.sqrt(1 - abar[after]) * noise(draws)
    assert torch.allclose(found, x, atol=5e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@torch.no_grad()
def test_tcd_steps_with_the_eta_of_the_recipe(eta):
    """Whatever the pipeline says of it: Stable Diffusion's hands over 0, others nothing, which means 0.3."""
    pipe = TinySuite("unet").pipeline()
    sampler = method("sampler", "tcd", steps=3, each_step={"eta": eta})
    found, run = images(pipe, Recipe(sampler))
    assert sampler.label == f"tcd(eta={eta:g})-3"
    scheduler = diffusers.TCDScheduler.from_config(pipe.scheduler.config)
    step = scheduler.step
    scheduler.step = lambda *args, generator=None, **more: step(*args, eta=eta, generator=generator, **more)
    scheduler.set_timesteps(3)
    assert [call.timestep for call in run.trace] == scheduler.timesteps.tolist()
    draws = generators(0, 0, 2)
    x = noise(draws)
    for t in scheduler.timesteps:
        v = pipe.unet(x, t, class_labels=torch.tensor([3, 5])).sample
        x = scheduler.step(v, t, x, generator=draws, return_dict=False)[0]
    assert torch.equal(found, x)


def test_tcd_without_noise_is_ddim_to_timestep_zero():
    pipe = TinySuite("unet").pipeline()
    tcd, _ = images(
        pipe,
        Recipe(
            method("sampler", "tcd", steps=5, each_step={"eta": 0.0}), ExplicitGrid(timesteps=(999, 799, 599, 399, 199))
        ),
    )
    at_zero = DiffusersSampler("DDIMScheduler", 5, options={"set_alpha_to_one": False})
    assert torch.equal(tcd, images(pipe, Recipe(at_zero, None))[0])


@torch.no_grad()
def test_eta_is_of_the_recipe_for_ddim_too():
    assert not adds_noise(DiffusersSampler("DDIMScheduler", 4).build(BETAS))
    noisy = DiffusersSampler("DDIMScheduler", 4, "ddim", each_step={"eta": 1.0})
    assert adds_noise(noisy.build(BETAS))
    pipe = TinySuite("unet").pipeline()
    ddim = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    step = ddim.step
    ddim.step = lambda *args, **more: step(*args, **more, eta=1.0)
    found, _ = images(pipe, Recipe(noisy))
    pipe.scheduler = ddim
    draws = generators(0, 0, 2)
    x = noise(draws)
    ddim.set_timesteps(4)
    for t in ddim.timesteps:
        v = pipe.unet(x, t, class_labels=torch.tensor([3, 5])).sample
        x = ddim.step(v, t, x, generator=draws, return_dict=False)[0]
    assert torch.equal(found, x)


def test_identities_of_samplers_without_numbers_for_each_step_are_what_they_were():
    assert "each_step" not in describe(DiffusersSampler("DDIMScheduler", 4))
    assert describe(method("sampler", "tcd"))["each_step"] == {"eta": 0.3}


@pytest.mark.parametrize("times", [None, (900.0, 500.0, 125.5)])
@torch.no_grad()
def test_flow_lcm_is_its_equation(times):
    """x' = (1 - s') (x - s v) + s' z; a list of timesteps is what the model gets."""
    pipe = TinySuite("flow").pipeline()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    grid = times and ExplicitGrid(timesteps=times)
    found, run = images(pipe, Recipe(method("sampler", "flow_lcm", steps=3), grid))
    said = [1 - i / 3 for i in range(3)]
    expected = times or [1000 * 3 * s / (1 + 2 * s) for s in said]
    assert [call.timestep for call in run.trace] == pytest.approx(expected, rel=1e-6)
    sigmas = [*(t / 1000 for t in expected), 0.0]
    assert [call.sigma for call in run.trace] == pytest.approx(sigmas[:-1], rel=1e-6)
    draws = generators(0, 0, 2)
    x = noise(draws)
    for s, after in pairwise(sigmas):
        v = pipe.unet(x, torch.tensor(1000 * s), class_labels=torch.tensor([3, 5])).sample
        x = (1 - after) * (x - s * v) + after * noise(draws)
    assert torch.allclose(found, x, atol=1e-4)


def test_explicit_times_of_flows_are_those_of_the_model_whatever_its_shift():
    sigma = np.array([1.0, 0.9, 0.3])
    back = unshifted(sigma, 3.0)
    assert 3 * back / (1 + 2 * back) == pytest.approx(sigma, rel=1e-12)
    grid = ExplicitGrid(timesteps=(1000.0, 650.0))
    scheduler = method("sampler", "flow_euler", steps=2).build({"shift": 3.0, "num_train_timesteps": 1000}, grid)
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 650], rel=1e-6)
    with pytest.raises(IncompatibleError, match="grid 'explicit' cannot be used"):
        method("sampler", "flow_euler", steps=2).build({"shift": 3.0, "use_dynamic_shifting": True}, grid)


def test_scm_on_a_model_of_one_point_is_at_it_on_every_step():
    """f = cos t x - sin t F is x_0 at any angle, so that step i ends at cos t' x_0 + sin t' sigma_d z."""
    config, x0 = diffusers.SCMScheduler().config, torch.tensor([[[[0.7, -0.2]]]], dtype=torch.float64)
    scheduler = method("sampler", "scm", steps=3).build(config)
    scheduler.set_timesteps(3)
    scheduler.set_begin_index(0)
    x = torch.randn(x0.shape, dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps[:-1]):
        output = (torch.cos(t.double()) * x - x0) / torch.sin(t.double())
        draws, again = (torch.Generator().manual_seed(i) for _ in range(2))
        x, f = scheduler.step(output, t, x, draws, return_dict=False)
        after = float(scheduler.timesteps[i + 1])
        z = torch.randn(x0.shape, generator=again)
        assert torch.allclose(f, x0, atol=1e-6)
        assert torch.allclose(x, math.cos(after) * x0 + math.sin(after) * 0.5 * z, atol=1e-6)


def test_angles_are_those_of_diffusers_and_levels_their_tangents():
    for steps in (1, 2, 4):
        scheduler = diffusers.SCMScheduler()
        scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
        assert angles(steps) == pytest.approx(scheduler.timesteps[:-1].numpy(), abs=1e-6)
    assert level_of_angle(1.5708) == math.inf, "a little more than a right angle is noise alone, and not minus infinity"
    assert level_of_angle(math.pi / 4) == pytest.approx(1)
    assert plain_arguments(angles(4), True) == {"max_timesteps": 1.5708, "intermediate_timesteps": None}
    assert plain_arguments(np.array([1.5, 1.0]), False) == {"max_timesteps": 1.5, "intermediate_timesteps": 1.0}
    assert plain_arguments(np.array([1.5, 1.0, 0.2]), False) is None
    pipe = TinySuite("arc").pipeline()
    with accelerate(pipe, Recipe(method("sampler", "scm", steps=2), ExplicitGrid(timesteps=(1.5, 0.5)))) as run:
        pipe(**CALL)
        assert [call.timestep for call in run.trace] == pytest.approx([1.5, 0.5])
        assert [call.sigma for call in run.trace] == pytest.approx([math.tan(1.5), math.tan(0.5)], rel=1e-5)


REFUSED = {
    "scm on timesteps": ("unet", "scm", {}, "noise level is an angle .* use sampler=lcm, or flow_lcm"),
    "scm on a flow": ("flow", "scm", {}, "noise level is an angle"),
    "ddim on angles": ("arc", "ddim", {}, "which DDIMScheduler does not know; use sampler=scm"),
    "an own sampler on angles": ("arc", "deis_tab", {}, "which DEISScheduler does not know; use sampler=scm"),
    "lcm on a flow": ("flow", "lcm", {}, "cannot run a flow model"),
    "flow_lcm on betas": ("unet", "flow_lcm", {}, "needs a flow model"),
    "timesteps for angles": ("arc", "scm", {"grid": "karras"}, "this model has angles; use grid=none"),
    "a named grid": ("unet", "lcm", {"grid": "karras"}, "has no use_karras_sigmas"),
    "too many for lcm": ("unet", "lcm", {"steps": 60}, "cannot make 60 steps"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(case):
    kind, name, more, said = case
    grid = method("grid", more["grid"]) if "grid" in more else None
    with pytest.raises(IncompatibleError, match=said):
        Recipe(method("sampler", name, steps=more.get("steps", 2)), grid).check(TinySuite(kind).pipeline())


@pytest.mark.parametrize(
    ("scheduler", "told", "said"),
    [
        ("TCDScheduler", {"gamma": 0.2}, "unknown argument of a step of TCDScheduler 'gamma'.*eta"),
        ("TCDScheduler", {"eta": 1.2}, r"sampler.each_step.eta is 1.2; allowed: a number in .0.0, 1.0."),
        ("LCMScheduler", {"eta": 0.2}, "takes no number at each step; leave sampler.each_step out"),
    ],
)
def test_numbers_of_a_step_are_checked(scheduler, told, said):
    with pytest.raises(ConfigError, match=said):
        DiffusersSampler(scheduler, 4, each_step=told)


def test_eta_is_a_setting_of_the_command_line():
    sampler = instantiate(compose(["sampler=tcd", "sampler.each_step.eta=0.2"]).sampler)
    assert (sampler.label, sampler.each_step) == ("tcd(eta=0.2)-4", {"eta": 0.2})
    assert instantiate(compose(["sampler=ddim", "+sampler.each_step.eta=1"]).sampler).label == "ddim(eta=1)-10"


def test_a_pipelines_eta_gives_way_to_the_recipes():
    """Stable Diffusion's always hands one over, 0 unless its caller says more."""
    scheduler = method("sampler", "tcd", steps=2).build(BETAS)
    x = torch.ones(1, 1, 2, 2)
    inner = scheduler.step.__wrapped__.__func__
    scheduler.set_timesteps(2)
    a = scheduler.step(x, scheduler.timesteps[0], x, eta=0.0, generator=torch.Generator().manual_seed(1)).prev_sample
    fresh = diffusers.TCDScheduler.from_config(scheduler.config)
    fresh.set_timesteps(2)
    b = inner(fresh, x, fresh.timesteps[0], x, eta=0.3, generator=torch.Generator().manual_seed(1)).prev_sample
    assert torch.equal(a, b)


def test_what_follows_each_sample_is_refused_where_eta_adds_noise():
    noisy = DiffusersSampler("DDIMScheduler", 4, "ddim", each_step={"eta": 1.0})
    made = Recipe(noisy, guidance=method("guidance", "cfgpp"))
    with pytest.raises(IncompatibleError, match="DDIMScheduler adds noise"):
        made.check(TinySuite("unet").pipeline())
