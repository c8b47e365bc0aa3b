"""Scores: kept one by one, shards reused, the same whoever computes them; a search that was killed goes on."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.samplers import DiffusersSampler
from accel.samplers.grids import ExplicitGrid
from accel.search import evaluations as module
from accel.search.base import FRESH_SEED, SEARCH_SEED
from accel.search.evaluations import Evaluator, Memory, Scorer, Task
from accel.search.objective import Halving
from accel.search.optimisers import CoordinateDescent, DifferentialEvolution, OptunaSearch, RandomSearch
from accel.search.timesteps import TimestepSearch
from accel.studies.evaluation import Evaluation
from accel.suites.mixture import MixtureSuite

DDIM = Recipe(DiffusersSampler("DEISScheduler", 3, "ddim_accel", {"variant": "tab", "ab_order": 0}))
EVALUATION = Evaluation(n=60, seed=SEARCH_SEED, distance_n=60, shard=8, timing=False, device="cpu")
SEARCH = TimestepSearch("distance", Halving(8, 1), 1500, 2, 16)


def task(root: Path) -> Task:
    return Task(MixtureSuite(), EVALUATION, root, "distance")


def at(*timesteps: float) -> Recipe:
    return replace(DDIM, grid=ExplicitGrid(timesteps=timesteps))


@pytest.fixture
def generated(monkeypatch):
    """(seed, label, start, stop) of everything that is generated."""
    import accel.studies.samples as module

    made, original = [], module.generate

    def generate(pipe, suite, recipe, seed, start, stop, batch):
        made.append((seed, recipe.grid, start, stop))
        return original(pipe, suite, recipe, seed, start, stop, batch)

    monkeypatch.setattr(module, "generate", generate)
    return made


def test_scores_of_single_samples(tmp_path):
    """The mean of what the suite says of each sample, negative because less is better here."""
    from accel.suites.digits import DigitsSuite

    scorer = Scorer(Task(DigitsSuite(), EVALUATION, tmp_path, "accuracy"))
    recipe = Recipe(DiffusersSampler("DDIMScheduler", 2))
    right = scorer.shards(recipe, 8)["score.accuracy"]
    assert scorer(recipe, 8).value == -float(right.mean())
    with pytest.raises(ConfigError, match=r"suite 'digits' has no adherence .* fid, distance, accuracy\."):
        Scorer(Task(DigitsSuite(), EVALUATION, tmp_path, "adherence"))(recipe, 8)


def test_more_samples_reuse_the_shards(root, generated):
    folder = root()
    evaluator = Evaluator(task(folder))
    evaluator([at(999, 500, 100)], 16)
    evaluator([at(999, 500, 100)], 32)
    assert [(a, b) for _, _, a, b in generated] == [(0, 8), (8, 16), (16, 24), (24, 32)]
    again = Evaluator(task(folder))
    assert again([at(999, 500, 100)], 32) == evaluator([at(999, 500, 100)], 32)
    assert len(generated) == 4
    assert again.computed == 0


def test_all_candidates_have_the_same_seeds_and_fresh_ones_others(root, generated):
    evaluator = Evaluator(task(root()))
    evaluator([at(999, 500, 100), at(900, 400, 50)], 16)
    assert {seed for seed, *_ in generated} == {SEARCH_SEED}
    generated.clear()
    evaluator.on_fresh(FRESH_SEED, 60)([at(999, 500, 100)], 16)
    assert {seed for seed, *_ in generated} == {FRESH_SEED}


def test_memory_survives_a_cut_and_a_damaged_line(tmp_path):
    path = tmp_path / "a" / "memory.jsonl"
    memory = Memory(path)
    for i in range(3):
        memory.add(f"k{i}", {"value": i / 3})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0].replace(b"0.0", b"0.1") + lines[1] + lines[2][:-5])
    cut = Memory(path)
    assert cut.known == {"k1": {"value": 1 / 3}}
    cut.add("k3", {"value": None})
    assert Memory(path).known == {"k1": {"value": 1 / 3}, "k3": {"value": None}}


def test_memory_sees_what_others_append(tmp_path):
    one, other = Memory(tmp_path / "m.jsonl"), Memory(tmp_path / "m.jsonl")
    other.add("k", {"value": 1})
    one.refresh()
    assert one.known == {"k": {"value": 1}}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_change_nothing(root, monkeypatch):
    """Another process scores as this one does (the first candidate of all is scored here). It is forked, with what a
    spawned one would be sent: that would load torch again."""

    def forked(workers, context, *sent):
        assert context.get_start_method() == "spawn"
        begin, arguments = pickle.loads(pickle.dumps(sent))
        torch.set_num_threads(1)  # threads that have worked do not survive a fork
        return ProcessPoolExecutor(workers - 1, get_context("fork"), begin, arguments)

    threads = torch.get_num_threads()
    monkeypatch.setattr(module, "ProcessPoolExecutor", forked)
    recipes = [at(999, 500, 100 - i) for i in range(2)]
    alone = Evaluator(task(root("one")))(recipes, 16)
    with Evaluator(task(root("two")), workers=2) as evaluator:
        both = evaluator(recipes, 16)
        assert evaluator.computed == 2
    torch.set_num_threads(threads)
    assert [s.value for s in both] == pytest.approx([s.value for s in alone], rel=1e-9)


def test_fid_needs_features(tmp_path):
    with pytest.raises(ConfigError, match=r"'mixture' has no feature network, .* use search\.metric=distance"):
        replace(task(tmp_path), metric="fid")
    with pytest.raises(ConfigError, match=r"unknown search\.metric 'fidd'\. Did you mean fid"):
        replace(task(tmp_path), metric="fidd")


def test_fid_is_to_images_that_no_record_is_compared_with(tmp_path, digits):
    scorer = Scorer(Task(digits, EVALUATION, tmp_path))
    assert int(scorer.frechet._metric.real_features_num_samples) == len(digits.held_out()[0])


def outcome(room) -> dict:
    """A record without the seconds."""
    record = room.search.run(room)
    return record | {"cost": record["cost"]["nfe"]}


OPTIMISERS = {
    "random": RandomSearch(),
    "coordinate": CoordinateDescent(),
    "evolution": DifferentialEvolution(population=6),
    "nsga2": OptunaSearch("NSGAIISampler", population=6, options={"population_size": 6}, name="nsga2"),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_killed_and_resumed_gives_the_same_result(name, room, root, monkeypatch):
    if name == "nsga2":
        pytest.importorskip("optuna")
    whole, killed = outcome(room(SEARCH, OPTIMISERS[name], DDIM, root("whole"))), root("killed")
    assert len(whole["history"]) > 8
    original, kills = Memory.add, []

    for after in (3, 9, 10):
        added = []

        def add(self, key, found, added=added, after=after):
            if len(added) == after:
                raise KeyboardInterrupt
            added.append(key)
            original(self, key, found)

        monkeypatch.setattr(Memory, "add", add)
        with pytest.raises(KeyboardInterrupt):
            outcome(room(SEARCH, OPTIMISERS[name], DDIM, killed))
        kills.append(added)
    monkeypatch.setattr(Memory, "add", original)
    assert outcome(room(SEARCH, OPTIMISERS[name], DDIM, killed)) == whole
    done = [key for added in kills for key in added]
    assert len(set(done)) == len(done) == 22, "nothing that was scored is scored again"
