"""Killed at random moments and started again: nothing that was finished is made twice, and the tables are the same.

A study with a calibration, a search, and the writing of tables. ACCEL_KILLS=60 kills more often than the suite has time
for; ACCEL_KILLS_SEED chooses other moments.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from forks import forked_and_logged
from quick_mixture import Quick
from rich.console import Console

from accel.config import choice_of, compose, instantiate, recipe_of
from accel.core.recipe import Recipe
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.search.study import Cell, SearchStudy
from accel.studies.evaluation import Evaluation
from accel.studies.study import Study

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
KILLS, SEED = int(os.environ.get("ACCEL_KILLS", "4")), int(os.environ.get("ACCEL_KILLS_SEED", "0"))
EVALUATION = Evaluation(n=64, distance_n=64, shard=16, timing=False, device="cpu")


@pytest.fixture
def work(monkeypatch):
    """work(root): the study, and then the search, in the folder `root`."""
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])  # a second each
    euler = [Recipe(DiffusersSampler("EulerDiscreteScheduler", steps, "euler")) for steps in (2, 3, 4)]
    cells = [*euler[:2], Recipe(choice_of("sampler", "dc_solver", "sampler.steps=3"))]  # whose ratios are searched
    cfg = compose(
        ["suite=mixture", "search=timesteps", "search.metric=distance", "search.halving.first=8",
         "search.halving.doublings=1", "search.budget=900", "search.finalists=1", "search.rescore_n=8",
         "search.compare=[trailing,karras]", "sampler=ddim_accel", "sampler.steps=3", "optimiser=evolution"]
    )  # fmt: skip
    cell = Cell(recipe_of(cfg), ("suite=mixture", "sampler=ddim_accel", "sampler.steps=3"), instantiate(cfg.search),
                instantiate(cfg.optimiser))  # fmt: skip

    def work(root: Path) -> None:
        shown = "t", Quick(), EVALUATION, Results(root), euler[2]
        Study("s", *shown, cells, console=Console(file=io.StringIO()), wandb="disabled").run()
        SearchStudy("found", *shown, [cell], console=Console(file=io.StringIO())).run()

    return work


def child(work, root: Path, log: Path) -> None:
    forked_and_logged(log, root)
    work(root)


def without(column: str, text: str) -> str:
    """Markdown in which a column of each table is empty."""
    lines, at = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 1 or column in cells:  # no table, or its head
            at = cells.index(column) if column in cells else None
        elif at is not None:
            cells[at] = ""
        lines.append("|".join(cells))
    return "\n".join(lines)


def measured(root: Path) -> dict[str, str]:
    """Tables, and what records have found, without what is a time."""
    found = {}
    for path in sorted([*root.rglob("tables/*"), *root.rglob("studies/*.json"), *root.rglob("records/*/*.json")]):
        text = path.read_text()
        if path.suffix == ".json":
            content = json.loads(text)
            text = json.dumps(
                [content.get(name) for name in ("id", "values", "rows", "timesteps", "scores", "history")]
            )
        if path.suffix == ".csv":  # columns of times
            text = re.sub(r"(?<=,)\d+\.\d+(?=,|$)", "", text)
        if path.suffix == ".md":  # the last column says how long the set-up took
            text = without("minutes", re.sub(r"\| [\d.]* \|$", "|", text, flags=re.M))
        found[path.relative_to(root).as_posix()] = re.sub(r"\d+\.\d+ (s|min)\b|[\d.]+ minutes", "", text)
    return found


def test_kills_at_random_moments_cost_nothing_that_was_finished(work, tmp_path):
    context = multiprocessing.get_context("fork")  # a spawned process would load torch again
    dice = random.Random(SEED)

    def started(root: Path) -> multiprocessing.Process:
        process = context.Process(target=child, args=(work, root, root.with_suffix(".log")))
        process.start()
        return process

    begun = time.monotonic()
    whole = started(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    length, wanted = time.monotonic() - begun, measured(tmp_path / "whole")
    kills, rounds, moments = 0, 0, Counter()
    while kills < KILLS:
        root, rounds = tmp_path / f"killed{rounds}", rounds + 1
        while True:
            process = started(root)
            if kills < KILLS:
                process.join(dice.uniform(0.05, length * 0.5))
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            last = root.with_suffix(".log").read_text().split() if root.with_suffix(".log").exists() else ["nothing"]
            moments[last[-1].partition("/")[0]] += 1
        written = Counter(root.with_suffix(".log").read_text().split())
        dear = {p: n for p, n in written.items() if n > 1 and p.startswith(("shards", "artefacts", "records"))}
        # A picture is written just before its record; parts of a calibration take each other's place.
        again = {p for p in dear if ".parts/" not in p and not re.match(r"records/(search_study/|.*\.png)", p)}
        assert not again, "what was finished was made twice"
        assert measured(root) == wanted
        assert not [p for p in root.rglob(".*") if not p.name.endswith(".lock") and p.name.count(".") < 3]
    print(f"{kills} kills in {rounds} rounds of {length:.1f} s; the last write before each: {dict(moments)}")
