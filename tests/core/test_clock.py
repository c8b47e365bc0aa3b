"""Where the clock is: pipelines that begin in the middle, schedulers that do not tell, ends of noise schedules."""

import copy
import math
import warnings

import pytest
import torch
from tiny import Rotating, pixels, run_stable_diffusion, stable_diffusion

from accel import Recipe, accelerate
from accel.core.trajectory import Trajectory, attach_clock, level_of, warn_of_single_precision
from accel.evaluation.cost import PeakTensorMemory
from accel.guidance import APG
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.stitching import TStitch
from accel.suites.mixture import MixtureSuite

IMAGE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
ANY = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler",
       "HeunDiscreteScheduler", "DEISScheduler")  # fmt: skip


@pytest.mark.parametrize("name", ANY)
def test_a_pipeline_that_begins_in_the_middle_is_where_its_denoiser_is(name):
    """Schedulers with a begin index, with a step index and with neither."""
    pipe = stable_diffusion("StableDiffusionImg2ImgPipeline")
    seen = []

    def look(module, args, kwargs):
        seen.append(float(args[1] if len(args) > 1 else kwargs["timestep"]))

    pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    with accelerate(pipe, Recipe(DiffusersSampler(name, 10))) as run:
        run_stable_diffusion(pipe, 3.0, image=IMAGE, strength=0.5, steps=10)
    assert [e.timestep for e in run.trace] == seen
    assert run.trace[-1].stage == run.clock.stages - 1
    assert seen[0] < 900


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"])
def test_a_stitch_gives_its_share_of_the_steps_that_are_run(name):
    pipe = stable_diffusion("StableDiffusionImg2ImgPipeline")
    recipe = Recipe(DiffusersSampler(name, 10), stitch=TStitch(fractions=(0.4,)))
    with accelerate(pipe, recipe, models={"small": copy.deepcopy(pipe.unet)}) as run:
        run_stable_diffusion(pipe, 3.0, image=IMAGE, strength=0.5, steps=10)
    assert "".join(e.model[0] for e in run.trace) == "ssbbb"


@pytest.mark.parametrize("told", [lambda t: t, lambda t: t / 1000, lambda t: 1 - t / 1000])
def test_a_flow_denoiser_that_is_told_sigma_is_found_too(told):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler, clock = FlowMatchEulerDiscreteScheduler(), Trajectory()
    attach_clock(scheduler, clock)
    scheduler.set_timesteps(10)
    clock.enter(2, told(scheduler.timesteps[4]).expand(2))
    assert clock.timestep == scheduler.timesteps[4]
    assert (clock.stages, clock.num_steps, clock.step) == (6, 6, 0)


def test_a_scheduler_that_lists_its_end_has_one_evaluation_less():
    """SCM (Sana-Sprint): angles from pi / 2 to 0, of which the last is no evaluation; sigma / alpha is
    their tangent."""
    from diffusers import SCMScheduler

    scheduler, clock = SCMScheduler(), Trajectory()
    attach_clock(scheduler, clock)
    scheduler.set_timesteps(2)
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps[:-1]:
        clock.enter(1, t)
        clock.note("base", "full", 1, None)
        x = scheduler.step(x, t, x).prev_sample
    assert clock.stages == len(clock.trace) == 2
    assert clock.runs == 1
    assert [e.sigma for e in clock.trace] == pytest.approx([math.inf, math.tan(1.3)])


def test_sigma_is_infinite_where_there_is_noise_alone():
    assert level_of(torch.tensor([0.5, 0.2, 0.0]), 2) == math.inf
    assert level_of(torch.tensor([0.5, 0.2, 0.0]), 1) == pytest.approx(2.0)
    assert math.isnan(level_of(None, 1))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_runs_as_the_plain_pipeline_does(kind):
    from diffusers import DDIMScheduler

    def pipe():
        return pixels(Rotating(), DDIMScheduler(rescale_betas_zero_snr=True, prediction_type=kind, clip_sample=False))

    def images(own, scale=1.0):
        source = [torch.Generator().manual_seed(i) for i in range(2)]
        call = {"class_labels": [0, 1], "generator": source, "num_inference_steps": 5, "output_type": "pt"}
        return own(**call, guidance_scale=scale).images

    sampler = DiffusersSampler("DDIMScheduler", 5)
    plain, fast = pipe(), pipe()
    plain.scheduler = sampler.build(plain.scheduler.config)
    with accelerate(fast, Recipe(sampler)) as run:
        assert torch.equal(images(fast), images(plain))
    assert run.trace[0].sigma == math.inf
    with accelerate(fast, Recipe(sampler, guidance=APG(2.0, eta=1.0, momentum=0.0))):
        assert torch.equal(images(fast, 2.0), images(plain, 2.0))


@pytest.mark.parametrize(
    ("choice", "rounds"), [("dpmpp_2m", True), ("euler", True), ("ddim", False), ("unipc_accel", False)]
)
def test_a_scheduler_that_rounds_a_float64_pipeline_is_told(choice, rounds):
    """That is the pipeline's own, which stays what it is; one that a recipe builds steps in float64."""
    pipe, sampler = MixtureSuite().pipeline(), method("sampler", choice, steps=3)
    pipe.scheduler = sampler.build(pipe.scheduler.config)
    for recipe, expected in ((Recipe(), rounds), (Recipe(sampler), False)):
        with warnings.catch_warnings(record=True) as told, accelerate(pipe, recipe):
            warnings.simplefilter("always")
            for _ in range(2):
                generator = [torch.Generator().manual_seed(0)]
                pipe(class_labels=[0], num_inference_steps=3, generator=generator, output_type="pt")
        assert sum("rounds every sample to float32" in str(w.message) for w in told) == expected, "once a context"


def test_the_trial_of_a_scheduler_is_not_counted_as_a_recipes_memory():
    from diffusers import DDIMScheduler

    scheduler, x = DDIMScheduler(), torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    with PeakTensorMemory() as memory:
        warn_of_single_precision(scheduler, x)
    assert memory.peak == 0
