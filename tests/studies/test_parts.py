"""`parts: true`: beside every combined recipe its plain recipe and each accelerating axis alone, once each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accel.cli.build import build
from accel.config import compose
from accel.errors import ConfigError, IncompatibleError
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.composition import compositions, quality
from accel.studies.runner import Runner
from accel.studies.study import Study
from accel.suites.mixture import MixtureSuite

COMMON = [
    "suite=mixture", "study=parted", "parts=true", "wandb=disabled", "evaluation.timing=false", "sampler=dpmpp_2m",
    "sampler.steps=3", 'baseline=["sampler=ddim","sampler.steps=4","guidance=cfg"]',
]  # fmt: skip


def request(tmp_path, *own):
    overrides = [*COMMON, f"results='{tmp_path}'", *own]
    return build(compose(overrides), overrides)


def test_a_combined_recipe_has_two_accelerating_axes(tmp_path):
    study = request(tmp_path, 'cells=[["guidance=ag","precision=bf16"],["guidance=cfg","precision=bf16"]]')
    both, one = study.cells
    assert both.combined
    assert not one.combined, "plain guidance accelerates nothing"
    assert list(both.parts()) == ["plain", "guidance", "precision"]
    assert not replace(both, precision=None).combined


def test_parts_are_rows_once_and_of_what_works_only(tmp_path):
    study = request(
        tmp_path, 'cells=[["guidance=ag","precision=bf16,fp32"],["guidance=cfg"],["guidance=ag","cache=deepcache"]]'
    )
    runner = Runner(study.suite, study.evaluation, study.results)
    refused = study._refusals(runner)
    assert [recipe.label for recipe, _ in refused] == ["dpmpp_2m-3 + ag2(x0>=0.99) + deepcache3b1"]
    jobs = [(job.role, job.recipe.label) for job in study._jobs(runner, refused)]
    assert jobs[2:] == [("cell", f"dpmpp_2m-3 + {name}") for name in (
        "ag2(x0>=0.99) + bf16", "ag2(x0>=0.99) + fp32", "cfg2", "ag2(x0>=0.99)", "cfg2 + bf16", "cfg2 + fp32",
    )]  # fmt: skip
    study.parts = False
    assert len(study._jobs(runner, refused)) == 2 + 3


def test_a_part_that_does_not_work_alone_is_a_row_with_the_reason(tmp_path):
    study = request(tmp_path, 'cells=[["guidance=ag","precision=bf16"],["guidance=cfg"]]')

    class Picky(Runner):
        def check(self, recipe):
            if recipe.precision and not recipe.combined:
                raise IncompatibleError("not alone")

    runner = Picky(study.suite, study.evaluation, study.results)
    refused = study._refusals(runner)
    assert [(recipe.label, why) for recipe, why in refused] == [("dpmpp_2m-3 + cfg2 + bf16", "not alone")]
    assert "dpmpp_2m-3 + cfg2 + bf16" not in [job.recipe.label for job in study._jobs(runner, refused)]


def test_nothing_combined_is_refused_and_said_in_a_shared_study(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no cell of study 'parted' has two accelerating axes"):
        request(tmp_path, 'cells=[["guidance=ag"],["precision=bf16"]]')
    assert request(tmp_path, "guidance=ag").merge
    assert "no parts to add" in " ".join(capsys.readouterr().out.split())


def test_a_search_has_its_own_parts(tmp_path):
    with pytest.raises(ConfigError, match="parts=true is for a study of recipes"):
        request(tmp_path, "search=timesteps", "sampler=ddim_accel")


def test_a_run_has_predicted_beside_measured(tmp_path, monkeypatch):
    """Adaptive guidance and a cast to float32; distances are to 0, as the exact solution would take long."""
    monkeypatch.setattr(MixtureSuite, "solve", lambda self, pipe, recipe, seed, a, b: torch.zeros(b - a, 2, 2, 4))
    monkeypatch.setattr(Study, "_jobs", lambda self, *args, jobs=Study._jobs: jobs(self, *args)[1:])  # no reference
    study = request(
        tmp_path, 'cells=[["guidance=ag","precision=fp32"]]', "evaluation.n=60", "evaluation.distance_n=60",
        "evaluation.batch=60", "evaluation.shard=60",
    )  # fmt: skip
    assert study.run() == 0
    loaded = Comparison.load(Results(tmp_path), "parted")
    (own,) = compositions(loaded)
    assert own.axes == ("guidance", "precision")
    assert own.plain.label == "dpmpp_2m-3 + cfg2"
    found = quality(loaded, own, "distance")
    values = {row.label: row.value("distance").value for row in loaded.competing}
    whole, guided, cast = (values[f"dpmpp_2m-3 + {name}"] for name in (
        "ag2(x0>=0.99) + fp32", "ag2(x0>=0.99)", "cfg2 + fp32",
    ))  # fmt: skip
    plain = values["dpmpp_2m-3 + cfg2"]
    assert found.beyond.value == pytest.approx(whole - guided - cast + plain, abs=1e-12)
    assert "## Composition" in (tmp_path / "tables" / "parted.md").read_text()
