"""Rooms for searches on the exact mixture: its solution on the seeds of searches is found once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from accel.recipe import Recipe
from accel.runner import Evaluation
from accel.samplers import DiffusersSampler
from accel.search.base import FRESH_SEED, SEARCH_SEED, Room
from accel.search.evaluations import Evaluator, Task
from accel.suites.mixture import MixtureSuite

EVALUATION = Evaluation(n=64, seed=0, distance_n=64, shard=16, timing=False, device="cpu")


@pytest.fixture(scope="session")
def solved(tmp_path_factory) -> Path:
    """A results folder with the exact solutions of 60 samples of both seeds, in shards of 8."""
    root = tmp_path_factory.mktemp("solved")
    recipe = Recipe(DiffusersSampler("DEISScheduler", 3, "ddim_accel"))
    evaluation = Evaluation(60, SEARCH_SEED, 60, 64, 8, False, False, device="cpu")
    evaluator = Evaluator(Task(MixtureSuite(), evaluation, root, "distance"))
    evaluator.runner.converged_images(recipe)
    evaluator.on_fresh(FRESH_SEED, 60).runner.converged_images(recipe)
    return root


@pytest.fixture
def root(solved, tmp_path):
    """root(name) -> a fresh results folder in which the mixture is solved already."""

    def root(name: str = "results") -> Path:
        shutil.copytree(solved, tmp_path / name)
        return tmp_path / name

    return root


@pytest.fixture
def room(root):
    """room(search, optimiser, base) -> the search, ready to be run on the mixture."""

    def room(search, optimiser, base: Recipe, folder: Path | None = None) -> Room:
        return Room(search, optimiser, base, MixtureSuite(), EVALUATION, folder or root())

    return room
