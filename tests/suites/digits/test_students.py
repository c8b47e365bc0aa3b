"""Students of the digits: those that ship, and their training on light networks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from accel.cli.train import main as train
from accel.core.recipe import Recipe, accelerate
from accel.core.student import contract_of
from accel.digests import weights_hex
from accel.errors import ConfigError, IntegrityError
from accel.records import describe
from accel.registry import groups, method
from accel.results.students import break_even
from accel.suites.digits import DigitsSuite, flow_train, students
from accel.suites.shapes import students as shapes
from accel.suites.students import folder_of

NAMES = ("pd4", "pd2", "pd1")  # each from the one before
SHIPPED = {*NAMES, "dmd1"}


@pytest.fixture
def quick(monkeypatch):
    """Three steps a stage."""
    for name, stage in students.PARTS.items():
        training = replace(stage.training, steps=3, batch=4, warmup=1, checkpoint_every=2)
        task = replace(stage.task, warm=1) if hasattr(stage.task, "warm") else stage.task
        monkeypatch.setitem(students.PARTS, name, replace(stage, training=training, task=task))


@pytest.fixture
def assets(light_digits, tmp_path):
    return shutil.copytree(light_digits, tmp_path / "assets/digits")


def stage_of(name: str):
    return students.PARTS[name].task


def test_what_ships_is_what_the_configuration_and_the_teacher_are():
    suite = DigitsSuite()
    found = suite.students()
    assert {*found} == SHIPPED
    parts = students.PARTS | flow_train.STUDENTS
    assert {*parts, *shapes.PARTS} == {*groups()["student"]} - {"none"} >= SHIPPED
    for name, stage in parts.items():
        own = method("student", name)
        assert (own.model, own.times, own.kind) == (name, tuple(stage.task.times), stage.task.kind)
        assert own.guidance == stage.task.guidance
    teacher = weights_hex(suite.pipeline().unet)
    for name, student in found.items():
        assert (student.contract.times, student.contract.kind) == (tuple(stage_of(name).times), stage_of(name).kind)
        assert student.contract.teacher == teacher
        assert student.contract.bill["seconds"] > 0
    bills = [found[name].contract.bill for name in NAMES]
    assert bills[0]["macs"] < bills[1]["macs"] < bills[2]["macs"], "a stage's bill holds those before it"


@pytest.mark.parametrize(("name", "least"), [("pd4", 0.97), ("pd1", 0.9), ("dmd1", 0.95)])
def test_its_digits_are_recognised(name, least):
    """What ships draws what it is asked for; how well, tables say."""
    suite = DigitsSuite()
    pipe, models, labels = suite.pipeline(), suite.networks(), [i % 10 for i in range(60)]
    steps = len(method("student", name).times)
    recipe = Recipe(method("sampler", "ddim_accel", steps=steps), student=method("student", name))
    noise = [torch.Generator().manual_seed(i) for i in range(60)]
    with accelerate(pipe, recipe, models=models):
        images = pipe(class_labels=labels, generator=noise, output_type="pt").images
    assert suite.per_sample(images, {"class_labels": labels})["accuracy"].mean() >= least


def test_training_writes_students_with_their_bills(assets, quick, tmp_path):
    for name in NAMES:
        assert train(["--suite", "digits", "--part", name, "--assets", str(assets), "--work", str(tmp_path / "w"),
                      "--device", "cpu"]) == 0  # fmt: skip
    suite = DigitsSuite(weights=str(assets))
    found = suite.students()
    four, two, one = (found[name].contract for name in NAMES)
    assert (four.steps, two.steps, one.steps) == (4, 2, 1)
    assert four.teacher == one.teacher == weights_hex(suite.pipeline().unet), "the original, not the parent"
    assert four.bill["teacher_evaluations"] == 3 * 4 * 4
    assert two.bill["teacher_evaluations"] == four.bill["teacher_evaluations"] + 3 * 4 * 2
    assert two.bill["student_evaluations"] == 2 * 3 * 4 * 3
    macs = four.bill["macs"] / (3 * 4 * (4 + 3))
    assert one.bill["macs"] == pytest.approx(3 * 4 * macs * ((4 + 3) + 2 * (2 + 3)))
    net = found["pd4"].load()
    assert contract_of(net) == four
    large = suite.pipeline().unet.state_dict()
    moved = [float((value - large[name]).abs().max()) for name, value in net.state_dict().items()]
    assert 0 < max(moved) < 0.02, "it begins as its teacher"


def test_a_distribution_student_begins_as_its_parent_and_learns_from_the_original(assets, quick, tmp_path):
    for name in (*NAMES, "dmd1"):
        students.train_part(name, tmp_path / "w", assets)
    found = DigitsSuite(weights=str(assets)).students()
    before, own = found["pd1"].contract, found["dmd1"].contract
    assert (own.kind, own.times, own.guidance, own.teacher) == ("distribution", (999,), 1.0, before.teacher)
    spent = {name: value - before.bill.get(name, 0) for name, value in own.bill.items() if name != "data"}
    assert (spent["steps"], spent["samples"]) == (3, (2 + 3 * 2) * 4)
    assert (spent["teacher_evaluations"], spent["critic_evaluations"]) == (2 * 4, (3 * 2 * 3 + 2) * 4)
    assert spent["student_evaluations"] == (3 * 2 + 2 * 3) * 4
    assert own.bill["data"] == "training images, labels"
    parent, net = found["pd1"].load().state_dict(), found["dmd1"].load().state_dict()
    moved = max(float((value.float() - parent[name].float()).abs().max()) for name, value in net.items())
    assert 0 < moved < 0.02


def test_a_consistency_student_is_trained_and_run_by_its_name(assets, quick, tmp_path):
    students.train_part("ect2", tmp_path / "w", assets)
    suite = DigitsSuite(weights=str(assets))
    contract = suite.students()["ect2"].contract
    assert (contract.kind, contract.bill["teacher_evaluations"]) == ("consistency", 0)
    assert contract.bill["student_evaluations"] == 3 * 4 * 4
    recipe = Recipe(method("sampler", "lcm", steps=2), student=method("student", "ect2"))
    pipe = suite.pipeline()
    with accelerate(pipe, recipe, models=suite.networks()) as run:
        assert pipe(class_labels=[3], output_type="pt").images.isfinite().all()
        assert run.nfe == 2


def test_a_guided_student_says_its_scale(assets, quick, tmp_path):
    students.train_part("guided2", tmp_path / "w", assets)
    suite = DigitsSuite(weights=str(assets))
    contract = suite.students()["guided2"].contract
    assert (contract.kind, contract.guidance, contract.times, contract.steps) == ("guided", 2.0, (), 0)
    Recipe(method("sampler", "ddim", steps=3), student=method("student", "guided2")).check(
        suite.pipeline(), suite.networks()
    )


def test_another_parent_is_not_resumed(assets, quick, tmp_path):
    students.train_part("pd4", tmp_path / "w", assets)
    students.train_part("pd2", tmp_path / "w", assets)
    (tmp_path / "w/pd4.safetensors").unlink()
    stage = students.PARTS["pd4"]
    students.PARTS["pd4"] = replace(stage, training=replace(stage.training, seed=99))
    students.train_part("pd4", tmp_path / "w", assets)
    with pytest.raises(ConfigError, match="made with other training settings"):
        students.train_part("pd2", tmp_path / "w", assets)


def test_a_resumed_training_is_the_uninterrupted_one(assets, quick, tmp_path):
    students.train_part("pd4", tmp_path / "a", assets)
    whole = folder_of(assets) / "pd4/unet/diffusion_pytorch_model.safetensors"
    want = whole.read_bytes()

    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        students.train_part("pd4", tmp_path / "b", assets, on_step=stop)
    (tmp_path / "b/pd4.seconds").write_text("1000.0")
    students.train_part("pd4", tmp_path / "b", assets)
    assert DigitsSuite(weights=str(assets)).students()["pd4"].contract.bill["seconds"] > 1000, "of both commands"
    assert whole.read_bytes() == want


def test_a_student_without_its_parent_is_refused(assets, quick, tmp_path):
    with pytest.raises(ConfigError, match=r"pd2 is distilled from pd4.*train that first"):
        students.train_part("pd2", tmp_path / "w", assets)


def test_a_damaged_student_says_what_mends_it(assets, quick, tmp_path):
    students.train_part("pd4", tmp_path / "w", assets)
    path = folder_of(assets) / "pd4/student.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance": 2.0}))
    with pytest.raises(IntegrityError, match="make train SUITE=digits"):
        DigitsSuite(weights=str(assets)).students()["pd4"].load()


def test_recipes_without_a_student_are_described_as_before():
    assert "student" not in describe(Recipe(method("sampler", "ddim", steps=4)))
    assert break_even({"macs": 10.0}, *[type("Row", (), {"cost": lambda self, key, c=c: c})() for c in (1, 3)]) == 5
