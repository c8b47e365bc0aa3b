"""Students of others: found by the names of their files, and what their contracts refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diffusers import DDIMScheduler

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.core.student import Run
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG
from accel.registry import method
from accel.samplers import DiffusersSampler
from accel.samplers.grids import ExplicitGrid
from accel.students import KNOWN, known_by, under
from accel.students.known import named
from accel.testing.suites import BETAS, TinySuite

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
FLOW = {"num_train_timesteps": 1000, "shift": 1.0}
FILES = {
    "sdxl_lightning_4step_lora.safetensors": ("SDXL-Lightning", (4,)),
    "loras/sdxl_lightning_8step_unet.safetensors": ("SDXL-Lightning", (8,)),
    "Hyper-SDXL-2steps-lora.safetensors": ("Hyper-SD", (2,)),
    "Hyper-SD15-1step-lora.safetensors": ("Hyper-SD (unified)", (1, 2, 3, 4, 5, 6, 7, 8)),
    "Hyper-SDXL-12steps-CFG-lora.safetensors": ("Hyper-SD (CFG)", (12,)),
    "Hyper-SDXL-1step-Unet.safetensors": ("Hyper-SD (1-step UNet)", (1,)),
    "Hyper-FLUX.1-dev-8steps-lora.safetensors": ("Hyper-SD (FLUX.1 dev)", (8,)),
    "latent-consistency/lcm-lora-sdxl": ("LCM-LoRA", (1, 2, 3, 4, 5, 6, 7, 8)),
    "dmd2_sdxl_4step_lora_fp16.safetensors": ("DMD2 (4 steps)", (4,)),
    "stabilityai/sdxl-turbo": ("SDXL-Turbo or SD-Turbo", (1, 2, 3, 4)),
    "flux1-schnell-Q4_K_S.gguf": ("FLUX.1 schnell", (1, 2, 3, 4)),
    "models/FLUX.1-schnell": ("FLUX.1 schnell", (1, 2, 3, 4)),
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": ("SANA-Sprint", (1, 2, 3, 4)),
}


@pytest.mark.parametrize("name", FILES)
def test_students_are_found_by_the_names_of_their_files(name):
    found = named(name)
    assert (found.name, found.steps) == FILES[name]


@pytest.mark.parametrize("name", ["stabilityai/stable-diffusion-xl-base-1.0", "style.safetensors", "FLUX.1-dev", "lcm"])
def test_what_is_no_known_student_is_none(name):
    assert known_by([name]) is None


def test_the_lora_is_asked_before_the_model():
    assert known_by(["loras/dmd2_sdxl_4step_lora.safetensors", "stabilityai/sdxl-turbo"]).name == "DMD2 (4 steps)"
    with pytest.raises(ConfigError, match=r"suite.known 'my-student'.*DMD2"):
        named("my-student")


def config_for(known):
    schedules = {"flow_euler": FLOW, "scm": {"prediction_type": "trigflow", "sigma_data": 0.5}}
    return schedules.get(known.sampler, SD)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_the_plain_recipe_of_every_contract_keeps_it_and_is_what_refusals_name(known):
    known = known if known.steps else replace(known, steps=(4,))
    made = known.plain()
    known.check(Run(made, made.sampler.build(config_for(known), made.grid)))
    assert f"sampler={known.sampler} sampler.steps={made.sampler.steps}" in known.use
    assert set(known.schedulers) >= {type(made.sampler.build(config_for(known), made.grid)).__name__}
    with pytest.raises(IncompatibleError, match=r"no guidance on top|guidance of at most"):
        known.check(
            Run(replace(made, guidance=CFG(known.guidance + 1)), made.sampler.build(config_for(known), made.grid))
        )
    for steps in {9, 60} - set(known.steps):
        other = replace(made, sampler=replace(made.sampler, steps=steps))
        with pytest.raises(IncompatibleError, match=f"this recipe has {steps} steps: .* Use sampler={known.sampler}"):
            known.check(Run(other, None))


def recipe(sampler, steps=4, **axes):
    return Recipe(method("sampler", sampler, steps=steps), **axes)


LIGHTNING, DMD2, LCM, TURBO = (
    "sdxl_lightning_4step_lora.safetensors", "dmd2_sdxl_4step_lora.safetensors", "lcm-lora-sdv1-5", "sd-turbo"
)  # fmt: skip
REFUSED = {
    "the pipeline's own": (LIGHTNING, Recipe(cache=DeepCache(2, 1)), "the pipeline's own scheduler"),
    "another solver": (LIGHTNING, recipe("dpmpp_2m"), "is driven by EulerDiscreteScheduler or DDIMScheduler"),
    "another spacing": (LIGHTNING, recipe("euler", grid=method("grid", "linspace")), "999, 749, 499, 249, and"),
    "noise": (
        LIGHTNING, Recipe(DiffusersSampler("DDIMScheduler", 4, "ddim", each_step={"eta": 0.5})), "without new noise"),
    "steps": (LIGHTNING, recipe("euler", 8), "made for 4 steps, and this recipe has 8"),
    "times of lcm's own": (DMD2, recipe("lcm"), "999, 749, 499, 249, and this recipe has 999, 759, 499, 259"),
    "a trajectory for a student of noise": (DMD2, recipe("euler"), "predicts x_0, and new noise"),
    "too much guidance": (LCM, recipe("lcm", guidance=CFG(3.0)), "takes guidance of at most 2"),
    "guidance of another kind": (LCM, recipe("lcm", guidance=method("guidance", "apg", scale=1.5)), "has apg"),
    "a cache at one step": (TURBO, recipe("euler", 1, cache=DeepCache(2, 1)), "has one step, and deepcache"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_recipe_that_contradicts_the_contract_is_refused_with_the_remedy(case):
    name, made, said = case
    pipe = under(TinySuite("text").pipeline(), named(name))
    with pytest.raises(IncompatibleError, match=rf"is a student, .*{said}.* Use .*suite.known=none"):
        made.check(pipe)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        (LIGHTNING, recipe("euler")),
        (LIGHTNING, recipe("ddim")),
        (LIGHTNING, recipe("euler", grid=ExplicitGrid(timesteps=(999, 749, 499, 249)))),
        (LIGHTNING, recipe("euler", cache=DeepCache(2, 1))),
        (DMD2, recipe("lcm", grid=ExplicitGrid(timesteps=(999, 749, 499, 249)))),
        (LCM, recipe("lcm", guidance=CFG(1.5))),
        (LCM, recipe("lcm", 2, grid=ExplicitGrid(timesteps=(999, 300)))),
        (TURBO, recipe("euler", 1)),
        (LIGHTNING, Recipe()),
    ],
)
def test_what_keeps_it_runs(name, made):
    pipe = under(TinySuite("text").pipeline(), named(name))
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert BETAS["timestep_spacing"] == "trailing"
    with accelerate(pipe, made) as run:
        pipe(class_labels=[1], num_inference_steps=4, guidance_scale=made.guidance_scale, output_type="pt")
    assert run.nfe >= 1


def test_the_scale_of_a_lora_is_part_of_it():
    named("Hyper-FLUX.1-dev-8steps-lora").check_scales([0.125])
    with pytest.raises(IncompatibleError, match=r"a LoRA of scale 0.125, and it is added with scale 1"):
        named("Hyper-FLUX.1-dev-8steps-lora").check_scales([1.0])
