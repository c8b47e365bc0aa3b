"""The whole road: a folder of somebody's weights -> recommend -> recipe.yaml -> the same images in a process without
Hydra, by a script without accel, and verified; other weights fail with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import pixels

from accel.cli import export, generate, recommend, verify
from accel.suites.shapes import ShapesSuite

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
sys.modules["hydra"] = sys.modules["omegaconf"] = None  # an import of them would raise
import accel
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
pipe.set_progress_bar_config(disable=True)
accel.apply(pipe, sys.argv[2])
from accel.core.seeds import generators

for i, image in enumerate(pipe(sys.argv[3:5], generator=generators(0, 0, 2)).images):
    image.save(sys.argv[5] + f"/{i}.png")
"""
WITHOUT = "import sys, runpy; sys.modules['accel'] = None; sys.argv = sys.argv[1:]; "
WITHOUT += "runpy.run_path(sys.argv[0], run_name='__main__')"
PROMPTS = ["a red circle", "a small blue square"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The pipeline of `shapes` with its small network, each weight changed a little, as save_pretrained writes it."""
    suite = ShapesSuite()
    pipe, noise = suite.pipeline(), torch.Generator().manual_seed(0)
    pipe.unet = suite.models()["small"]
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight += 0.01 * weight.abs().mean() * torch.randn(weight.shape, generator=noise)
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("road") / "model")
    return folder


@pytest.fixture(scope="module")
def recipe(model):
    """The folder of what is recommended for it."""
    prompts = model.parent / "prompts.txt"
    prompts.write_text("".join(f"a {s}{c} {f}\n" for s in ("", "small ", "large ") for c in COLOURS for f in FORMS))
    words = [f"model={model}", f"prompts={prompts}", "budget=60m", "steps=4", "scale=3",
             f"results={model.parent / 'out'}", f"to={model.parent / 'fast'}",
             "evaluation.n=60", "evaluation.distance_n=60", "evaluation.timing=false", "evaluation.controls=false",
             "evaluation.batch=30",
             "evaluation.device=cpu", "evaluation.margins.distance=0.5", "suite.converged_steps=4",
             "search.budget=2500", "search.halving.first=4", 'search.axes.sampler=["sampler=dpmpp_2m"]',
             'search.axes.steps=["sampler.steps=3","sampler.steps=2"]', 'search.axes.grid=["grid=none"]',
             'search.axes.guidance=["guidance=cfg guidance.scale=3"]', 'search.axes.cache=["cache=none"]']  # fmt: skip
    assert recommend.main(words) == 0
    return model.parent / "fast"


COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
FORMS = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def images(recipe):
    """What `accel generate` makes of the prompts."""
    assert generate.main([str(recipe), *PROMPTS, "--to", str(recipe.parent / "images")]) == 0
    return [pixels(path) for path in sorted((recipe.parent / "images").glob("*.png"))]


def run(words: list[str], folder: Path) -> list[torch.Tensor]:
    """The pictures that a process of its own leaves in `folder`."""
    folder.mkdir()
    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [pixels(path) for path in sorted(folder.glob("*.png"))]


def test_a_process_without_hydra_makes_the_same_images(model, recipe, images, tmp_path):
    made = run(["-c", SERVE, str(model), str(recipe), *PROMPTS, str(tmp_path / "own")], tmp_path / "own")
    assert len(made) == 2
    assert all(torch.equal(a, b) for a, b in zip(made, images, strict=True))


def test_so_does_a_script_without_accel(recipe, images, tmp_path, capsys):
    assert export.main([str(recipe), "--to", "code", "--output", str(tmp_path / "generate.py")]) == 0
    assert "plain diffusers, no accel" in capsys.readouterr().out
    made = run(["-c", WITHOUT, str(tmp_path / "generate.py"), *PROMPTS], tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(made, images, strict=True))


def test_it_verifies_until_the_weights_are_others(model, recipe, capsys):
    words = [str(recipe), "--no-quality", "--no-speed"]
    assert verify.main(words) == 0
    assert "verified" in capsys.readouterr().out
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    before = path.read_bytes()
    weights = load_file(path)
    weights["conv_in.bias"] += 1e-3
    try:
        save_file(weights, path)
        assert verify.main(words) == 1
        assert "unet" in capsys.readouterr().out
    finally:
        path.write_bytes(before)
