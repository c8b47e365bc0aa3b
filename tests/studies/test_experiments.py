"""Every experiment of conf/ composes, and asks for the very records that are tracked: their ids are still valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel import config
from accel.cli import build
from accel.evaluation.score import EPOCH
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.studies.runner import Runner

TRACKED = Results(Path(__file__).parents[2] / "results")
EXPERIMENTS = [name for name in config.groups()["experiment"] if name != "none"]
# Experiments that compose, and whose records are not tracked yet, each with the reason.
NOT_RUN: dict[str, str] = {}


def each_alternative_once(cells) -> list[list[str]]:
    """The fewest of the expanded cells that hold every alternative of every override: a product of many composes for
    a minute."""
    kept = []
    for cell in cells:
        expanded = config.expand_cells([cell])
        unseen = {override for overrides in expanded for override in overrides}
        for overrides in expanded:
            if unseen & set(overrides):
                kept.append(overrides)
                unseen -= set(overrides)
    return kept


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_and_its_records_are_found(name, monkeypatch):
    monkeypatch.setattr(build, "expand_cells", each_alternative_once)
    cfg = config.compose([f"experiment={name}"])
    if build.searches(cfg):
        assert build.build_search(cfg, [f"experiment={name}"]).cells
        return
    study = build.build_study(cfg, [f"experiment={name}"])
    assert len(study.cells) >= 2
    if name in NOT_RUN:
        return
    runner = Runner(study.suite, study.evaluation, TRACKED)
    tracked = TRACKED.load_study(name)["rows"]
    rows = {row["quality"] for row in tracked if row["quality"]}
    refused = {row["label"] for row in tracked if row["refused"]}
    for recipe in (study.baseline, *study.cells):
        ids = (runner.quality_id(recipe, epoch) for epoch in range(EPOCH, 0, -1))
        assert recipe.label in refused or any(own in rows for own in ids), recipe.label


@pytest.mark.parametrize("name", NOT_RUN)
def test_what_is_said_not_to_have_run_has_not(name):
    """Once its study is tracked, whole or in part, its records must be asked for like all others."""
    assert name in EXPERIMENTS
    assert name not in TRACKED.studies(), f"{name} is tracked: take it off NOT_RUN."


def test_margins_are_in_no_id(monkeypatch):
    """They say how tables are read: another margin finds the same records and writes itself into the manifest."""
    monkeypatch.setattr(build, "expand_cells", each_alternative_once)
    ids, margins = [], []
    for own in ([], ["evaluation.margins.fid=0.5", "evaluation.margins.recall=null"]):
        overrides = ["experiment=demo", *own]
        study = build.build_study(config.compose(overrides), overrides)
        runner = Runner(study.suite, study.evaluation, TRACKED)
        ids.append([(runner.quality_id(r), runner.timing_id(r, study.baseline)) for r in study.cells])
        margins.append(study.margins)
    assert ids[0] == ids[1]
    assert (margins[0].fid, margins[0].recall, margins[0].fid_least) == (0.1, 0.02, 0.1)  # the last is the suite's
    assert (margins[1].fid, margins[1].recall, margins[1].fid_least) == (0.5, None, 0.1)


@pytest.mark.parametrize("name", TRACKED.studies())
def test_the_margins_of_a_tracked_study_are_the_defaults_of_its_suite(name):
    manifest = TRACKED.load_study(name)
    least = 0.1 if manifest["suite"] in ("digits", "digits_flow", "digits_dit") else None
    assert Margins.from_dict(manifest["margins"]) == Margins(fid_least=least)


@pytest.mark.parametrize("name", TRACKED.studies())
def test_every_row_of_a_tracked_study_has_its_records(name):
    for row in TRACKED.load_study(name)["rows"]:
        for kind in ("quality", "timing"):
            assert row[kind] is None or TRACKED.load(kind, row[kind])["id"] == row[kind]
