"""Converged samples that ship with suite digits: used, the sampler's own, and unused once anything differs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from accel.core.recipe import Recipe, accelerate
from accel.evaluation.generate import generate
from accel.evaluation.score import distances
from accel.files import load_tensors
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies import samples
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.base import ASSETS
from accel.suites.digits import DigitsSuite

SHIPPED = 512


class Generated(Exception):
    """Somebody samples."""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """runner(suite, **settings): whoever samples with it raises Generated."""

    def refuse(*args):
        raise Generated

    monkeypatch.setattr(samples, "generate", refuse)

    def made(suite=None, said=lambda text: None, **settings):
        evaluation = Evaluation(**{"n": 100, "distance_n": 100, "device": "cpu", "timing": False} | settings)
        return Runner(suite or DigitsSuite(), evaluation, Results(tmp_path), said)

    return made


def test_what_ships_is_used_today_and_its_row_too(runner, monkeypatch):
    monkeypatch.setattr("accel.studies.runner.counted_cost", lambda *args: {"macs": 1.0, "strip": ""})
    used = runner(n=200)
    converged = used.suite.converged(None)
    (images,) = load_tensors(used.suite.shipped()).values()
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (SHIPPED, 1, 16, 16))
    assert torch.equal(used.converged_images(Recipe(DiffusersSampler("DDIMScheduler", 5))), images[:128])
    assert used.missing_samples(converged) == 0
    record = used.quality(converged)
    assert record["shipped"] == 200
    assert record["values"]["accuracy"]["value"] > 0.95
    assert "distance" not in record["values"]


def test_it_is_what_the_sampler_makes(runner):
    suite, pipe = DigitsSuite(), DigitsSuite().pipeline()
    converged = suite.converged(None)
    with accelerate(pipe, converged):
        made = generate(pipe, suite, converged, 0, 190, 200, 10)
    (images,) = load_tensors(suite.shipped()).values()
    assert distances(made, images[190:200]).max() < 1e-4, "another machine and batch may round otherwise"


@dataclass(frozen=True)
class Retrained(DigitsSuite):
    def fingerprint(self):
        return super().fingerprint() | {"large/unet/diffusion_pytorch_model.safetensors": "0" * 64}


@dataclass(frozen=True)
class Damaged(DigitsSuite):
    path: str = ""

    def shipped(self):
        from pathlib import Path

        return Path(self.path)


def test_weights_recipe_seed_and_number_decide(runner, tmp_path):
    other = Recipe(DiffusersSampler("UniPCMultistepScheduler", 50, "unipc"))
    usual, own = runner(), DigitsSuite().converged(None)
    assert usual.shipped(own) == SHIPPED
    assert [usual.shipped(other), usual.shipped(own, seed=1)] == [0, 0]
    for suite, settings in ((Retrained(), {}), (DigitsSuite(converged_steps=49), {}), (None, {"seed": 1}),
                            (None, {"n": 600, "distance_n": 600})):  # fmt: skip
        with pytest.raises(Generated):
            runner(suite, **settings).converged_images(other)
    file = tmp_path / "images.safetensors"
    file.write_bytes((ASSETS / "digits_converged/images.safetensors").read_bytes()[:-1])
    said = []
    with pytest.raises(Generated):
        runner(Damaged(path=str(file)), said.append).converged_images(other)
    assert said[0].startswith(f"{file} is damaged or not there; its images are made anew.")


def test_more_samples_than_ship_are_added_to_them(runner):
    more = runner(n=576, distance_n=128)
    assert more.missing_samples(more.suite.converged(None)) == 64
