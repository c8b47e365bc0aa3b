"""Every registered method on every pipeline class: it runs and leaves nothing behind, or refuses with a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hub_tiny import KINDS
from registry import FEW, METHODS, recipe

from accel.benches.compatibility import refusal
from accel.core.denoiser import denoiser_name
from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG, IntervalCFG
from accel.samplers import DiffusersSampler
from accel.samplers.ode import initial_latents
from accel.suites.hub import HubSuite

FLOWS = ("sd3", "flux")
ids = "-".join
pytestmark = pytest.mark.usefixtures("few_ranges")


def recipe_for(kind: str, axis: str, choice: str) -> Recipe:
    # A flow needs a sampler of flows around any other method.
    axes = {"sampler": "rf_solver"} if kind in FLOWS and axis != "sampler" else {}
    made = recipe(**axes | {axis: choice})
    steps = 2 if axis not in ("grid", "sampler") else made.sampler.steps
    return replace(made, sampler=replace(made.sampler, steps=steps))


def artefacts(pipe, suite: HubSuite, made: Recipe):
    own = {}
    if made.sampler.calibrated:
        n = made.sampler.samples_wanted()
        call = suite.conditions(0, n) | suite.guidance_arguments(made)
        noise = initial_latents(pipe, call | {"generator": generators(99, 0, n)})
        own["sampler"] = made.sampler.calibrate(pipe, replace(made, precision=None), call, noise, lambda *done: None)
    if made.cache and made.cache.calibrated:
        own["cache"] = made.cache.calibrate(pipe, made, lambda r, a, b: generate(pipe, suite, r, 99, a, b, 2))
    if made.precision and made.precision.calibrated:
        own |= made.precision.calibrate(pipe, made, lambda *drawn: generate(pipe, suite, made, 99, 0, 2, 2), {}, own)
    return own or None


def why_not(pipe, made: Recipe) -> str | None:
    try:
        made.check(pipe, {})
    except (IncompatibleError, ConfigError) as error:
        return str(error)
    return None


CASES = [(kind, method) for kind in KINDS for method in (METHODS if kind in ("sd", "flux") else FEW)]


@pytest.mark.parametrize(("kind", "method"), CASES, ids=lambda value: value if isinstance(value, str) else ids(value))
def test_method_runs_on_the_class_or_refuses_with_a_reason(kind, method, hub_suite, hub_pipe):
    suite, pipe, made = hub_suite(kind), hub_pipe(kind), recipe_for(kind, *method)
    net, scheduler = getattr(pipe, denoiser_name(pipe)), pipe.scheduler
    if made.guidance and made.guidance.calibrated:
        pytest.skip("its calibration is the guidance room's business")
    if reason := why_not(pipe, made):
        assert len(reason) > 30
        with pytest.raises((IncompatibleError, ConfigError)), accelerate(pipe, made):
            pass
    else:
        weights = {k: v.clone() for k, v in net.state_dict().items()}
        own = artefacts(pipe, suite, made)
        with accelerate(pipe, made, artefacts=own) as run:
            images = generate(pipe, suite, made, 5, 0, 2, 2)
            # The samples of a batch share the steps of an adaptive solver; a grid knows nothing of samples.
            shared = method[1] == "ode" or method[0] == "grid"
            alone = images[1:] if shared else generate(pipe, suite, made, 5, 1, 2, 1)
        assert images.shape == (2, 3, *suite.image_size)
        assert run.clock.num_steps == made.sampler.steps
        loose = made.precision and made.precision.label != "fp32"
        scale = 1 if loose else 1e-4
        assert (images[1:] - alone).abs().max() <= scale * max(1.0, float(images.abs().max()))
        assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())
    assert pipe.scheduler is scheduler
    assert "forward" not in vars(net)


EXPECTED = {
    "sd": {"rf_solver": "needs a flow model"},
    "dit": {"ode": "takes no latents", "deepcache": "needs the skip connections of a UNet"},
    "sd3": {"ddim": "cannot run a flow model down to sigma = 0", "pc": "not one of the paper's"},
    "flux": {
        "flow_heun": "set_timesteps takes no mu",
        "dc_solver": "the ratio search of dc_solver does not know",
    },
    "ddpm": {"cfg": "neither classes nor cross-attention"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_refusals_say_why(kind, hub_pipe):
    axis_of = {choice: axis for axis, choice in METHODS}
    for choice, reason in EXPECTED[kind].items():
        axis, sampler = axis_of[choice], [("sampler", "flow_euler")] if kind in FLOWS else []
        chosen = [(axis, choice)] if axis == "sampler" else [*sampler, (axis, choice)]
        assert reason in refusal(hub_pipe(kind), {}, *chosen)


GUIDED = [kind for kind in KINDS if kind != "ddpm"]


def sampler_of(kind: str) -> DiffusersSampler:
    name = "FlowMatchEulerDiscreteScheduler" if kind in FLOWS else "DDIMScheduler"
    return DiffusersSampler(name, 3)


@pytest.mark.parametrize("kind", GUIDED)
def test_guided_batches_are_split_right(kind, hub_suite, hub_pipe):
    """Outside its interval, guidance leaves the conditional rows alone: SDXL's and PixArt's extra inputs included."""
    suite, pipe, sampler = hub_suite(kind), hub_pipe(kind), sampler_of(kind)

    def images(guidance):
        made = Recipe(sampler, guidance=guidance)
        with accelerate(pipe, made, count_macs=True) as run:
            return generate(pipe, suite, made, 0, 0, 2, 2), run

    plain, none = images(None)
    never, skipped = images(IntervalCFG(4.0, sigma_lo=1e6, sigma_hi=1e7))
    guided, doubled = images(CFG(4.0))
    torch.testing.assert_close(never, plain, rtol=0, atol=1e-5)
    assert (guided - plain).abs().max() > 1e-4
    assert [none.nfe, skipped.nfe, doubled.nfe] == [3, 3, 6]
    assert none.macs == skipped.macs
    assert doubled.macs == 2 * none.macs


@pytest.mark.parametrize("kind", KINDS)
def test_harness_changes_nothing_but_the_scheduler(kind, hub_suite, hub_pipe):
    """The images are those of a user who sets the scheduler by hand and calls the pipeline."""
    suite, pipe = hub_suite(kind), hub_pipe(kind)
    made = Recipe(sampler_of(kind), guidance=CFG(3.0) if kind in GUIDED else None)
    with accelerate(pipe, made):
        found = generate(pipe, suite, made, 0, 0, 2, 2)
    by_hand = made.sampler.build(pipe.scheduler.config)
    known, original = suite.kind, pipe.scheduler
    pipe.scheduler = by_hand
    try:
        null = {"negative_prompt": ["", ""]} if kind == "flux" else {}  # its true guidance asks for one
        call = suite.conditions(0, 2) | suite.guidance_arguments(made) | null
        expected = pipe(**call, generator=generators(0, 0, 2), num_inference_steps=3, output_type="pt").images
    finally:
        pipe.scheduler = original
    assert torch.equal(found, expected.cpu())
    assert known.signed == (kind == "ddpm")


@pytest.mark.parametrize("kind", ["sd", "dit", "sd3", "flux"])
def test_step_noise_is_of_the_sample_not_of_the_batch(kind, hub_suite, hub_pipe):
    """DiT, SD3 and Flux give their scheduler no generator; step noise would come from the global one."""
    suite, pipe = hub_suite(kind), hub_pipe(kind)
    options = {"stochastic_sampling": True} if kind in FLOWS else {}
    name = "FlowMatchEulerDiscreteScheduler" if kind in FLOWS else "EulerAncestralDiscreteScheduler"
    made = Recipe(DiffusersSampler(name, 3, options=options), guidance=CFG(2.0) if kind == "dit" else None)
    with accelerate(pipe, made):
        both, again = (generate(pipe, suite, made, 0, 0, 2, 2) for _ in range(2))
        alone = generate(pipe, suite, made, 0, 1, 2, 1)
    assert torch.equal(both, again)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd", "flux", "dit", "sd3"])
def test_searches_start_from_the_noise_that_the_pipeline_draws(kind, hub_suite, hub_pipe):
    suite, pipe = hub_suite(kind), hub_pipe(kind)
    call = suite.conditions(0, 2) | suite.guidance_arguments(Recipe()) | {"generator": generators(3, 0, 2)}
    noise = initial_latents(pipe, call)
    assert noise.shape == ((2, 16, 16) if kind == "flux" else (2, 4, 8, 8))  # Flux packs 2 x 2 latents
    seen = []
    net = getattr(pipe, denoiser_name(pipe))
    handle = net.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        with accelerate(pipe, Recipe(sampler_of(kind))):
            pipe(**call | {"generator": generators(3, 0, 2)}, output_type="pt")
    finally:
        handle.remove()
    torch.testing.assert_close(seen[0], noise)
