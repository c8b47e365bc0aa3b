"""A pipeline folder with further networks: the same images, and nothing loaded that was not saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import FAST, saved

import accel
from accel.cli import export as cli
from accel.core.conditioning import conditioned
from accel.core.recipe import Recipe
from accel.core.student import Contract
from accel.deploy.export import write_folder
from accel.deploy.opened import open_recipe
from accel.deploy.recipe_file import OtherModelError
from accel.digests import weights_hex
from accel.errors import AccelError, ConfigError, IntegrityError
from accel.guidance import AutoGuidance, ClassifierGuidance
from accel.precision import Cast
from accel.registry import method
from accel.stitching import TStitch
from accel.suites import shipped
from accel.suites.base import write_manifest
from accel.suites.pipeline import PixelPipeline

RECIPES = {
    "stitch": Recipe(FAST.sampler, stitch=TStitch(("small",), (0.5,)), precision=Cast("bfloat16")),
    "autoguidance": Recipe(FAST.sampler, guidance=AutoGuidance(2.0, "small")),
}
WEIGHTS = "small/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def recipes(light_words, tmp_path_factory):
    """The folder of each of RECIPES."""
    root = tmp_path_factory.mktemp("recipes")
    return {name: saved(root / name, light_words, recipe, samples=None).parent for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def exported(recipes, tmp_path_factory):
    """The pipeline folder of each."""
    root = tmp_path_factory.mktemp("exported")
    for name, recipe in recipes.items():
        assert cli.main([str(recipe), "--to", "folder", "--output", str(root / name)]) == 0
    return {name: root / name for name in recipes}


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the stitched one, to be damaged."""
    return Path(shutil.copytree(exported["stitch"], tmp_path / "copy"))


def pipeline(folder):
    pipe = PixelPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(applied):
    noise = [torch.Generator().manual_seed(i) for i in (1, 2)]
    return applied.pipe(class_labels=[3, 5], generator=noise, output_type="pt").images


@pytest.mark.parametrize("name", RECIPES)
def test_a_folder_brings_its_further_networks(name, recipes, exported):
    place = exported[name] / "networks"
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        "MANIFEST.json", "small/config.json", WEIGHTS,
    }  # fmt: skip
    with open_recipe(recipes[name]).apply() as applied:
        want = images(applied)
    for recipe in (exported[name], accel.load_recipe(exported[name])):
        with accel.apply(pipeline(exported[name]), recipe) as applied:
            assert torch.equal(images(applied), want)
            assert any(call.model == "small" for call in applied.run.trace)


def test_a_network_that_is_given_is_taken(folder, recipes):
    shutil.rmtree(folder / "networks")
    models = open_recipe(recipes["stitch"]).models
    with accel.apply(pipeline(folder), folder, models=models) as applied:
        assert applied.run is not None


def spoilt(folder):
    path = folder / "networks" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other(folder):
    """Other weights, and a manifest of them."""
    path = folder / "networks" / WEIGHTS
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    write_manifest(folder / "networks")


def without(name, remade=False):
    def change(folder):
        path = folder / "networks" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if remade:
            write_manifest(folder / "networks")

    return change


def added(name):
    def change(folder):
        (folder / "networks" / name).write_text("raise SystemExit")
        write_manifest(folder / "networks")

    return change


def config(**entries):
    def change(folder):
        path = folder / "networks/small/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
        write_manifest(folder / "networks")

    return change


CLASS = "a pipeline folder holds networks of diffusers' own classes alone, for it never names code"
DAMAGES = {
    "a byte": (spoilt, IntegrityError, rf"networks/{WEIGHTS} is damaged: sha256"),
    "others": (other, OtherModelError, r"than that of this pipeline: small \(\w+ was measured, \w+ is here"),
    "no weights": (without(WEIGHTS), IntegrityError, rf"networks/{WEIGHTS} is missing"),
    "nor listed": (without(WEIGHTS, True), ConfigError, "cannot load .*networks/small: "),
    "no network": (without("small"), IntegrityError, r"needs 'small' beside the pipeline, and .*networks/small is "),
    "none at all": (without("."), IntegrityError, "needs 'small' beside the pipeline"),
    "no manifest": (without("MANIFEST.json"), IntegrityError, "no weights at .*networks"),
    "a scheduler": (config(_class_name="DDIMScheduler"), ConfigError, f"the class 'DDIMScheduler', and {CLASS}"),
    "a module": (config(_class_name="os.path"), ConfigError, f"the class 'os.path', and {CLASS}"),
    "accel's": (config(_class_name="MixtureDenoiser"), ConfigError, f"the class 'MixtureDenoiser', and {CLASS}"),
    "nothing": (config(_class_name=None), ConfigError, f"the class None, and {CLASS}"),
    "another": (config(_class_name="UNet1DModel"), ConfigError, "networks/small"),
    "kernels": (config(attn_implementation="x/y"), ConfigError, "attn_implementation 'x/y', which may be code"),
    "quantised": (config(quantization_config={}), ConfigError, "has a quantization_config; allowed: plain weights"),
    "code": (added("small/diffusers.py"), ConfigError, "holds 'diffusers.py', which is not of the network"),
    "a pickle": (added("small/diffusion_pytorch_model.bin"), ConfigError, "holds 'diffusion_pytorch_model.bin'"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_not_saved_is_refused(damage, folder):
    change, kind, reason = DAMAGES[damage]
    change(folder)
    pipe = pipeline(folder)
    with pytest.raises(kind, match=reason) as caught:
        accel.apply(pipe, folder)
    assert "small" in str(caught.value) or damage == "no manifest"
    assert "forward" not in vars(pipe.unet), "nothing was applied"


def test_what_no_folder_can_hold_is_refused(light_words, recipes, tmp_path):
    def refusal(opened):
        with pytest.raises(AccelError) as caught:
            write_folder(opened, tmp_path / "f")
        assert not (tmp_path / "f").exists()
        return str(caught.value)

    guided = Recipe(FAST.sampler, guidance=ClassifierGuidance())
    opened = open_recipe(saved(tmp_path / "guided", light_words, guided, samples=None))
    assert f"the further network 'classifier' is a PixelClassifier, and {CLASS}; use --to code" in refusal(opened)
    opened = open_recipe(recipes["stitch"])
    conditioned(opened.models["small"], dict)
    assert "'small' has a conditioning of its own (accel.core.conditioning), which no folder holds" in refusal(opened)
    opened = open_recipe(RECIPES["stitch"].save(tmp_path / "bare", suite=light_words))
    assert "has no digest of its further network 'small', by which it would be known in a folder" in refusal(opened)


def test_a_folder_brings_a_student_with_its_contract(light_digits, tmp_path):
    weights = Path(shutil.copytree(light_digits, tmp_path / "digits"))
    teacher, student = pipeline(weights / "large"), pipeline(weights / "small")
    contract = Contract("endpoint", (999, 350), weights_hex(teacher.unet), 1.0, {"seconds": 1.0})
    shipped.save(student, contract, tmp_path / "digits_students/pd2")
    recipe = Recipe(method("sampler", "ddim_accel", steps=2), student=method("student", "pd2"))
    path = saved(tmp_path / "recipe", ["suite=digits", f"+suite.weights={weights}"], recipe, samples=None).parent
    with open_recipe(path).apply() as applied:
        want = images(applied)
        assert applied.run.nfe == 2
    folder = tmp_path / "folder"
    assert cli.main([str(path), "--to", "folder", "--output", str(folder)]) == 0
    with accel.apply(pipeline(folder), folder) as applied:
        assert torch.equal(images(applied), want)
    said = json.loads((folder / "networks/pd2/student.json").read_text())
    (folder / "networks/pd2/student.json").write_text(json.dumps(said | {"times": [999, 300]}))
    with pytest.raises(IntegrityError, match=r"student\.json is damaged"):
        accel.apply(pipeline(folder), folder)
    write_manifest(folder / "networks")
    with pytest.raises(AccelError, match=r"timesteps 999, 300, and student\.times are 999, 350"):
        accel.apply(pipeline(folder), folder)
