"""Whole pipelines from configs alone: deterministic, made on the device, any recipe, no quality."""

from __future__ import annotations

import pickle
import re
import shlex
from dataclasses import replace

import pytest
import torch

from accel.config import CONF, compose, expand_cells, instantiate, recipe_by, recipe_of
from accel.core.random_weights import random_weights
from accel.core.recipe import Recipe, accelerate
from accel.core.stages import stage_seconds
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.guidance import CFG
from accel.registry import method
from accel.samplers.noise_schedule import is_flow
from accel.stitching import TStitch
from accel.suites.architectures import ArchSuite, made
from accel.suites.architectures.suite import UNSCORED
from accel.suites.architectures.tokens import FORMS, OTHERS, stub, vocabulary
from accel.suites.hub import files as hub_files
from accel.suites.hub.real_images import RealImages
from accel.testing.elsewhere import DEVICE, Elsewhere

# The classes of those that ship.
KINDS = ("sd", "sdxl", "dit", "pixart_alpha", "sd3", "flux", "wan", "qwen_image", "sana")


def images(suite, pipe, recipe):
    with accelerate(pipe, recipe) as run:
        return generate(pipe, suite, recipe, 0, 0, 2, 2), run


def plain(suite, kind, steps=2):
    flow = is_flow(hub_files.config_of(suite.folder, "scheduler"))
    guidance = None if kind == "flux" else CFG(3.0)
    return Recipe(method("sampler", "flow_euler" if flow else "ddim", steps=steps), guidance=guidance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_pipeline_runs_and_is_the_same_when_made_again_elsewhere(kind, arch_suite):
    if kind == "wan":
        pytest.importorskip("ftfy", reason="WanPipeline cleans its prompts with it")
    suite = arch_suite(kind)
    recipe = plain(suite, kind)
    here, _ = images(suite, suite.ready("cpu"), recipe)
    assert here.isfinite().all()
    assert here[0].std() > 0.01
    with Elsewhere() as device:
        pipe = suite.ready(DEVICE)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                assert all(device.place(weight) == DEVICE for weight in part.parameters()), name
        assert torch.equal(images(suite, pipe, recipe)[0], here)


def test_stages_are_all_there(arch_suite):
    suite = arch_suite("sdxl")
    pipe, recipe = suite.ready("cpu"), plain(suite, "sdxl")
    with accelerate(pipe, recipe):
        found = stage_seconds(pipe, lambda: generate(pipe, suite, recipe, 0, 0, 1, 1))
    assert found.keys() == {"text encoder", "denoiser", "scheduler", "decoder", "rest"}


@pytest.mark.parametrize(("kind", "axis", "choice"), [
    ("sd", "cache", "deepcache"), ("sd", "precision", "bf16"), ("sd", "guidance", "ag"), ("dit", "cache", "fora"),
    ("flux", "cache", "diffusers_first_block"), ("sd3", "cache", "taylorseer"),
])  # fmt: skip
def test_recipes_of_every_axis_run_and_save_what_they_save(kind, axis, choice, arch_suite):
    suite = arch_suite(kind)
    base = plain(suite, kind, 4)
    recipe = replace(base, **{axis: method(axis, choice)})
    pipe = suite.ready("cpu")
    found, run = images(suite, pipe, recipe)
    assert found.isfinite().all()
    assert len(run.trace) > 0


def test_a_stitch_has_its_second_network_from_configs(arch_suite, configs):
    suite = arch_suite("dit", stitch_models={"small": str(configs("dit"))})
    recipe = replace(plain(suite, "dit"), stitch=TStitch(("small",), (0.5,)))
    pipe = suite.ready("cpu")
    with accelerate(pipe, recipe, models=suite.networks()) as run:
        generate(pipe, suite, recipe, 0, 0, 1, 1)
    assert {event.model for event in run.trace} == {"base", "small"}
    assert suite.fingerprint()["stitch small"] == suite.fingerprint()["configs"]


def test_types_are_those_that_loading_gives(arch_suite):
    """What a class keeps in float32 when it is loaded stays in float32; all else is of the suite's type."""
    pipe = arch_suite("wan", dtype="bfloat16").pipeline()
    kept = type(pipe.transformer)._keep_in_fp32_modules
    types = {name: weight.dtype for name, weight in pipe.transformer.named_parameters()}
    high = {name for name, dtype in types.items() if dtype == torch.float32}
    assert high == {name for name in types if set(kept) & {*name.split(".")}} != set()
    assert {types[name] for name in types.keys() - high} == {torch.bfloat16}
    assert {weight.dtype for weight in pipe.text_encoder.parameters()} == {torch.bfloat16}


def test_what_nobody_fills_is_zero_and_generators_are_left_alone():
    before = torch.get_rng_state()
    with random_weights("cpu", torch.bfloat16):
        unset, drawn = torch.empty(1000), torch.nn.Linear(4, 4)
    assert not unset.any()
    assert drawn.weight.dtype == torch.bfloat16
    assert drawn.weight.any()
    assert torch.equal(torch.get_rng_state(), before)


# --- tokens


@pytest.mark.parametrize(("cls", "wanted"), [
    ("CLIPTokenizer", ["<|startoftext|>", "a", "cat", ",", "<|endoftext|>"]),
    ("T5TokenizerFast", ["a", "cat", ",", "</s>"]),
    ("GemmaTokenizerFast", ["<bos>", "a", "cat", ","]),
    ("Qwen2Tokenizer", ["a", "cat", ","]),
])  # fmt: skip
def test_stubs_frame_and_pad_as_their_class_does(cls, wanted):
    made = stub(cls, {"vocab_size": 30, "max_position_embeddings": 8}, ["a cat, two dogs"])
    assert made.convert_ids_to_tokens(made("a cat,").input_ids) == wanted
    batch = made(["a cat,", "dogs"], padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch.input_ids.shape == (2, 8)
    assert batch.attention_mask[0].sum() == len(wanted)
    assert made.model_max_length == 8
    assert made("unheard").input_ids != made("cat").input_ids


@pytest.mark.parametrize("form", [*FORMS.values(), OTHERS])
@pytest.mark.parametrize("size", [8, 40, 49408])
def test_each_id_is_one_tokens_and_within_the_vocabulary(form, size):
    ids = vocabulary(form, size, [f"word{i}" for i in range(20)])
    assert sorted(ids.values()) == sorted({*ids.values()})
    assert max(ids.values()) == ids[form.end] == size - 1, "CLIP's text encoder takes the largest id for the end"


def test_templates_that_pipelines_cut_off_are_as_long_as_they_count():
    """QwenImagePipeline drops the first 34 tokens of its template, those before the prompt."""
    from diffusers import QwenImagePipeline

    pipe = QwenImagePipeline.__new__(QwenImagePipeline)
    QwenImagePipeline.__init__(pipe, None, None, None, None, None)
    made = stub("Qwen2Tokenizer", {"vocab_size": 152064}, [])
    before = pipe.prompt_template_encode.partition("{}")[0]
    assert len(made(before).input_ids) == pipe.prompt_template_encode_start_idx


# --- refusals


def test_quality_is_refused_with_the_reason(configs):
    given = {"feature_network": "inception", "clip": "some/model", "reference_images": RealImages("here")}
    with pytest.raises(ConfigError) as error:
        ArchSuite(arch=str(configs("sd")), lora=["a.safetensors"], **given)
    for name in given:
        assert f"suite.{name} is given, but {UNSCORED}" in str(error.value)
    assert "suite.lora is given, but the weights of suite arch are random" in str(error.value)
    with pytest.raises(ConfigError, match=r"suite\.layers is 0"):
        ArchSuite(arch="sd15", layers=0)
    assert ArchSuite(arch="sd15").scoring() == {}


def test_what_does_not_fit_is_said_before_anything_is_made(monkeypatch):
    def nothing(*_):
        raise AssertionError("something was made")

    suite = ArchSuite(arch="flux_dev")
    made.sizes(suite.folder, torch.bfloat16)
    monkeypatch.setattr(made, "network", nothing)
    with Elsewhere(), pytest.raises(ConfigError) as error:
        suite.check_device(DEVICE)
    said = str(error.value)
    assert "suite.arch=flux_dev in bfloat16 has 33.7 GB of weights (text_encoder 0.2, text_encoder_2 9.5" in said
    assert "cuda:1 has 25.8 GB free; use fewer layers (suite.layers=0.5)" in said
    monkeypatch.setattr(made, "free_bytes", lambda device: 34 * 10**9 if device == "cpu" else 10**9)
    made.check_memory("it", suite.folder, torch.bfloat16, "cuda:1", "model")
    made.check_memory("it", suite.folder, torch.bfloat16, "cpu", "none")


def test_free_memory_of_this_machine():
    assert made.free_bytes("meta") is None
    if made.MEMORY.exists():
        assert 10**6 < made.free_bytes("cpu") < 10**16


def test_the_preset_is_the_suite():
    suite = instantiate(compose(["suite=arch", "suite.arch=sdxl", "suite.channels_last=true"]).suite)
    assert (suite.name, suite.dtype, suite.prompts.beyond) == ("arch_sdxl", "float16", "repeat")
    assert suite.execution() == {"channels_last": True}
    assert pickle.loads(pickle.dumps(suite)) == suite
    assert replace(suite, layers=0.5).name == "arch_sdxl_layers0.5"
    assert replace(replace(suite, layers=0.5), dtype="float32").name == "arch_sdxl_layers0.5"


def test_the_commands_of_the_page_make_recipes_of_their_architecture():
    page = (CONF.parent / "docs/architectures.md").read_text()
    commands = re.findall(r"^python -m accel -m (.*)$", page.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        for cell in expand_cells([shlex.split(command)]):
            cfg = compose(cell)
            assert instantiate(cfg.suite).name == f"arch_{cfg.suite.arch}"
            assert recipe_of(cfg).sampler.steps == recipe_by(list(cfg.baseline)).sampler.steps
