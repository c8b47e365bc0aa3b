"""Calibrations as jobs: what is finished is kept, and an interrupted one ends as if it had not been."""

from __future__ import annotations

import pytest
import torch

from accel.core.job import SECONDS, Job
from accel.core.recipe import Recipe
from accel.evaluation.generate import generate
from accel.precision import AdaRound, BinaryDM, QuEST, StridedSteps
from accel.precision.simulated import distillation
from accel.samplers import DiffusersSampler
from accel.testing import TinySuite

DDIM = DiffusersSampler("DDIMScheduler", 3)
KEEP = ("time_embedding.*", "down_blocks.*", "up_blocks.*")
SET = StridedSteps(samples=4, stride=1)
METHODS = {
    "quest": QuEST(keep=KEEP, rounding=AdaRound(iterations=4), calibration=SET, groups=2, iterations=10, batch=4),
    "binarydm": BinaryDM(keep=KEEP, calibration=SET, iterations=20, batch=4),
}


class Killed(Exception):
    pass


def test_a_part_is_made_once(tmp_path):
    job, made = Job(tmp_path / "job"), []

    def make():
        made.append(1)
        return {"x": torch.arange(3.0)}

    for _ in range(2):
        assert job.part("base/conv", make)["x"].tolist() == [0, 1, 2]
    assert Job(tmp_path / "job").part("base/conv", make)["x"].tolist() == [0, 1, 2]
    assert len(made) == 1
    (tmp_path / "job" / "base_conv.safetensors").write_bytes(b"damaged")
    job.part("base/conv", make)
    assert len(made) == 2
    job.finish()
    assert not (tmp_path / "job").exists()
    assert Job().part("x", make)
    assert Job().load("x") is None


def test_the_time_of_interrupted_attempts_counts(tmp_path):
    first = Job(tmp_path)
    first.before = 100.0
    first.save("x", {"x": torch.zeros(1)})
    assert Job(tmp_path).seconds >= 100
    assert first.load(SECONDS)[SECONDS] >= 100


def test_an_optimiser_goes_on_where_it_was(tmp_path):
    def steps(parameter, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (parameter.square().sum() + parameter[0]).backward()
            optimizer.step()

    whole = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    steps(whole, torch.optim.Adam([whole], 0.1), 9)
    half = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = torch.optim.Adam([half], 0.1)
    steps(half, optimizer, 4)
    Job(tmp_path).state("fit", optimizer, 4)
    again = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([again], 0.1)
    assert Job(tmp_path).resume("fit", optimizer) == 4
    steps(again, optimizer, 5)
    assert torch.equal(again, whole)
    assert Job(tmp_path).resume("other", optimizer) == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_calibration_ends_as_an_uninterrupted_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "KEPT_EVERY", 4)
    suite = TinySuite("unet")
    pipe = suite.pipeline()
    recipe = Recipe(DDIM, precision=METHODS[name])

    def sample(own, start, stop):
        return generate(pipe, suite, own, 99, start, stop, 4)

    def calibrated(folder, stop=None):
        steps = []

        def on_step(done, total):
            steps.append(done)
            if len(steps) == stop:
                raise Killed

        return recipe.precision.calibrate(pipe, recipe, sample, job=Job(folder, on_step))["base"], len(steps)

    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    wanted, total = calibrated(None)
    with pytest.raises(Killed):
        calibrated(tmp_path / "job", stop=total - 2)
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    found, left = calibrated(tmp_path / "job")
    assert left < total, "it went on, it did not begin again"
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
