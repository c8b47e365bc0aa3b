"""A student in the place of a hub pipeline's denoiser; the contract that its name stands for; SANA-Sprint."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from accel.core.recipe import Recipe, accelerate
from accel.core.seeds import generators
from accel.deploy.plain import Plain, _scheduler
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.records import Results
from accel.registry import method
from accel.samplers.grids import ExplicitGrid
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.studies.study import Study
from accel.suites.hub.lora import Lora


@pytest.fixture(autouse=True)
def fast(few_ranges):
    pass


def recipe(name: str, steps: int = 2, grid=None) -> Recipe:
    return Recipe(method("sampler", name, steps=steps), grid)


def images(suite, made, pipe=None):
    pipe = pipe or suite.pipeline()
    with accelerate(pipe, made):
        return generate(pipe, suite, made, 0, 0, 2, 2)


@pytest.fixture(scope="module")
def distilled(hub_folder, tmp_path_factory):
    """A pipeline of other weights: its folder, that of its denoiser, and a file of the denoiser's weights."""
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("students") / "sd_student"
    pipe = StableDiffusionPipeline.from_pretrained(hub_folder("sd"))
    for parameter in pipe.unet.parameters():
        parameter.data *= 0.9
    pipe.save_pretrained(folder)
    file = folder.parent / "sdxl_lightning_2step_unet.safetensors"
    shutil.copy(folder / "unet/diffusion_pytorch_model.safetensors", file)
    return {"pipeline": folder, "denoiser": folder / "unet", "file": file}


@pytest.mark.parametrize("what", ["pipeline", "denoiser", "file"])
def test_images_are_those_of_the_students_weights(what, distilled, hub_suite, hub_pipe):
    suite = hub_suite("sd", student=str(distilled[what]), known="none")
    suite.check(2)
    expected = images(hub_suite("sd", model=str(distilled["pipeline"])), recipe("ddim"))
    assert torch.equal(images(suite, recipe("ddim")), expected)
    assert not torch.equal(images(hub_suite("sd"), recipe("ddim"), hub_pipe("sd")), expected)
    own, plain = suite.fingerprint(), hub_suite("sd").fingerprint()
    assert {k: v for k, v in own.items() if not k.startswith("student/")} == plain, "the model's own identity stays"
    weights = [v for k, v in own.items() if k.startswith("student/") and k.endswith(".safetensors")]
    there = hub_suite("sd", model=str(distilled["pipeline"])).fingerprint()
    assert weights == [there["unet/diffusion_pytorch_model.safetensors"]]


@pytest.mark.parametrize("what", ["denoiser", "file"])
def test_diffusers_alone_makes_the_same_of_the_lines(what, distilled, hub_suite):
    suite = hub_suite("sd", student=str(distilled[what]), known="none")
    origin = suite.origin()
    import diffusers

    scope = {"torch": torch, "pipe": getattr(diffusers, origin.name).from_pretrained(origin.model, **origin.options)}
    exec("\n".join(origin.lines), scope)
    own = suite.pipeline().unet.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in scope["pipe"].unet.state_dict().items())


def test_what_is_no_student_of_the_pipeline_is_refused(distilled, hub_suite, hub_folder, tmp_path):
    pickled = tmp_path / "dmd2.bin"
    pickled.write_bytes(b"")
    few = tmp_path / "few.safetensors"
    save_file({"conv_in.bias": torch.zeros(8)}, few)
    for student, said in (
        (hub_folder("flux"), "has a transformer, and the pipeline a unet; use one distilled from it"),
        (hub_folder("sdxl"), "has .*cross_attention_dim.*; use one distilled"),
        (pickled, r"may run code when loaded; needed: \.safetensors"),
        (tmp_path / "none.safetensors", "there is no file"),
        (tmp_path, "has neither model_index.json nor config.json"),
    ):
        with pytest.raises(ConfigError, match=said):
            hub_suite("sd", student=str(student)).check(2)
    with pytest.raises(ConfigError, match=r"suite.student and suite.gguf both give the denoiser's weights"):
        hub_suite("sd", student=str(distilled["file"]), gguf="x.gguf").check(2)
    with pytest.raises(ConfigError, match="tensors are not those of the UNet2DConditionModel"):
        hub_suite("sd", student=str(few)).pipeline()


def test_recipes_are_held_to_the_contract_that_the_file_names(distilled, hub_suite):
    suite = hub_suite("sd", student=str(distilled["file"]))
    assert suite.contract.name == "SDXL-Lightning"
    pipe = suite.pipeline()
    assert images(suite, recipe("euler"), pipe).isfinite().all()
    with pytest.raises(IncompatibleError, match=r"made for 2 steps, and this recipe has 4 .*sampler.steps=2 grid=none"):
        recipe("euler", 4).check(pipe)
    with pytest.raises(IncompatibleError, match="no guidance on top"):
        replace(recipe("euler"), guidance=CFG(5.0)).check(pipe)
    assert suite.converged(None) == recipe("euler"), "distances are to the student's own plain trajectory"
    assert suite.fingerprint() == replace(suite, known="none").fingerprint(), "a contract makes no other images"
    recipe("dpmpp_2m", 9).check(replace(suite, known="none").pipeline())
    with pytest.raises(ConfigError, match=r"suite.known .mine."):
        hub_suite("sd", known="mine").check(2)


def test_the_lora_names_its_contract_and_its_scale(hub_suite):
    suite = hub_suite("sd", lora=[Lora("loras/Hyper-SD15-4steps-lora.safetensors", 0.5)])
    assert (suite.contract.name, suite.contract.steps) == ("Hyper-SD", (4,))
    with pytest.raises((ConfigError, IncompatibleError), match=r"is a LoRA of scale 1, and it is added with scale 0.5"):
        suite.check(2)
    assert hub_suite("sd").contract is None


SMALL = Evaluation(n=60, distance_n=60, shard=60, batch=60, timing=False, controls=True, device="cpu")


@pytest.mark.parametrize(("steps", "grid"), [(1, None), (2, None), (4, None), (2, (1.5, 0.9))])
def test_sana_sprint_is_the_plain_pipeline_at_any_number_of_steps(steps, grid, hub_suite, hub_pipe):
    """Its own call fails at all but two, where it is not told that there is no angle in the middle."""
    suite, pipe = hub_suite("sana_sprint", max_sequence_length=300), hub_pipe("sana_sprint")
    made = recipe("scm", steps, grid and ExplicitGrid(timesteps=grid))
    found = images(suite, made, pipe)
    call = suite.conditions(0, 2) | suite.guidance_arguments(made) | {"generator": generators(0, 0, 2)}
    largest, middle = grid or (1.5708, 1.3 if steps == 2 else None)
    own = {"num_inference_steps": steps, "max_timesteps": largest, "intermediate_timesteps": middle}
    assert torch.equal(found, pipe(**call, **own, output_type="pt").images)


def test_an_experiment_on_sana_sprint(hub_suite, tmp_path):
    suite = hub_suite("sana_sprint")
    assert suite.contract.name == "SANA-Sprint"
    runner = Runner(suite, SMALL, Results(tmp_path))
    record = runner.quality(Recipe(method("sampler", "scm", steps=2), cache=method("cache", "fora")))
    assert record["cost"]["nfe"] == 2
    assert record["values"]["distance"]["value"] > 0, "to two plain steps"
    assert "5 steps" in (reason := runner.refusal(recipe("scm", 5))), reason
    assert runner.refusal(recipe("scm", 1)) is None
    with pytest.raises(IncompatibleError, match="use sampler=scm"):
        runner.check(recipe("ddim"))


def test_a_control_that_a_student_cannot_run_is_said(distilled, hub_suite, tmp_path):
    suite, plain, said = hub_suite("sd", student=str(distilled["file"])), recipe("euler"), io.StringIO()
    cached = replace(plain, cache=method("cache", "deepcache", interval=2, branch=1))
    shown = Console(file=said, width=1000)
    Study("s", "t", suite, SMALL, Results(tmp_path), plain, [cached], console=shown, wandb="disabled").run()
    assert "has no control of equal MACs: euler-1: " in (text := said.getvalue()), text


@pytest.mark.parametrize(
    ("kind", "name", "steps", "grid"),
    [
        ("sana_sprint", "scm", 3, None),
        ("sana_sprint", "scm", 2, (1.5, 0.9)),
        ("sd", "tcd", 2, None),
        ("sd", "lcm", 2, (999, 499)),
        ("flux_schnell", "flow_euler", 2, (1000, 400)),
    ],
)
def test_the_plain_script_makes_the_same(kind, name, steps, grid, hub_suite, hub_pipe):
    import diffusers

    suite, pipe = hub_suite(kind), hub_pipe(kind)
    if kind == "flux_schnell":  # the tiny one shifts by the image's size, the published one does not
        pipe = suite.pipeline()
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made, found = recipe(name, steps, grid and ExplicitGrid(timesteps=grid)), Plain()
    _scheduler(SimpleNamespace(saved=SimpleNamespace(recipe=made), pipe=pipe), found)
    assert found.reasons == []
    expected, own = images(suite, made, pipe), pipe.scheduler
    try:
        exec("\n".join(found.setup), {"pipe": pipe, **{each: getattr(diffusers, each) for each in found.imports}})
        call = suite.conditions(0, 2) | suite.guidance_arguments(made) | found.call
        assert torch.equal(pipe(**call, generator=generators(0, 0, 2), output_type="pt").images, expected)
    finally:
        pipe.scheduler = own


def test_what_no_call_says_is_a_reason(hub_pipe):
    for kind, made, said in (
        ("sana_sprint", recipe("scm", 3, ExplicitGrid(timesteps=(1.5, 0.9, 0.3))), "which no call of a SanaSprintPip"),
        ("flux", recipe("flow_lcm"), "the noise of flow_lcm-2, which a FluxPipeline draws by no sample's seed"),
        ("dit", recipe("tcd", 2), "eta=0.3 at each step, which a DiTPipeline does not pass on"),
    ):
        found = Plain()
        _scheduler(SimpleNamespace(saved=SimpleNamespace(recipe=made), pipe=hub_pipe(kind)), found)
        assert any(said in reason for reason in found.reasons)
