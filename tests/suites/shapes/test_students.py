"""Students of shapes: guidance and few steps in one, trained on light data, and run by their names."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from accel.cli.train import main as train
from accel.core.recipe import Recipe, accelerate
from accel.core.student import contract_of
from accel.digests import weights_hex
from accel.errors import ConfigError, IncompatibleError
from accel.registry import method
from accel.suites.base import ASSETS
from accel.suites.distil import Stage, distil
from accel.suites.shapes import ShapesSuite, data, students
from accel.suites.shapes.encoded import Reader, to_model
from accel.suites.training.segments import Segments
from accel.suites.training.task import CONDITIONS

NAMES = ("pd4_cfg3", "pd2_cfg3")  # each from the one before


@pytest.fixture
def assets(monkeypatch, tmp_path):
    """A copy of what ships; trainings have two steps."""
    for name, stage in students.PARTS.items():
        training = replace(stage.training, steps=2, batch=4, warmup=1, checkpoint_every=1)
        task = replace(stage.task, warm=1) if hasattr(stage.task, "warm") else stage.task
        monkeypatch.setitem(students.PARTS, name, replace(stage, training=training, task=task))
    return shutil.copytree(ASSETS / "shapes", tmp_path / "assets/shapes")


def test_what_is_configured_is_what_is_trained():
    for name, stage in students.PARTS.items():
        own = method("student", name)
        assert (own.model, own.times, own.kind) == (name, tuple(stage.task.times), stage.task.kind)
        assert own.guidance == students.SCALE


def test_training_writes_students_that_are_guided_by_themselves(assets, tmp_path):
    for name in NAMES:
        assert train(["--suite", "shapes", "--part", name, "--assets", str(assets), "--work", str(tmp_path / "w"),
                      "--device", "cpu"]) == 0  # fmt: skip
    suite = ShapesSuite(weights=str(assets))
    pipe, found = suite.pipeline(), suite.students()
    four, two = (found[name].contract for name in NAMES)
    assert (four.times, two.times) == (students.FOUR, students.TWO)
    assert four.guidance == two.guidance == students.SCALE, "the halved one has it from its teacher"
    assert four.teacher == two.teacher == weights_hex(pipe.unet)
    assert four.bill["data"] == two.bill["data"] == "captions"
    assert four.bill["teacher_evaluations"] == 2 * 4 * 4 * 2
    assert two.bill["teacher_evaluations"] == four.bill["teacher_evaluations"] + 2 * 4 * 2
    net, large = found["pd4_cfg3"].load(), pipe.unet.state_dict()
    assert contract_of(net) == four
    moved = [float((value - large[name]).abs().max()) for name, value in net.state_dict().items()]
    assert 0 < max(moved) < 0.1, "it begins as its teacher"

    def run(name: str, **axes):
        recipe = Recipe(method("sampler", "dpmpp_2m", steps=len(found[name].contract.times)),
                        student=method("student", name), **axes)  # fmt: skip
        with accelerate(pipe, recipe, models=suite.networks()) as ran:
            images = pipe(**suite.conditions(0, 2), output_type="pt", **suite.guidance_arguments(recipe)).images
        assert images.isfinite().all()
        return ran

    ran = run("pd4_cfg3")
    assert ran.nfe == 4
    assert {each.rows for each in ran.trace} == {2}, "one row a sample"
    assert run("pd2_cfg3").nfe == 2
    with pytest.raises(IncompatibleError, match=r"guidance of scale 3 is built into it.*guidance=none"):
        run("pd4_cfg3", guidance=method("guidance", "cfg"))


def test_a_distribution_student_has_its_guidance_from_the_critics_rival(assets, tmp_path):
    for name in ("pd4_cfg3", "dmd4_cfg3"):
        students.train_part(name, tmp_path / "w", assets)
    suite = ShapesSuite(weights=str(assets))
    before, own = (suite.students()[name].contract for name in ("pd4_cfg3", "dmd4_cfg3"))
    assert (own.kind, own.times, own.guidance) == ("distribution", students.FOUR, students.SCALE)
    spent = own.bill["teacher_evaluations"] - before.bill["teacher_evaluations"]
    assert spent == 4 * 2, "two a guided evaluation, in the one step of the student"
    assert own.bill["data"] == "captions"
    pipe, recipe = suite.pipeline(), Recipe(method("sampler", "lcm", steps=4), student=method("student", "dmd4_cfg3"))
    with accelerate(pipe, recipe, models=suite.networks()) as ran:
        assert pipe(**suite.conditions(0, 2), output_type="pt", guidance_scale=1.0).images.isfinite().all()
    assert ran.nfe == 4
    with pytest.raises(IncompatibleError, match="cannot be driven by DPMSolver"):
        Recipe(method("sampler", "dpmpp_2m", steps=4), student=recipe.student).check(pipe, suite.networks())


def test_a_guided_student_is_its_teacher_under_guidance_at_any_times(monkeypatch, assets, tmp_path):
    monkeypatch.setattr(data, "TRAIN", 3)
    students.train_part("guided3", tmp_path / "w", assets)
    suite = ShapesSuite(weights=str(assets))
    own = suite.students()["guided3"].contract
    assert (own.kind, own.times, own.guidance) == ("guided", (), 3.0)
    assert own.bill["data"] == "training images, captions"
    pipe, recipe = (
        suite.pipeline(),
        Recipe(method("sampler", "dpmpp_2m", steps=3), student=method("student", "guided3")),
    )
    assert recipe.unaccelerated.guidance.scale == 3.0, "what it is held against is guided"
    with accelerate(pipe, recipe, models=suite.networks()) as ran:
        pipe(**suite.conditions(0, 1), output_type="pt", guidance_scale=1.0)
    assert {each.rows for each in ran.trace} == {1}


def test_built_in_guidance_is_not_multiplied(assets, tmp_path):
    stage = students.PARTS["pd4_cfg3"]
    students.train_part("pd4_cfg3", tmp_path / "w", assets)
    twice = {"again": replace(stage, task=Segments(students.FOUR, guidance=2.0, start="own"), parent="pd4_cfg3")}
    with pytest.raises(ConfigError, match=r"at guidance 2.0 from a student with guidance 3.0 built in"):
        distil(replace(students.FAMILY, parts=twice), "again", tmp_path / "w", assets, "cpu", lambda step, loss: None)


def test_batches_are_captions_of_training_scenes_and_their_latents(monkeypatch, assets, tmp_path):
    """By pictures and by captions alone, the same texts are given, as the pipeline encodes them."""
    monkeypatch.setattr(data, "TRAIN", 3)
    training = students.PARTS["pd4_cfg3"].training
    seeing = Stage(Segments(students.FOUR), training, students.ORIGINAL)
    reading = Stage(Segments(students.FOUR, start="own"), training, students.ORIGINAL)
    pipe = ShapesSuite(weights=str(assets)).pipeline()
    texts = [text for i in range(3) for text in data.said("train", i, data.CAPTIONS)]
    assert texts == [text for s in data.samples("train", 3, data.CAPTIONS) for text in s.captions]
    want, nothing = pipe.encode_prompt([*texts], "cpu", 1, True, [""] * len(texts))
    latents = []
    for stage in (seeing, reading):
        x0, given, absent = students.FAMILY.batches(stage, assets, tmp_path / "w", "cpu")(
            torch.Generator().manual_seed(0)
        )
        states = given["encoder_hidden_states"]
        distance = (states[:, None] - want[None]).abs().amax((2, 3)).amin(1)
        assert distance.max() < 2e-2, "of float16 where it is kept"
        assert (absent["encoder_hidden_states"] - nothing[:1]).abs().max() < 2e-2
        latents.append(x0)
    own = pipe.vae.encode(to_model(data.pictures("train", 3))).latent_dist.mean * pipe.vae.config.scaling_factor
    assert (latents[0][:, None] - own[None]).abs().amax((2, 3, 4)).amin(1).max() < 1e-2
    assert latents[1].shape == latents[0].shape
    assert reading.task.data == CONDITIONS
    with pytest.raises(ConfigError, match="train the parts in order"):
        Reader(tmp_path / "nowhere", "cpu")
