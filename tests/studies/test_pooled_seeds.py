"""Several seeds are more samples of one estimate: one row, whose shards are those of each seed alone."""

from __future__ import annotations

import pytest
import torch

from accel.config import choice_of, compose, instantiate
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.metrics.statistics import mean_estimate
from accel.records import Results
from accel.results.comparison import group_of, seed_of
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.mixture.suite import MixtureSuite


def runner(root, seed):
    evaluation = Evaluation(n=60, seed=seed, distance_n=60, batch=60, shard=60, timing=False)
    return Runner(MixtureSuite(), evaluation, Results(root))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, recipe = tmp_path_factory.mktemp("pooled"), Recipe(choice_of("sampler", "ddim", "sampler.steps=3"))
    return root, recipe, runner(root, [0, 1]).quality(recipe)


def test_it_is_the_estimate_of_all_their_samples(made):
    root, recipe, record = made
    images = torch.cat([runner(root, seed).shards(recipe, 60)["images"] for seed in (0, 1)])
    exact = torch.cat([runner(root, seed).converged_images(recipe) for seed in (0, 1)])
    distances = (images.double() - exact).square().flatten(1).mean(1).sqrt()
    assert record["values"]["distance"]["value"] == pytest.approx(mean_estimate(distances.numpy()).value, rel=1e-12)
    assert record["values"]["distance"]["n"] == record["n"] == 120
    assert (record["seed"], record["seeds"], seed_of(record)) == (0, [0, 1], "0, 1")


def test_the_shards_of_each_seed_are_shared(made):
    root, recipe, _ = made
    assert [runner(root, seed).missing_samples(recipe) for seed in (0, 1, [1, 0], 2)] == [0, 0, 0, 60]


def test_one_seed_in_a_list_is_that_seed(made):
    root, recipe, record = made
    one = runner(root, [0])
    assert one.quality_id(recipe) == runner(root, 0).quality_id(recipe) != record["id"]
    assert group_of(one.quality(recipe)) != group_of(record)


def test_commas_of_one_run_are_a_list():
    assert instantiate(compose(["evaluation.seed=0,1,2"]).evaluation).seeds == (0, 1, 2)


@pytest.mark.parametrize("seed", [[], [0, 0], [0, -1], "0", [0, "a"], 1.5, [True]])
def test_what_are_no_seeds_is_refused(seed):
    with pytest.raises(ConfigError, match="seed"):
        Evaluation(seed=seed)
