"""Students of the flow: trained in a few steps, and run by their names."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from accel.core.recipe import Recipe, accelerate
from accel.digests import weights_hex
from accel.errors import ConfigError, IncompatibleError
from accel.registry import method
from accel.suites.base import ASSETS
from accel.suites.digits import flow_train
from accel.suites.digits.flow import DigitsFlowSuite


@pytest.fixture
def assets(monkeypatch, tmp_path):
    """A copy of the shipped flow; trainings have three steps."""
    for name, stage in flow_train.STUDENTS.items():
        training = replace(stage.training, steps=3, batch=4, warmup=1, checkpoint_every=2)
        monkeypatch.setitem(flow_train.STUDENTS, name, replace(stage, training=training))
    return shutil.copytree(ASSETS / "digits_flow", tmp_path / "assets/digits_flow")


def test_a_straightened_flow_runs_as_a_flow_and_its_one_step_by_euler(assets, tmp_path):
    with pytest.raises(ConfigError, match=r"reflow1 is distilled from reflow.*train that first"):
        flow_train.train_part("reflow1", tmp_path / "w", assets)
    for part in ("reflow", "reflow1"):
        flow_train.train_part(part, tmp_path / "w", assets)
    suite = DigitsFlowSuite(flow_weights=str(assets))
    pipe, models = suite.pipeline(), suite.networks()
    found = {name: student.contract for name, student in suite.students().items()}
    assert {name: (own.kind, own.times) for name, own in found.items()} == {
        "reflow": ("straightened", ()), "reflow1": ("endpoint", (1000,)),
    }  # fmt: skip
    assert {own.teacher for own in found.values()} == {weights_hex(pipe.unet)}
    assert found["reflow"].bill["data"] == "labels"
    assert found["reflow1"].bill["teacher_evaluations"] == 3 * 4 * (10 + 4)

    def run(student: str, sampler: str, steps: int) -> None:
        recipe = Recipe(method("sampler", sampler, steps=steps), student=method("student", student))
        with accelerate(pipe, recipe, models=models) as ran:
            assert pipe(class_labels=[3, 4], output_type="pt").images.isfinite().all()
        assert {each.rows for each in ran.trace} == {2}

    run("reflow", "rf_solver", 3)
    run("reflow", "flow_euler", 2)
    run("reflow1", "flow_euler", 1)
    with pytest.raises(IncompatibleError, match="cannot be driven by FlowMatchLCMScheduler"):
        run("reflow1", "flow_lcm", 1)
