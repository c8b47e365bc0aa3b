"""`accel export`: scripts, run in a process of their own, and folders make the images that the recipe makes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import hub_tiny
import pytest
import torch
from PIL import Image
from saved import DPM, FAST, PLAIN, pixels, saved

import accel
from accel.caching import DeepCache, DiffusersCache
from accel.caching.diffusers_hooks import HOOKS
from accel.cli import export as cli
from accel.cli import generate
from accel.core.recipe import Recipe
from accel.deploy import export
from accel.deploy.opened import open_recipe
from accel.deploy.plain import source
from accel.errors import AccelError, ConfigError
from accel.guidance import CFG, IntervalCFG
from accel.precision import TF32, Cast, Compiled
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid, PowerGrid

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red cat", "the sea"]


def run_here(script: Path, words: list[str], plain: bool = True) -> list[torch.Tensor]:
    """The pictures that a script writes, in this process; `plain`: where accel cannot be imported meanwhile."""
    folder = script.parent / "run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setitem(sys.modules, "accel", None)
        patch.setattr(sys, "argv", [str(script), *words])
        patch.chdir(folder)
        runpy.run_path(str(script), run_name="__main__")
    return [pixels(path) for path in sorted(folder.glob("*.png"))]


def same(folder: Path, words: list[str], tmp_path: Path, plain: bool = True) -> str:
    """The text of the recipe's script, whose pictures are those of `accel generate`."""
    script = tmp_path / "generate.py"
    assert cli.main([str(folder), "--to", "code", "--output", str(script)]) == 0
    assert generate.main([str(folder), *words, "--to", str(tmp_path / "own")]) == 0
    made, own = run_here(script, words, plain), [pixels(path) for path in sorted((tmp_path / "own").glob("*.png"))]
    assert len(made) == len(own) == len(words)
    assert all(torch.equal(a, b) for a, b in zip(made, own, strict=True))
    return script.read_text()


def test_a_plain_recipe_is_a_script_without_accel(sd, tmp_path, capsys):
    text = same(sd, PROMPTS, tmp_path)  # in a process of its own: tests/recommend/test_road.py
    assert "accel." not in text.partition('"""\n')[2]
    assert "from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline\n" in text
    assert "guidance_scale=3.0," in text
    assert "num_inference_steps=4," in text
    assert "generate.py: plain diffusers, no accel" in capsys.readouterr().out


def quadratic():
    sampler = DiffusersSampler("DPMSolverMultistepScheduler", 4, "dpmpp_2m", DPM)
    return Recipe(sampler, PowerGrid(), CFG(2.0), precision=Cast("bfloat16"))


def test_timesteps_and_a_cast_are_plain(sd_words, tmp_path):
    words = [*sd_words, "suite.prompts.negative=a dog", "suite.vae_slicing=true"]
    folder = saved(tmp_path / "r", words, quadratic(), samples=None).parent
    text = same(folder, PROMPTS, tmp_path)
    assert "timesteps=[999," in text
    assert "negative_prompt=['a dog'] * len(shown)," in text
    assert "cast(net, torch.bfloat16)" in text
    assert "pipe.vae.enable_slicing()" in text


@pytest.fixture(scope="module")
def dit_words(tmp_path_factory):
    """What opens suite `hub` on a tiny DiT."""
    return ["suite=hub", f"suite.model={hub_tiny.save('dit', tmp_path_factory.mktemp('models') / 'dit')}"]


RATIOS = (1.0, 0.99, 0.98, 0.97, 0.96, 0.95)
HOOKED = {
    "first_block": {"threshold": 0.3},
    "taylorseer": {"cache_interval": 2, "disable_cache_before_step": 1, "max_order": 1,
                   "cache_identifiers": (r"transformer_blocks\.\d+\.(attn1|ff)",)},
    "mag": {"threshold": 0.5, "max_skip_steps": 2, "retention_ratio": 0.2, "mag_ratios": RATIOS,
            "num_inference_steps": 6},
    "pab": {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (100, 800),
            "spatial_attention_block_identifiers": (r"transformer_blocks\.\d+\.attn1",)},
}  # fmt: skip


@pytest.mark.parametrize("hook", HOOKED)
def test_diffusers_own_caches_and_labels_are_plain(hook, dit_words, tmp_path):
    sampler = DiffusersSampler("DPMSolverMultistepScheduler", 6, "dpmpp_2m", DPM)
    recipe = Recipe(sampler, PowerGrid(), CFG(2.0), cache=DiffusersCache(hook, HOOKED[hook]))
    folder = saved(tmp_path / "r", dit_words, recipe, samples=None).parent
    text = same(folder, ["7", "207"], tmp_path)
    assert f"(pipe.transformer, hooks.{HOOKS[hook][0]}(" in text
    assert "class_labels=list(map(int, shown))," in text


@pytest.mark.parametrize(
    ("kind", "guidance", "precision"),
    [("sd3", CFG(2.0), Cast("float16")), ("flux", None, Cast("bfloat16"))],
    ids=["sd3", "flux"],
)
def test_a_flow_and_its_cast_are_plain(kind, guidance, precision, tmp_path):
    model = hub_tiny.save(kind, tmp_path / kind)
    (tmp_path / "p.txt").write_text("\n".join(hub_tiny.PROMPTS))
    sampler = DiffusersSampler("FlowMatchEulerDiscreteScheduler", 3, "flow_euler")
    recipe = Recipe(sampler, guidance=guidance, precision=precision)
    words = ["suite=hub", f"suite.model={model}", f"suite.prompts.path={tmp_path / 'p.txt'}"]
    text = same(saved(tmp_path / "r", words, recipe, samples=None).parent, PROMPTS, tmp_path)
    assert ("sigmas=[1.0, 0.66" in text) == (kind == "sd3"), "Flux gives its scheduler sigmas of its own"
    assert ("guidance_scale=3.5," in text) == (kind == "flux"), "which its network is told"
    assert f"cast(net, torch.{precision.dtype})" in text


PRECISIONS = {
    "cast(net, torch.bfloat16)": Cast("bfloat16"),
    "backend='eager')": Compiled("bfloat16", "eager"),
    "compiled = run\n": Compiled("float16", "none"),
    '("fp32_precision", "tf32")': TF32(),
}


@pytest.mark.parametrize("line", PRECISIONS)
def test_executed_precisions_of_a_transformer_are_plain(line, dit_words, tmp_path, monkeypatch):
    """DiTPipeline asks the network what to draw its noise in, and takes an output with a name."""
    monkeypatch.setattr("accel.precision.executed.tf32.require_capability", lambda *args: None)
    sampler = DiffusersSampler("DPMSolverMultistepScheduler", 3, "dpmpp_2m", DPM)
    recipe = Recipe(sampler, guidance=CFG(2.0), precision=PRECISIONS[line])
    text = same(saved(tmp_path / "r", dit_words, recipe, samples=None).parent, ["7", "207"], tmp_path)
    assert line in text


def test_what_needs_accel_is_three_lines_with_it_and_says_for_what(fast, tmp_path, capsys):
    text = same(fast, ["3", "5"], tmp_path, plain=False)  # accel in a process of its own: tests/recommend/test_road.py
    assert "the pipeline, a PixelPipeline of accel; cache deepcache2b1." in text
    assert f"pipe = open_recipe({str(fast)!r}).apply().pipe" in text
    assert "needs accel for the pipeline, a PixelPipeline of accel; cache deepcache2b1" in capsys.readouterr().out


REASONS = {
    "cache deepcache2b1": {"cache": DeepCache(2, 1)},
    "sampler unipc_accel-3, whose scheduler DCSolverScheduler is not of diffusers": {
        "sampler": DiffusersSampler("DCSolverScheduler", 3, "unipc_accel")
    },
    "guidance cfg2(1,5]": {"guidance": IntervalCFG(2.0, 1.0, 5.0)},
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_part_that_needs_accel_is_named(reason, sd_words, tmp_path):
    parts = {"sampler": PLAIN.sampler} | REASONS[reason]
    path = saved(tmp_path / "r", sd_words, Recipe(**parts), samples=None)
    text, reasons = export.code(open_recipe(path), "x.py")
    assert reasons == [reason]
    assert reason in text
    assert text.count("accel.apply(pipe, ") == 1
    script = tmp_path / "x.py"
    script.write_text(text)
    generate.main([str(path), *PROMPTS, "--to", str(tmp_path / "own")])
    made, own = run_here(script, PROMPTS, plain=False), sorted((tmp_path / "own").glob("*.png"))
    assert all(torch.equal(a, pixels(b)) for a, b in zip(made, own, strict=True))


def test_a_folder_holds_the_pipeline_and_the_recipe(sd, sd_words, tmp_path):
    from diffusers import StableDiffusionPipeline

    folder = tmp_path / "deployed"
    assert cli.main([str(sd), "--to", "folder", "--output", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} >= {"model_index.json", "recipe.yaml", "unet", "vae"}
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    with accel.apply(pipe, folder):
        made = pipe(PROMPTS, generator=[torch.Generator().manual_seed(i) for i in (1, 2)], output_type="pt").images
    with open_recipe(sd).apply() as applied:
        call = {"generator": [torch.Generator().manual_seed(i) for i in (1, 2)], "output_type": "pt"}
        assert torch.equal(made, applied.pipe(PROMPTS, **call).images)
    assert accel.load_recipe(folder).samples.digests == accel.load_recipe(sd).samples.digests


def test_a_folder_holds_no_adapter_beside_the_weights(sd, tmp_path):
    opened = open_recipe(sd)
    opened.pipe.unet.peft_config = {"style": object()}
    with pytest.raises(ConfigError, match=r"unet has the layers of an adapter .*suite\.lora_fused=true"):
        export.write_folder(opened, tmp_path / "deployed")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{fast}"], "the following arguments are required: --to"),
        (["{fast}", "--to", "cod"], "invalid choice: 'cod'"),
        (["{tmp}/nowhere", "--to", "code"], "cannot read .*nowhere"),
        (["{fast}", "--to", "code", "suite=digits_dit"], "another model than that of this suite 'digits_dit'"),
        (["{fast}", "--to", "code", "sampler=ddim"], "accel export takes settings of the suite"),
        (["{fast}", "--to", "folder", "--device", "gpu"], "--device is 'gpu'"),
    ],
)
def test_bad_requests_are_one_error(words, reason, fast, tmp_path):
    words = [word.format(fast=fast, tmp=tmp_path) for word in words]
    with pytest.raises(AccelError, match=reason):
        cli.main([*words, "--output", str(tmp_path / "made")])
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept(fast, tmp_path):
    (tmp_path / "x.py").write_text("mine")
    with pytest.raises(ConfigError, match="is there already; choose another name with --output"):
        cli.main([str(fast), "--to", "code", "--output", str(tmp_path / "x.py")])


def test_values_are_python_again():
    value = {"a": [1, 2.5], "b": ("x",), "c": None, "d": torch.float16, "e": {"'": True}}
    assert eval(source(value), {"torch": torch}) == value


def test_points_are_not_exported(tmp_path):
    path = saved(tmp_path / "m", ["suite=mixture"], Recipe(FAST.sampler, Grid("karras")), samples=None)
    with pytest.raises(ConfigError, match="makes points, no pictures"):
        cli.main([str(path), "--to", "code", "--output", str(tmp_path / "x.py")])


def test_what_is_shown_pictures_is_no_script_of_words(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "pictures/one.png")
    model = hub_tiny.save("sd_pix2pix", tmp_path / "model")
    words = ["suite=hub", f"suite.model={model}", f"suite.inputs.path={tmp_path / 'pictures'}"]
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    words.append(f"suite.prompts.path={tmp_path / 'prompts.txt'}")
    path = saved(tmp_path / "m", words, PLAIN, samples=None)
    with pytest.raises(ConfigError, match=r"told pictures \(image\)"):
        cli.main([str(path), "--to", "code", "--output", str(tmp_path / "x.py")])
