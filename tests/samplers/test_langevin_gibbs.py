"""Langevin-Gibbs chains: held against Gaussian data, of which every marginal, ODE solution and chain is known."""

from __future__ import annotations

import copy
import json
import math
import pickle
import shutil
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from tiny import dit_pipeline, gaussian_flow

from accel.config import choice_of
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import ConfigError, IncompatibleError, IntegrityError
from accel.evaluation.generate import generate
from accel.guidance import CFG, IntervalCFG
from accel.records import canonical, describe
from accel.samplers import DenoisingLangevinGibbs, DiffusersSampler
from accel.samplers.grids import ExplicitGrid, Grid, PowerGrid, TableGrid
from accel.samplers.langevin_chain import Chains, LevelEstimator, _chains, _conditions
from accel.samplers.noise_schedule import noise_schedule
from accel.samplers.predictor import Predictor
from accel.suites.base import ASSETS
from accel.suites.digits.flow import DigitsFlowSuite
from accel.suites.mixture import MixtureSuite
from accel.suites.pipeline import PixelPipeline

STD = 0.3
# Said in full: diffusers' from_config replaces what was left to a default by the new class's own default.
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
MEANS = (-0.6, 0.0, 0.6, 0.1)  # of classes 0, 1, 2 and of the null label


class Gaussians(ModelMixin, ConfigMixin):
    """E[eps | x_t] for data N(MEANS[c], STD^2) in each element; the schedule is that of BETAS."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1, num_class_embeds: int = 4) -> None:
        super().__init__()
        self.register_buffer("means", torch.tensor(MEANS, dtype=torch.float64))
        self.schedule = noise_schedule(BETAS)

    def forward(self, sample, timestep, class_labels, return_dict=False):
        alpha, sigma = self.schedule.alpha_sigma(torch.as_tensor(timestep).double().cpu().numpy())
        alpha, sigma = (torch.as_tensor(v).reshape(-1, 1, 1, 1) for v in (alpha, sigma))
        centred = sample - alpha * self.means[class_labels].reshape(-1, 1, 1, 1)
        return (sigma * centred / (alpha**2 * STD**2 + sigma**2),)


@dataclass(frozen=True)
class Level(LevelEstimator):
    """A level that is known: always `sigma`, or (None) from the distance to `mean`, of which the data's is STD."""

    sigma: float | None = None
    shape: tuple[int, ...] = (1, 4, 4)
    mean: float = 0.0
    bounds: tuple[float, float] = (0.001, 1000.0)
    sha256: str = "of a stub"
    name: str = "stub"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.sigma is not None:
            return torch.full((len(x),), self.sigma, dtype=torch.float64)
        return (x - self.mean).double().flatten(1).square().mean(1).sub(STD**2).clamp(min=1e-4).sqrt().cpu()


INNER = {
    "dpmpp_2m": DiffusersSampler("DPMSolverMultistepScheduler", 6, "dpmpp_2m", {"final_sigmas_type": "zero"}),
    "euler": DiffusersSampler("EulerDiscreteScheduler", 6, "euler", {"final_sigmas_type": "zero"}),
    "heun": DiffusersSampler("HeunDiscreteScheduler", 6, "heun"),
    "deis_tab": DiffusersSampler("DEISScheduler", 6, "deis_tab", {"variant": "tab", "ab_order": 2}),
    "unipc_accel": DiffusersSampler("DCSolverScheduler", 6, "unipc_accel"),
}


def dmcmc(inner: str = "dpmpp_2m", **settings) -> DenoisingLangevinGibbs:
    settings = {"estimator": Level(0.5), "step_size": 0.1, "start_steps": 3, "sigma_start": 0.5} | settings
    return DenoisingLangevinGibbs(INNER[inner], **settings)


@pytest.fixture(scope="module")
def gaussians() -> PixelPipeline:
    pipe = PixelPipeline(Gaussians(), DDPMScheduler(**BETAS, clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Suite:
    """What `generate` asks of a suite: here the three classes in turn."""

    period = 3

    def conditions(self, start: int, stop: int) -> dict:
        return {"class_labels": [i % 3 for i in range(start, stop)]}

    def guidance_arguments(self, recipe: Recipe) -> dict:
        return {"guidance_scale": recipe.guidance_scale}


def images(pipe, made, start=0, stop=12, batch=12, grid=None, guidance=None, suite=None, count_macs=False):
    """(images, run) of a sampler."""
    recipe = Recipe(made, grid, guidance)
    with accelerate(pipe, recipe, count_macs=count_macs) as run:
        return generate(pipe, suite or Suite(), recipe, 7, start, stop, batch), run


def chains_of(pipe, run, made, count: int) -> Chains:
    chains = Chains(made, pipe, run.clock, {"class_labels": [0] * count, "generator": generators(3, 0, count)})
    chains._only(len(chains.chains))
    return chains


# --- the chain


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_langevin_step_by_hand(gaussians, scale):
    """x + eta/2 score + sqrt(eta) z in x / alpha, with the score of N(m, s^2 + sigma^2); each row has its own sigma.

    The score of classifier-free guidance is that of u + s (c - u).
    """
    made, sigma = dmcmc(step_size=0.3), torch.tensor([0.05, 0.4, 3.0], dtype=torch.float64)
    call = {"class_labels": [0, 1, 2], "generator": generators(3, 0, 3), "guidance_scale": scale}
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with accelerate(gaussians, Recipe(made, guidance=CFG(scale))) as run:
        chains, again = (Chains(made, gaussians, run.clock, call | {"generator": generators(3, 0, 3)}) for _ in "ab")
        chains._only(3)
        again._only(3)
        found, level = chains._langevin(x, sigma, chains._eps(x, sigma))
        z = again._noise()
    variance = (STD**2 + sigma**2).reshape(3, 1, 1, 1)
    cond, uncond = ((torch.tensor(m).reshape(-1, 1, 1, 1) - x) / variance for m in (MEANS[:3], MEANS[3:] * 3))
    score = uncond + scale * (cond - uncond)
    torch.testing.assert_close(found, x + 0.15 * score + 0.3**0.5 * z, rtol=1e-6, atol=1e-6)
    assert level.tolist() == [0.5] * 3
    assert len(run.clock.prelude) == 1


def test_at_a_known_level_the_chain_settles_at_the_variance_of_unadjusted_langevin(gaussians):
    """N(m, v) becomes N(m, v / (1 - eta / 4v)): v where eta -> 0; from any beginning. v = s^2 + sigma^2."""
    v = STD**2 + 0.5**2
    for eta in (0.02, 0.6):
        made = dmcmc(step_size=eta)
        with accelerate(gaussians, Recipe(made)) as run, torch.no_grad():
            chains = chains_of(gaussians, run, made, 1500)
            sigma = torch.full((1500,), 0.5, dtype=torch.float64)
            x = MEANS[0] + 2.0 + torch.zeros(1500, 1, 4, 4, dtype=torch.float64)
            for _ in range(round(3 / eta) + 10):
                x, sigma = chains._langevin(x, sigma, chains._eps(x, sigma))
        expected = v / (1 - eta / (4 * v))
        assert x.var() == pytest.approx(expected, rel=0.03), "24,000 numbers: 0.9 % standard error"
        assert x.mean() == pytest.approx(MEANS[0], abs=0.03)
        assert eta < 0.1 or expected > 1.5 * v


def test_a_known_limit_the_level_drifts_upwards():
    """sigma^4 grows by eta^2 / 2 a step where noise dominates and its level is measured exactly."""
    eta, steps, sigma_start = 4.0, 20, 3.0
    pipe = PixelPipeline(Gaussians(sample_size=16), DDPMScheduler(**BETAS, clip_sample=False))
    made = dmcmc(step_size=eta, estimator=Level(shape=(1, 16, 16), mean=MEANS[0]), sigma_start=sigma_start)
    with accelerate(pipe, Recipe(made)) as run, torch.no_grad():
        chains = chains_of(pipe, run, made, 100)
        x = MEANS[0] + math.sqrt(STD**2 + sigma_start**2) * chains._noise()
        sigma = [chains._level(x)]
        for _ in range(steps):
            x, level = chains._langevin(x, sigma[-1], chains._eps(x, sigma[-1]))
            sigma.append(level)
    growth = (sigma[-1].square().mean() ** 2 - sigma[0].square().mean() ** 2) / steps
    assert growth == pytest.approx(eta**2 / 2, rel=0.1)


# --- from the chain to sigma_start


def test_noise_from_below_gives_exactly_the_marginal_at_sigma_start(gaussians):
    """Whatever level each state is at: N(m, s^2 + sigma_start^2)."""
    made = dmcmc(sigma_start=1.0)
    with accelerate(gaussians, Recipe(made)) as run:
        chains = chains_of(gaussians, run, made, 3000)
        sigma = torch.linspace(0.05, chains.start, 3000, dtype=torch.float64)
        spread = (STD**2 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
        x = MEANS[0] + spread * chains._noise()
        y = chains._brought(x, torch.full_like(x, torch.nan).nan_to_num(1e6), sigma)
    assert chains.start == pytest.approx(1.0, rel=0.01)
    for part in (slice(0, 1000), slice(1000, 2000), slice(2000, 3000)):  # 16,000 numbers: 1.1 % standard error
        assert y[part].var() == pytest.approx(STD**2 + chains.start**2, rel=0.04)
        assert y[part].mean() == pytest.approx(MEANS[0], abs=0.04)


def test_from_above_the_ode_is_followed_to_first_order(gaussians):
    """(x - m) / sqrt(s^2 + sigma^2) is constant along the ODE; half the way, a quarter of the error; nothing drawn."""
    made, errors = dmcmc(sigma_start=0.4), []
    with accelerate(gaussians, Recipe(made)) as run, torch.no_grad():
        for above in (0.1, 0.05, 0.025):
            chains = chains_of(gaussians, run, made, 2)
            sigma = torch.full((2,), chains.start + above, dtype=torch.float64)
            x = MEANS[0] + torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(2, 1, 4, 4)
            y = chains._brought(x, chains._eps(x, sigma), sigma)
            exact = MEANS[0] + (x - MEANS[0]) * ((STD**2 + chains.start**2) / (STD**2 + sigma[0] ** 2)).sqrt()
            errors.append(float((y - exact).abs().max()))
    ratios = np.divide(errors[:-1], errors[1:])
    assert (ratios > 3).all()
    assert errors[-1] < 0.002


def test_the_state_of_smallest_level_is_taken_and_no_state_twice(gaussians):
    """A stub says the levels, step by step; which states went on to sigma_start is seen from what came of them."""
    levels = iter([0.9, 0.3, 0.8, 0.2, 0.7, 0.6, 0.5])  # before the steps of samples 1 (three) and 2 (three), and after

    @dataclass(frozen=True)
    class Told(Level):
        def __call__(self, x):
            return torch.full((len(x),), next(levels), dtype=torch.float64)

    made = dmcmc(estimator=Told(), chain=2, skip=3, sigma_start=0.5, step_size=0.01)
    seen, brought = [], []
    with accelerate(gaussians, Recipe(made)) as run, torch.no_grad():
        chains = Chains(made, gaussians, run.clock, {"class_labels": [1, 1], "generator": generators(3, 0, 2)})
        step, bring = chains._langevin, chains._brought
        chains._langevin = lambda x, sigma, eps: seen.append((x, eps, sigma)) or step(x, sigma, eps)
        chains._brought = lambda x, eps, sigma: brought.append((x, eps, sigma)) or bring(x, eps, sigma)
        chains.latents()
    assert [float(s[2]) for s in seen] == [0.9, 0.3, 0.8, 0.2, 0.7, 0.6]
    for found, expected in zip(brought, (seen[1], seen[3]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- the whole sampler


def test_samples_have_the_datas_moments(gaussians):
    """Three classes, chains of four, a fine sampler: mean and variance of each class, and independent elements."""
    made = dmcmc(chain=4, skip=2, burn_in=2, start_steps=12, step_size=0.02, steps=30)
    x, _ = images(gaussians, made, 0, 2400, 2400)
    for c in range(3):
        own = x[c::3].flatten(1)  # 800 samples of 200 chains, 16 elements
        assert own.mean() == pytest.approx(MEANS[c], abs=0.02)
        assert own.var() == pytest.approx(STD**2, rel=0.08)
        off = np.corrcoef(own.numpy().T)[~np.eye(16, dtype=bool)]
        assert np.abs(off).max() < 0.25, "elements are independent"


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name", INNER)
def test_every_sampler_starts_from_the_same_point_of_the_ode(gaussians, name, scale):
    """From what the chain made, in whatever scale the scheduler works: the exact solution at sigma = 0.

    Guided, the score is linear, too: u + s (c - u) = -(x - m) / v with m = u + s (c - u) of the means.
    """
    made = dmcmc(name, steps=60, start_steps=4, sigma_start=0.7, estimator=Level(0.6))
    guidance = CFG(scale) if scale > 1 else None
    x, run = images(gaussians, made, guidance=guidance)
    call = Suite().conditions(0, 12) | {"generator": generators(7, 0, 12), "guidance_scale": scale}
    with accelerate(gaussians, Recipe(made, guidance=guidance)) as again, torch.no_grad():
        chains = Chains(made, gaussians, again.clock, call)
        start = chains.latents()
    mean = torch.tensor([MEANS[3] + scale * (m - MEANS[3]) for m in MEANS[:3] * 4]).reshape(-1, 1, 1, 1)
    exact = mean + (start - mean) * STD / math.sqrt(STD**2 + chains.start**2)
    assert (x - exact).abs().max() < 0.02
    assert (start - exact).abs().max() > 0.5
    assert run.clock.num_steps == 60


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun"])
@pytest.mark.parametrize(("chain", "burn_in", "skip"), [(1, 0, 1), (1, 2, 3), (4, 2, 1), (4, 0, 2)])
def test_evaluations_are_counted_and_shared_by_the_chain(gaussians, name, chain, burn_in, skip):
    made = dmcmc(name, chain=chain, burn_in=burn_in, skip=skip, steps=5)
    stages = 9 if name == "heun" else 5
    for guidance, rows in ((None, 1), (CFG(2.0), 2)):
        _, run = images(gaussians, made, guidance=guidance)
        assert run.nfe == rows * ((3 + burn_in) / chain + skip + stages)
    assert made.evaluations >= run.nfe / 2
    assert made.evaluations - run.nfe / 2 < 2
    assert run.clock.runs == 1
    assert all(e.model == "base" for e in run.clock.prelude)


def test_unfinished_chains_cost_what_they_walk(gaussians):
    """15 samples of three classes in chains of four: each class has chains of 4 and of 1."""
    made = dmcmc(chain=4, burn_in=1, skip=2, steps=5)
    _, run = images(gaussians, made, 0, 15, 24)
    assert run.nfe == pytest.approx((6 * (3 + 1) + 15 * (2 + 5)) / 15)


def test_macs_of_the_chain_are_counted(digits, pipe):
    made = choice_of("sampler", "dmcmc", "sampler.steps=3", "sampler.start_steps=2", "sampler.chain=2")
    plain = Recipe(replace(made.sampler, steps=4))
    with accelerate(pipe, plain, count_macs=True) as run:
        generate(pipe, digits, plain, 0, 0, 1, 1)
    _, own = images(pipe, made, 0, 20, 20, suite=digits, count_macs=True)
    assert own.nfe == 2 / 2 + 1 + 3
    assert own.macs == pytest.approx(run.macs * own.nfe / 4)


def test_a_sample_does_not_depend_on_its_batch(gaussians):
    """Single ones without chains; with chains any whole number of groups, also where the last group is cut."""
    free = dmcmc(estimator=Level(), skip=2, burn_in=1)
    whole, _ = images(gaussians, free, 0, 12, 12)
    for start, stop, batch in ((5, 6, 1), (3, 8, 5), (0, 12, 4)):
        torch.testing.assert_close(images(gaussians, free, start, stop, batch)[0], whole[start:stop])
    chained = dmcmc(estimator=Level(), skip=2, chain=3)
    whole, _ = images(gaussians, chained, 0, 27, 27)
    torch.testing.assert_close(images(gaussians, chained, 9, 27, 9)[0], whole[9:])
    torch.testing.assert_close(images(gaussians, chained, 0, 13, 9)[0], whole[:13])
    with pytest.raises(ConfigError, match=r"groups of 9; allowed: evaluation\.batch"):
        images(gaussians, chained, 0, 12, 6)


def test_same_seeds_same_images_and_other_seeds_others(gaussians):
    made = dmcmc(chain=2, estimator=Level())
    one, again = (images(gaussians, made)[0] for _ in "ab")
    assert torch.equal(one, again)
    recipe = Recipe(made)
    with accelerate(gaussians, recipe):
        other = generate(gaussians, Suite(), recipe, 8, 0, 12, 12)
    assert (one - other).flatten(1).abs().amax(1).min() > 0.1, "every sample"
    assert torch.pdist(one.flatten(1)).min() > 0.1, "also those of one chain"


def test_what_the_sampler_draws_does_not_depend_on_the_length_of_the_chain(gaussians):
    """A stochastic sampler goes on with the first row's generator, of which a chain takes one number."""
    inner = DiffusersSampler("PredictorCorrectorScheduler", 6, "pc", {"predictor": "ancestral", "corrector": "none"})
    made = DenoisingLangevinGibbs(inner, estimator=Level(0.5), sigma_start=0.5, start_steps=2, chain=4)
    whole, _ = images(gaussians, made, 0, 12, 12)
    torch.testing.assert_close(images(gaussians, made, 0, 5, 12)[0], whole[:5])


def test_chains_have_one_condition_in_the_order_of_their_rows():
    assert _chains([0, 1, 2, 0, 1, 2, 0, 1], 2) == [[0, 3], [1, 4], [2, 5], [6], [7]]
    assert _chains("aab", 1) == [[0], [1], [2]]
    embeds = torch.tensor([[1.0, 2], [3, 4], [1, 2]])
    call = {"prompt": ["a", "b", "a"], "prompt_embeds": embeds, "guidance_scale": 2.0, "eta": None, "sizes": (1, 2),
            "generator": generators(0, 0, 3), "output_type": "pt", "num_inference_steps": 3}  # fmt: skip
    rows, each, common = _conditions(call)
    assert rows == 3
    assert list(each) == ["prompt", "prompt_embeds"]
    assert common == {"guidance_scale": 2.0, "sizes": (1, 2)}
    assert _conditions({"prompt": "a"})[0] == 1
    assert _conditions({"batch_size": 5})[0] == 5


@pytest.mark.parametrize("generator", ["none", "one", "list"])
def test_the_pipeline_may_be_called_as_usual_through_run(gaussians, generator):
    made = dmcmc(chain=2)
    call = {"none": None, "one": torch.Generator().manual_seed(0), "list": generators(0, 0, 5)}[generator]
    with accelerate(gaussians, Recipe(made)) as run, warnings.catch_warnings():
        warnings.filterwarnings("error", ".*called directly.*", UserWarning)
        x = run(class_labels=torch.tensor([0, 2, 0, 0, 2]), generator=call, output_type="pt").images
    assert x.shape == (5, 1, 4, 4)
    assert x.flatten(1).mean(1).sub(torch.tensor(MEANS)[[0, 2, 0, 0, 2]]).abs().max() < 0.5
    assert run.nfe == pytest.approx(3 * 3 / 5 + 1 + 6)


def test_a_flow_without_classes_is_sampled_too():
    """rho = sigma / alpha of a rectified flow; N(0.5, 0.3^2) in each element."""
    pipe = gaussian_flow()
    made = dmcmc("deis_tab", chain=4, start_steps=8, steps=20, step_size=0.05, estimator=Level(0.5, (1, 2, 2)))
    with accelerate(pipe, Recipe(made, PowerGrid(space="t", kappa=2.0))) as run:
        x = run(batch_size=2000, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert run.nfe == 8 / 4 + 1 + 20
    assert x.mean() == pytest.approx(0.5, abs=0.03)
    assert x.var() == pytest.approx(0.09, rel=0.1)


@pytest.mark.parametrize("flow", [False, True], ids=["digits", "digits_flow"])
def test_digits_come_out_as_the_wanted_digits(digits, pipe, flow):
    suite = DigitsFlowSuite() if flow else digits
    inner = "deis_tab" if flow else "dpmpp_2m"
    made = choice_of("sampler", "dmcmc", f"sampler@sampler.sampler={inner}", "sampler.steps=3", "sampler.chain=2")
    x, run = images(suite.pipeline() if flow else pipe, made, 0, 20, 20, PowerGrid(space="rho", kappa=3.0), suite=suite)
    assert run.nfe == 8 / 2 + 1 + 3
    assert suite.per_sample(x, suite.conditions(0, 20))["accuracy"].mean() >= 0.9


# --- grids


@pytest.mark.parametrize("name", ["dpmpp_2m", "deis_tab", "euler"])
@pytest.mark.parametrize(
    "grid", [None, *map(Grid, ("trailing", "linspace", "karras", "exponential")), PowerGrid(space="rho", kappa=3.0)]
)
def test_the_grid_is_that_of_the_schedule_below_sigma_start(gaussians, name, grid):
    config, schedule = gaussians.scheduler.config, noise_schedule(BETAS)
    scheduler = dmcmc(name, sigma_start=2.0, steps=5).build(config, grid)
    times = scheduler.timesteps.double().numpy()
    start = round(float(schedule.timestep(2.0)))
    wanted = (grid or Grid("trailing")).times(schedule.starting_at(start), 5)
    np.testing.assert_allclose(times, wanted if name == "deis_tab" else np.round(wanted), atol=1e-6)
    assert times[0] == start
    assert scheduler.sigmas[0] == pytest.approx(2.0, rel=0.01)
    assert float(scheduler.sigmas[-1]) == 0.0


def test_the_samplers_own_grid_is_used_where_none_is_given(gaussians):
    own = {"use_karras_sigmas": True, "final_sigmas_type": "zero"}
    for inner in (DiffusersSampler("DPMSolverMultistepScheduler", 6, options=own),
                  DiffusersSampler("DEISScheduler", 6, options={"variant": "tab", "grid": "karras"})):  # fmt: skip
        made = replace(dmcmc(sigma_start=2.0), sampler=inner)
        found, same = (made.build(gaussians.scheduler.config, g).timesteps for g in (None, Grid("karras")))
        assert torch.equal(found, same)


@pytest.mark.parametrize("grid", [ExplicitGrid(timesteps=(999, 600, 100)), TableGrid(table=(999, 500, 20))])
def test_a_grid_from_pure_noise_is_refused_and_a_wrong_one_stays_an_error(gaussians, grid):
    config = gaussians.scheduler.config
    with pytest.raises(IncompatibleError, match=r"starts at timestep 144, but .* from 999 .* allowed: 144 down to 0"):
        dmcmc(steps=3).build(config, grid)
    with pytest.raises(ConfigError, match="1001"):
        dmcmc(steps=3).build(config, ExplicitGrid(timesteps=(1001, 600, 100)))
    assert dmcmc(steps=3).build(config, ExplicitGrid(timesteps=(144, 60, 10))).timesteps.tolist() == [144, 60, 10]


# --- refusals


@pytest.mark.parametrize("name", ["ddim", "deis", "unipc", "ode"])
def test_a_sampler_that_cannot_start_in_the_middle_is_refused(gaussians, name):
    made = DenoisingLangevinGibbs(choice_of("sampler", name), estimator=Level(0.5), sigma_start=0.5)
    with pytest.raises(
        IncompatibleError, match=rf"starts {name} in the middle, at timestep 144, which it cannot: .*use"
    ):
        Recipe(made).check(gaussians)


def test_what_looks_at_the_noise_level_or_was_made_for_the_whole_way_is_refused(gaussians, digits, pipe):
    made = dmcmc()
    Recipe(made, guidance=CFG(2.0)).check(gaussians)
    with pytest.raises(IncompatibleError, match=r"may look at the noise level.* use guidance=cfg or none"):
        Recipe(made, guidance=IntervalCFG(2.0, 0.1, 5.0)).check(gaussians)
    searched = DenoisingLangevinGibbs(choice_of("sampler", "dc_solver"), estimator=Level(0.5), sigma_start=0.5)
    with pytest.raises(IncompatibleError, match="belong to a trajectory from pure noise"):
        Recipe(searched).check(gaussians)
    given = choice_of("sampler", "dc_solver", "sampler.steps=4", "sampler.ratios=[1,1,1.1,0.9]")
    Recipe(replace(searched, sampler=given, steps=4)).check(gaussians)


def test_a_pipeline_of_other_samples_or_without_latents_is_refused():
    shipped = choice_of("sampler", "dmcmc")
    with pytest.raises(IncompatibleError, match=r"'digits' knows samples of shape \(1, 16, 16\).* have \(1, 2, 4\)"):
        Recipe(shipped).check(MixtureSuite().pipeline())
    with pytest.raises(IncompatibleError, match="DiTPipeline takes no latents"):
        Recipe(shipped).check(dit_pipeline())


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"step_size": 0.0}, "sampler.step_size is 0.0"), ({"step_size": "1"}, "sampler.step_size is '1'"),
     ({"chain": 0}, "sampler.chain is 0; allowed: an integer >= 1"), ({"skip": 0}, "sampler.skip is 0"),
     ({"start_steps": 0}, "sampler.start_steps is 0"), ({"burn_in": -1}, "sampler.burn_in is -1"),
     ({"sigma_start": 2000.0}, r"sampler.sigma_start is 2000.0; allowed: a number in \[0.001, 1000.0\]"),
     ({"sigma_start": float("nan")}, "sampler.sigma_start is nan"), ({"steps": 0}, "sampler.steps is 0"),
     ({"sampler": "dpmpp_2m"}, "sampler.sampler is 'dpmpp_2m'; allowed: a sampler"),
     ({"sampler": dmcmc()}, "DenoisingLangevinGibbs again")],
)  # fmt: skip
def test_bad_settings_are_one_clear_error(settings, said):
    with pytest.raises(ConfigError, match=said):
        DenoisingLangevinGibbs(**{"sampler": INNER["euler"], "estimator": Level(0.5)} | settings)


def test_a_level_that_the_model_does_not_know_is_refused(gaussians):
    with pytest.raises(ConfigError, match=r"sigma_start is 500.0; allowed: a number in \[0.0100\d*, 157\.4"):
        dmcmc(sigma_start=500.0).build(gaussians.scheduler.config)


def test_levels_beyond_the_model_are_taken_as_its_own_ends(gaussians):
    made = dmcmc(estimator=Level(900.0))
    with accelerate(gaussians, Recipe(made)) as run:
        assert chains_of(gaussians, run, made, 1)._level(torch.zeros(1, 1, 4, 4)).item() == pytest.approx(
            157.4, abs=0.1
        )


def test_arguments_that_a_chain_cannot_honour_are_refused(gaussians):
    with accelerate(gaussians, Recipe(dmcmc())) as run:
        with pytest.raises(ConfigError, match="latents are given"):
            run(class_labels=[0], latents=torch.zeros(1, 1, 4, 4))
        with pytest.raises(ConfigError, match="num_images_per_prompt"):
            run(class_labels=[0], num_images_per_prompt=2)


def test_calling_the_pipeline_directly_warns_because_it_starts_from_pure_noise(gaussians):
    with accelerate(gaussians, Recipe(dmcmc())) as run:
        with pytest.warns(UserWarning, match=r"called directly, so dmcmc\[dpmpp_2m\] .*run\("):
            gaussians(class_labels=[0], output_type="pt")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*called directly.*", UserWarning)
            run(class_labels=[0], output_type="pt")
    assert "forward" not in vars(gaussians.unet)


# --- config and records


def test_names_tell_the_chain_and_the_sampler():
    assert dmcmc(steps=5).label == "dmcmc[dpmpp_2m]-5"
    assert dmcmc("heun", steps=5, chain=8).label == "dmcmc8[heun]-5"
    assert replace(dmcmc(), steps=9).sampler.steps == 9
    assert dmcmc().steps == 6, "the sampler's own, where none is given"
    assert (dmcmc().group(10), dmcmc(chain=8).group(10)) == (1, 80)


def test_records_depend_on_every_setting_and_on_the_classifiers_weights(tmp_path):
    made = choice_of("sampler", "dmcmc")
    told = describe(made)
    content = json.loads((ASSETS / "digits_levels" / "MANIFEST.json").read_text())
    assert told["sha256"] == content["levels.safetensors"]
    changes = {"step_size": 0.3, "start_steps": 2, "burn_in": 1, "skip": 2, "chain": 2, "sigma_start": 2.0, "steps": 3}
    texts = {canonical(describe(replace(made, **{k: v}))) for k, v in changes.items()} | {canonical(told)}
    texts.add(canonical(describe(replace(made, sampler=INNER["euler"]))))
    assert len(texts) == len(changes) + 2

    folder = tmp_path / "levels"
    shutil.copytree(ASSETS / "digits_levels", folder)
    again = choice_of("sampler", "dmcmc", f"sampler.classifier={folder}")
    assert (again.classifier, again.sha256) == (str(folder), made.sha256)
    path = folder / "levels.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=r"damaged: sha256 .*make train SUITE=digits_levels"):
        choice_of("sampler", "dmcmc", f"sampler.classifier={folder}/")  # a path that was not loaded before


def test_the_identity_of_the_shipped_setting_is_that_of_the_records():
    """As tracked records of dmcmc have it: the estimator's name and the hash of its weights, nothing else of it."""
    told = describe(choice_of("sampler", "dmcmc"))
    manifest = json.loads((ASSETS / "digits_levels" / "MANIFEST.json").read_text())
    assert told == {
        "type": "DenoisingLangevinGibbs", "epoch": 1, "steps": 10, "step_size": 1.0, "start_steps": 8, "burn_in": 0,
        "skip": 1, "chain": 1, "sigma_start": 1.0, "classifier": "digits", "sha256": manifest["levels.safetensors"],
        "sampler": describe(replace(choice_of("sampler", "dpmpp_2m"), steps=10)),
    }  # fmt: skip


def test_the_estimator_stays_in_copies():
    """`replace`, pickle and deepcopy; the shipped one is pickled by its name."""
    made = choice_of("sampler", "dmcmc")
    for again in (replace(made, skip=1), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made
        assert again.estimator is made.estimator
    other = replace(dmcmc(), estimator=Level(0.3, name="another"))
    assert (other.classifier, other.estimator.sigma) == ("another", 0.3)
    assert other != dmcmc()


@pytest.mark.parametrize("estimator", [None, "digits", lambda x: x])
def test_what_tells_no_levels_is_refused(estimator):
    with pytest.raises(ConfigError, match=r"sampler.estimator is .*allowed: what tells noise levels.*level_classifier"):
        DenoisingLangevinGibbs(INNER["euler"], estimator=estimator)


def test_the_chain_asks_the_model_what_the_predictor_says(pipe):
    """v-prediction in float32, rows at levels of their own: eps as `Predictor` converts it, one row at a time."""
    made = choice_of("sampler", "dmcmc")
    sigma = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with accelerate(pipe, Recipe(made)) as run, torch.no_grad():
        call = {"class_labels": [4, 5, 6], "generator": generators(0, 0, 3)}
        chains = Chains(made, pipe, run.clock, call)
        chains._only(3)
        found = chains._eps(x, sigma)
        for i in range(3):
            predict = Predictor(pipe, run.clock, class_labels=[4 + i])
            t = float(chains.schedule.timestep(float(sigma[i])))
            x_t = x[i : i + 1] * float(chains.schedule.alpha_sigma(t)[0])
            expected = predict.to_eps(predict(x_t, t), x_t, t)
            torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-3, atol=2e-4)
