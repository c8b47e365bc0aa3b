"""Rooms for searches on the exact mixture: its solution on the seeds of searches is found once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from accel.core.recipe import Recipe
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.search.base import FRESH_SEED, SEARCH_SEED, Room
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.mixture import MixtureSuite

EVALUATION = Evaluation(n=60, seed=0, distance_n=60, shard=64, timing=False, device="cpu")


@pytest.fixture(scope="session")
def solved(tmp_path_factory) -> Path:
    """A results folder with the exact solutions of 60 samples: of the searches' seeds in shards of 8, of seed 0 in one.

    Each seed is solved at once: that takes no longer than one shard does.
    """
    root = tmp_path_factory.mktemp("solved")
    recipe = Recipe(DiffusersSampler("DEISScheduler", 3, "ddim_accel"))
    suite, whole = MixtureSuite(), MixtureSuite.solve
    with pytest.MonkeyPatch.context() as patch:
        for seed, shard in ((SEARCH_SEED, 8), (FRESH_SEED, 8), (0, 64)):
            runner = Runner(suite, replace(EVALUATION, seed=seed, shard=shard), Results(root))
            images = whole(suite, runner.pipe, suite.converged(None), seed, 0, 60)
            patch.setattr(MixtureSuite, "solve", lambda self, pipe, r, seed, a, b, images=images: images[a:b])
            runner.converged_images(recipe)
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
