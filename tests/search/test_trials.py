"""What a run that is looked at while a search goes on shows of each trial."""

from __future__ import annotations

import io
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from quick_mixture import Quick
from rich.console import Console

from accel.config import compose, instantiate, recipe_of
from accel.core.recipe import Recipe
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.search.objective import Ledger
from accel.search.study import Cell, SearchStudy
from accel.search.trials import Trials
from accel.studies.evaluation import Evaluation


def objective(*scores):
    """Trials with these scores by N; None: refused. The most samples are 16, and the reference has the score 1."""
    trials = [
        SimpleNamespace(vector=(i,), scores=own or {}, n=max(own or {}, default=0), costs=(0.5 * i,) if own else None)
        for i, own in enumerate(scores)
    ]
    return SimpleNamespace(
        trials=dict(enumerate(trials)), halving=SimpleNamespace(rungs=(8, 16)),
        space=SimpleNamespace(label=lambda vector: f"v{vector[0]}"), relative=lambda trial, n: trial.scores[n] - 1,
    )  # fmt: skip


def test_each_trial_is_told_once_with_the_best_so_far():
    ledger = Ledger(nfe=40, seconds=2.0)
    one = objective({8: 0.5}, {8: 3, 16: 4}, None, {8: 1, 16: 2}, {8: 1, 16: 3})
    trials = Trials(ledger)
    rows = list(trials.new(one))
    assert [row["trial"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["score"] for row in rows] == [-0.5, 3, None, 1, 2]
    assert [row["best"] for row in rows] == [None, 3, 3, 1, 1]  # of what was scored on the most samples
    assert [row["n"] for row in rows] == [8, 16, 0, 16, 16]
    assert [row["recipe"] for row in rows] == ["v0", "v1", "v2", "v3", "v4"]
    assert rows[3]["cost"] == 1.5
    assert {row["nfe"] for row in rows} == {40}
    assert list(trials.new(one)) == []
    one.trials[9] = one.trials[0]
    assert [row["trial"] for row in trials.new(one)] == [6]
    [later] = trials.new(objective({16: math.inf}))
    assert (later["trial"], later["stage"], later["score"], later["best"]) == (7, 1, None, None)


def test_a_search_tells_its_trials_and_what_it_found(tmp_path, monkeypatch):
    told = {"rows": []}

    @contextmanager
    def spy(results, study, key, label, settings, mode):
        told.update(study=study, key=key, label=label, settings=settings, mode=mode)
        yield SimpleNamespace(log=told["rows"].append, found=lambda summary: told.update(found=summary))

    monkeypatch.setattr("accel.search.study.track_search", spy)
    cfg = compose(
        ["suite=mixture", "search=timesteps", "search.metric=distance", "search.halving.first=8",
         "search.halving.doublings=1", "search.budget=900", "search.finalists=1", "search.rescore_n=8",
         "search.compare=[trailing]", "sampler=ddim_accel", "sampler.steps=3", "optimiser=random"]
    )  # fmt: skip
    overrides = ("suite=mixture", "sampler=ddim_accel", "sampler.steps=3")
    cell = Cell(recipe_of(cfg), overrides, instantiate(cfg.search), instantiate(cfg.optimiser))
    evaluation = Evaluation(n=64, distance_n=64, shard=16, timing=False, device="cpu")
    results, quiet = Results(tmp_path), Console(file=io.StringIO())
    shown = "s", "t", Quick(), evaluation, results, Recipe(DiffusersSampler("EulerDiscreteScheduler", 4, "euler"))
    assert SearchStudy(*shown, [cell], console=quiet, wandb="online").run() == 0
    [record] = results.all("search")
    assert (told["study"], told["key"], told["mode"]) == ("s", record["id"], "online")
    assert told["settings"]["budget"] == 900
    rows = told["rows"]
    assert len(rows) > 5
    assert [row["trial"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["nfe"] <= record["cost"]["nfe"]
    bests = [row["best"] for row in rows if row["best"] is not None]
    assert bests == sorted(bests, reverse=True)
    scored = [row["score"] for row in rows if row["score"] is not None and row["n"] == 16]
    assert bests[-1] == pytest.approx(min(scored))
    assert told["found"]["run_found"] == record["command"]
    told["rows"] = []
    assert SearchStudy(*shown, [cell], console=quiet, wandb="online").run() == 0
    assert told["rows"] == [], "a search whose record is there is not run again"
