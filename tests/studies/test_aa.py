"""A/A: every recipe on other seeds through the whole tool; what is told apart there is a false alarm."""

from __future__ import annotations

import numpy as np
import pytest

from accel.cli.build import build_study
from accel.config import compose
from accel.metrics.statistics import Estimate
from accel.records import Results
from accel.results.aa import aa_difference, aa_keys, again, false_alarms
from accel.results.comparison import Comparison
from accel.studies.evaluation import Evaluation


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("aa")
    overrides = [
        "suite=mixture", "study=twice", "aa=true", 'baseline=["sampler=ddim","sampler.steps=4"]', f"results='{root}'",
        'cells=[["sampler=dpmpp_2m","sampler.steps=3,4"]]', "evaluation.n=60", "evaluation.distance_n=60",
        "evaluation.batch=60", "evaluation.shard=60", "evaluation.timing=false", "wandb=disabled",
        "evaluation.seed=3,5", "evaluation.converged=false",
    ]  # fmt: skip
    assert build_study(compose(overrides), overrides).run() == 0
    return Comparison.load(Results(root), "twice"), (root / "tables" / "twice.md").read_text()


def test_every_recipe_is_evaluated_on_seeds_that_it_shares_with_nothing(done):
    study, _ = done
    assert [pair[0].label for pair in again(study)] == ["ddim-4", "dpmpp_2m-3", "dpmpp_2m-4"]
    assert {tuple(row.quality["seeds"]) for pair in again(study) for row in pair} == {(3, 5), (6, 7)}
    assert len(study.ranks) == 3  # the second time ranks nowhere


def test_the_row_of_the_converged_sampler_may_be_left_out(done):
    study, _ = done
    assert "reference" not in {row.role for row in study.rows}
    assert all(row.value("distance") for row in study.competing)


def test_the_table_says_how_often_the_same_was_told_apart(done):
    study, page = done
    alarms, count = false_alarms(study)
    assert count == 3 * len(aa_keys(study)) > 0
    assert f"false alarm: {alarms} of {count} comparisons" in page


def test_the_difference_has_the_variance_of_both():
    """Independent sides: se^2 of the difference is the sum of theirs, up to the correlation that chance gives."""
    rng = np.random.default_rng(0)
    sides = [Estimate.from_replicates(1.0, 1 + rng.standard_normal(20) / 100, 1000) for _ in (0, 1)]

    class Side:
        def __init__(self, estimate):
            self.value = lambda key: estimate

    found = aa_difference(tuple(map(Side, sides)), "fid")
    assert found.se == pytest.approx(np.hypot(*(side.se for side in sides)), rel=0.3)
    assert found.value == 0


def test_the_other_seeds_are_the_next_ones():
    assert Evaluation(seed=4).elsewhere.seeds == (5,)
    assert Evaluation(seed=[0, 9]).elsewhere.seeds == (10, 11)
