"""CFG++ against loops by hand, under every scheduler that it knows."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny import Proportional, dit_pipeline, pixels, run_dit, run_pixels

from accel.config import choice_of
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, CFGPlusPlus
from accel.samplers import DiffusersSampler
from accel.suites.mixture import MixtureSuite

STEPS = 5
OPTIONS = {"set_alpha_to_one": True, "clip_sample": False}
DDIM = DiffusersSampler("DDIMScheduler", STEPS, "ddim", OPTIONS)
FIRST_ORDER = [
    DDIM,
    DiffusersSampler("EulerDiscreteScheduler", STEPS, options={"final_sigmas_type": "zero"}),
    DiffusersSampler("DPMSolverMultistepScheduler", STEPS, options={"solver_order": 1, "final_sigmas_type": "zero"}),
    DiffusersSampler("DEISScheduler", STEPS, options={"ab_order": 0}),
    DiffusersSampler("DCSolverScheduler", STEPS, options={"solver_order": 1, "corrector": False}),
]


@pytest.fixture(scope="module")
def mixture():
    return MixtureSuite().pipeline()


def sample(pipe, sampler, weight, **call):
    guidance = None if weight is None else CFGPlusPlus(weight)
    with accelerate(pipe, Recipe(sampler, guidance=guidance)) as run:
        return run_pixels(pipe, run.recipe.guidance_scale, **call)


def by_hand(pipe, weight, labels=(0, 1, 2), steps=STEPS):
    """Algorithm 2 in float64, with the levels of DDIM's timesteps."""
    net, null = pipe.unet, pipe.null_label
    alpha_bar = DDIMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.double()
    sources = [torch.Generator().manual_seed(i) for i in range(len(labels))]
    x = torch.cat([torch.randn(1, 1, 2, 4, generator=g, dtype=torch.float64) for g in sources])
    for t in range(999, 0, -(1000 // steps)):
        both = torch.tensor([null] * len(labels) + list(labels))
        u, c = net(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
        a, end = alpha_bar[t], alpha_bar[t - 1000 // steps] if t >= 1000 // steps else torch.ones(())
        x0 = (x - (1 - a).sqrt() * (u + weight * (c - u))) / a.sqrt()
        x = end.sqrt() * x0 + (1 - end).sqrt() * u
    return x


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sampler", FIRST_ORDER, ids=lambda s: s.scheduler)
def test_first_order_samplers_are_algorithm_2(mixture, sampler, weight):
    """Also those that keep x / alpha, or their noise levels in another place: sigma' must be in their own scale."""
    torch.testing.assert_close(sample(mixture, sampler, weight), by_hand(mixture, weight), rtol=0, atol=2e-4)


def test_ddim_to_the_last_digits(mixture):
    torch.testing.assert_close(sample(mixture, DDIM, 0.3), by_hand(mixture, 0.3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "deis", "deis_tab", "dpmpp_3m_corrected"])
def test_weight_0_is_unconditional_sampling_exactly(mixture, sampler):
    """The same doubled rows, of which the pipeline takes the first half: u + 1 (u - u)."""
    made = choice_of("sampler", sampler, f"sampler.steps={STEPS}")

    class Unconditional(CFG):
        def guide(self, inputs, inner, node):
            half = inner(inputs).chunk(2)[0]
            return torch.cat([half, half])

    with accelerate(mixture, Recipe(made, guidance=Unconditional(2.0))):
        wanted = run_pixels(mixture, 2.0)
    assert torch.equal(sample(mixture, made, 0.0), wanted)
    null = [mixture.null_label] * 3
    torch.testing.assert_close(sample(mixture, made, None, labels=null), wanted, rtol=0, atol=1e-10)


def test_multistep_keeps_its_order_terms_and_renoises_with_u(mixture):
    """DPM-Solver++(2M) by hand around diffusers' own step: x' + sigma' (u - g)."""
    sampler = choice_of("sampler", "dpmpp_2m", f"sampler.steps={STEPS}")
    scheduler = sampler.build(mixture.scheduler.config)
    scheduler.set_timesteps(STEPS)
    x = torch.cat([torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
                   for i in range(2)])  # fmt: skip
    for i, t in enumerate(scheduler.timesteps):
        labels = torch.tensor([mixture.null_label] * 2 + [0, 1])
        u, c = mixture.unet(torch.cat([x, x]), t, class_labels=labels).sample.chunk(2)
        g = u + 0.4 * (c - u)
        rho = float(scheduler.sigmas[i + 1])
        x = scheduler.step(g, t, x).prev_sample + rho / (1 + rho**2) ** 0.5 * (u - g)
    torch.testing.assert_close(sample(mixture, sampler, 0.4, labels=(0, 1)), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", [
    DiffusersSampler("FlowMatchEulerDiscreteScheduler", STEPS), DiffusersSampler("DEISScheduler", STEPS,
                                                                                options={"ab_order": 0}),
], ids=lambda s: s.scheduler)  # fmt: skip
def test_flows(sampler):
    pipe = pixels(Proportional(), FlowMatchEulerDiscreteScheduler())
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sample(pipe, sampler, 0.5, labels=(0,))
    for i in range(STEPS):
        s, end = 1 - i / STEPS, 1 - (i + 1) / STEPS
        u, c = (pipe.unet(x, 1000 * s, torch.tensor([y]))[0] for y in (1, 0))
        x0 = x - s * (u + 0.5 * (c - u))
        x = (1 - end) * x0 + end * (x + (1 - s) * u)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("out_channels", [4, 8])
def test_a_pipeline_that_steps_both_halves(out_channels):
    pipe = dit_pipeline(out_channels=out_channels)
    with accelerate(pipe, Recipe(DDIM, guidance=CFGPlusPlus(0.7))) as run:
        found = run_dit(pipe, run.recipe.guidance_scale, steps=STEPS)
    assert run.nfe == 2 * STEPS
    with accelerate(pipe, Recipe(DDIM, guidance=CFGPlusPlus(0.7))) as run:
        other = run_dit(pipe, 7.0, steps=STEPS)
    assert torch.equal(found, other), "the pipeline's own scale plays no part"
    with accelerate(pipe, Recipe(DDIM, guidance=CFGPlusPlus(0.2))):
        assert not torch.equal(found, run_dit(pipe, 2.0, steps=STEPS))


@pytest.mark.parametrize("sampler", ["unipc", "unipc_accel", "heun", "pc", "deis_rhork", "dc_solver"])
def test_samplers_that_would_undo_it_are_refused(pipe, sampler):
    made = choice_of("sampler", sampler, "sampler.steps=4")
    with pytest.raises(IncompatibleError, match=r"(?i)cfg.*sampler such as"):
        Recipe(made, guidance=CFGPlusPlus()).check(pipe)


def test_stochastic_dpm_solver_is_refused(pipe):
    made = DiffusersSampler("DPMSolverMultistepScheduler", 4, options={"algorithm_type": "sde-dpmsolver++"})
    with pytest.raises(IncompatibleError, match="DPMSolverMultistepScheduler adds noise; use a sampler such as ddim"):
        Recipe(made, guidance=CFGPlusPlus()).check(pipe)


@pytest.mark.parametrize("weight", [-0.1, 1.1, 7.5])
def test_bad_weight(weight):
    with pytest.raises(ConfigError, match=r"guidance.weight is .*; allowed: a number in \[0.0, 1.0\]"):
        CFGPlusPlus(weight)


def test_distance_is_to_the_conditional_trajectory():
    assert Recipe(guidance=CFGPlusPlus()).exact_guidance is None
