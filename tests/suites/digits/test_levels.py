"""The noise-level classifier of suite `digits`: how well it tells levels, and what happens when its file changes."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from accel.errors import IntegrityError
from accel.samplers.langevin_chain import LevelEstimator
from accel.suites.base import ASSETS, check_manifest
from accel.suites.digits import data
from accel.suites.digits import levels_train as training
from accel.suites.digits.levels import FILE, LEVELS, REMEDY, SIGMA_MAX, SIGMA_MIN, LevelNet, level_classifier, sigmas

SHIPPED = ASSETS / "digits_levels"
BEST = 1 / math.sqrt(2 * data.SIZE**2)  # relative error of the level of 256 normal numbers, which are all there is


def log_errors(part: str, sigma: float, seed: int = 0) -> torch.Tensor:
    """log(found / true) for the images of one part of the split with noise of `sigma`."""
    images = data.to_model(data.load(part)[0])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (level_classifier()(images + sigma * noise) / sigma).log()


@pytest.mark.parametrize(
    ("sigmas_", "rms"), [((0.05, 0.1), 0.13), ((0.2, 0.3, 0.5, 0.7), 0.085), ((1.0, 1.5, 2.0, 3.0, 5.0, 10.0), 0.07)]
)
def test_levels_of_held_out_images_are_told_almost_as_well_as_can_be(sigmas_, rms):
    """Root mean square error of log sigma, between levels, too; the bound of pure noise is 0.044."""
    for i, sigma in enumerate(sigmas_):
        error = log_errors("held_out", sigma, seed=i)
        assert error.square().mean().sqrt() < rms, sigma
        assert error.square().mean().sqrt() > 0.9 * BEST, "nobody can do better"
        assert error.mean().abs() < 0.03, sigma


def test_images_that_it_was_trained_on_are_no_easier():
    for sigma in (0.3, 1.0, 3.0):
        seen, unseen = (log_errors(part, sigma).square().mean().sqrt() for part in ("train", "held_out"))
        assert seen > 0.85 * unseen


def test_generated_digits_are_told_like_real_ones(digits, pipe):
    """What a chain is made of: samples of the model, not of the data."""
    from accel.core.recipe import Recipe, accelerate
    from accel.evaluation.generate import generate
    from accel.samplers import DiffusersSampler

    recipe = Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 15, options={"final_sigmas_type": "zero"}))
    with accelerate(pipe, recipe):
        x0 = generate(pipe, digits, recipe, 0, 0, 20, 20).repeat(20, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    error = (level_classifier()(x0 + noise)).log()
    assert error.square().mean().sqrt() < 0.09
    assert error.mean().abs() < 0.05


def test_levels_are_log_uniform_and_found_one_by_one():
    levels = sigmas()
    assert (len(levels), float(levels[0]), float(levels[-1])) == (LEVELS, pytest.approx(0.01), pytest.approx(20.0))
    assert np.diff(levels.log().numpy()) == pytest.approx(math.log(SIGMA_MAX / SIGMA_MIN) / (LEVELS - 1))
    found = level_classifier()
    assert isinstance(found, LevelEstimator)
    assert (found.shape, found.bounds) == ((1, 16, 16), (SIGMA_MIN, SIGMA_MAX))
    x = (
        torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-1, 1, 6)[:, None, None, None]
    )
    together = found(x)
    assert together.dtype == torch.float64
    assert all((levels == s).any() for s in together)
    assert torch.equal(together, torch.cat([found(x[i : i + 1]) for i in range(6)]))
    assert torch.equal(together, found(x.double())), "in whatever precision the chain walks"
    assert torch.isfinite(found(torch.zeros(1, 1, 16, 16))).all(), "nothing has no root mean square to divide by"


# --- files


def test_the_shipped_file_is_small_and_in_half_precision():
    from safetensors.torch import load_file

    assert (SHIPPED / FILE).stat().st_size < 300_000
    assert {t.dtype for t in load_file(SHIPPED / FILE).values()} == {torch.float16}
    assert level_classifier().sha256 == check_manifest(SHIPPED, REMEDY)[FILE]
    assert level_classifier() is level_classifier(), "loaded once"


@pytest.mark.parametrize("how", ["damaged", "missing", "no manifest", "no folder"])
def test_without_its_whole_file_there_is_no_classifier(tmp_path, how):
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "levels"))
    if how == "damaged":
        path = folder / FILE
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif how == "missing":
        (folder / FILE).unlink()
    elif how == "no manifest":
        (folder / "MANIFEST.json").unlink()
    else:
        shutil.rmtree(folder)
    with pytest.raises(IntegrityError, match=r"git checkout.*make train SUITE=digits_levels"):
        level_classifier(str(folder))


# --- training


def test_training_writes_what_the_loader_reads(tmp_path, monkeypatch):
    short = replace(training.PARTS["levels"], steps=3, batch=16, warmup=1)
    monkeypatch.setitem(training.PARTS, "levels", short)
    seen = []
    net = training.train_part("levels", tmp_path / "work", tmp_path / "out", on_step=lambda *step: seen.append(step))
    assert [s for s, _ in seen] == [1, 2, 3]
    found = level_classifier(str(tmp_path / "out"))
    assert found.sha256 != level_classifier().sha256
    for a, b in zip(net.parameters(), found.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_level_that_was_added():
    """All levels, each once in a batch of their number; images of nothing show which noise each row got."""
    seen = []

    class Probe(LevelNet):
        def forward(self, x):
            seen.append(x)
            return torch.nn.functional.one_hot(torch.arange(LEVELS), LEVELS).float().roll(int(self.shift), 0) * 50

    net, rows = Probe(), torch.zeros(LEVELS, 1, 16, 16)
    losses = []
    for shift in range(LEVELS):  # the offset of the levels in the batch is drawn
        net.shift = shift
        losses.append(float(training.level_loss(net, rows, None, torch.Generator().manual_seed(0))))
    assert sorted(losses)[:2] == [pytest.approx(0.0, abs=1e-6), pytest.approx(50.0, abs=1e-3)], (
        "one shift fits all rows"
    )
    right = int(np.argmin(losses))
    level = sigmas().float().roll(right)
    spread = seen[0].flatten(1).std(1)
    assert (spread / level - 1).abs().max() < 0.25


def test_a_few_steps_of_training_lower_the_loss(tmp_path):
    from accel.suites.training.loop import train

    torch.manual_seed(0)
    images, labels = data.load("train")
    losses, cfg = [], replace(training.PARTS["levels"], steps=60, warmup=10, batch=64)
    train(LevelNet(), training.level_loss, data.to_model(images), labels, cfg, tmp_path / "a.safetensors",
          on_step=lambda step, loss: losses.append(loss))  # fmt: skip
    assert losses[0] > 0.9 * math.log(LEVELS), "knows nothing"
    assert sum(losses[-10:]) / 10 < losses[0] - 1
