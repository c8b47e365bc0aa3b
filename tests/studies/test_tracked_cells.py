"""What wandb is told of cells while a study runs: each once, when the study can say what it is held against."""

from __future__ import annotations

import io

from quick_mixture import Quick
from rich.console import Console

from accel.core.recipe import Recipe
from accel.records import Results
from accel.results.tracked import record_run
from accel.samplers import DiffusersSampler
from accel.studies.evaluation import Evaluation
from accel.studies.study import Study


class Short(Quick):
    STEPS = 6


EVALUATION = Evaluation(n=64, distance_n=64, shard=32, timing=False, device="cpu")


def test_each_new_cell_is_logged_once_with_its_role_and_difference(tmp_path, monkeypatch):
    told = []

    def log(results, study, quality, timing, mode):
        told.append(record_run(results, study, quality, timing).arguments)

    monkeypatch.setattr("accel.studies.study.log_record", log)
    monkeypatch.setattr("accel.studies.study.log_study", lambda *args, **more: told.append(None))
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])
    results, quiet = Results(tmp_path), Console(file=io.StringIO())
    euler = [Recipe(DiffusersSampler("EulerDiscreteScheduler", steps, "euler")) for steps in (4, 2, 3)]

    def run(*cells):
        told.clear()
        assert Study("s", "t", Short(), EVALUATION, results, euler[0], list(cells), True, quiet).run() == 0

    run(euler[1])
    assert told.pop() is None, "the study comes last"
    roles = {one["config"]["label"]: one["config"]["role"] for one in told}
    assert roles == {"euler-6": "reference", "euler-4": "baseline", "euler-2": "cell"}
    assert len(told) == 3
    run(euler[1], euler[2])
    assert [one and one["config"]["label"] for one in told] == ["euler-3", None]
    run(euler[1], euler[2])
    assert told == []
