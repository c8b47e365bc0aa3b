"""A study of a suite whose images say nothing: cost, times and stages, no shards, no scores, no controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from rich.console import Console

from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.records import Results
from accel.registry import method
from accel.results.comparison import Comparison
from accel.results.markdown import markdown
from accel.search.study import SearchStudy
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.studies.study import Study
from accel.testing.suites import TinySuite

TIMED = Evaluation(timing_batch=1, repetitions=6, most_repetitions=6, device="cpu")
WHY = "its weights are noise"


@dataclass(frozen=True)
class Noise(TinySuite):
    """A tiny suite that has no scores."""

    unscored: ClassVar[str] = WHY
    pictures: ClassVar[bool] = False

    def features(self, images):
        raise AssertionError("something was scored")

    per_sample = converged = features


def sampler(steps, **axes):
    return Recipe(method("sampler", "ddim", steps=steps), **axes)


def study(results, *cells, evaluation=TIMED, **settings):
    quiet = Console(quiet=True)
    return Study(
        "noise", "Noise", Noise(), evaluation, results, sampler(4), list(cells), console=quiet, wandb="disabled",
        **settings,
    )  # fmt: skip


def once(measure, count, beside=()):
    """Times as they come, on a machine however busy."""
    return [found | {"disturbance": 0.0, "calm": True} for found in measure(range(count))]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study of a cache that decides while sampling, and its folder."""
    results = Results(tmp_path_factory.mktemp("noise"))
    cell = sampler(3, cache=method("cache", "easycache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accel.studies.runner.calmest", once)
        assert study(results, cell, sampler(2)).run() == 0
    return results, cell


def test_rows_have_cost_times_and_stages_alone(done):
    results = done[0]
    found = Comparison.load(results, "noise")
    assert [row.role for row in found.rows] == ["baseline", "cell", "cell"], "no reference, no floor, no control"
    assert not list(results.root.glob("shards/*/*.safetensors"))
    for row in found.rows:
        assert row.quality["values"] == {}
        assert row.quality["n"] == 0
        assert row.cost("macs") > 0
        assert row.timings[0]["stages"]["denoiser"] > 0
        assert row.timings[0]["speedup"]["value"] > 0


def test_the_page_says_why_and_has_no_empty_columns(done):
    page = markdown(Comparison.load(done[0], "noise"))
    assert f"No scores: {WHY}." in page
    assert "easycache(0.05) decides while sampling by what the network returns, which is noise here" in page
    assert page.count("decides while sampling") == 1
    for word in ("N = 0", "verdict", "Rank", "jackknife", "all values", "Δquality", "equal-cost", "reused %"):
        assert word not in page.replace("| reused % |", "") or word == "reused %"
    assert "| bound |" in page


def test_n_seed_and_comparisons_change_no_id(done):
    results, cell = done
    ids = {
        Runner(Noise(), evaluation, results).quality_id(cell)
        for evaluation in (TIMED, replace(TIMED, n=60), replace(TIMED, distance_n=60))
    }
    assert len(ids) == 1
    assert results.load("quality", ids.pop())
    again = study(results, cell, sampler(4))
    assert again.run() == 0
    assert Runner(Noise(), TIMED, results).missing_samples(cell) == Runner(Noise(), TIMED, results).help(cell) == 0


def test_what_compares_scores_is_refused(tmp_path):
    results = Results(tmp_path)
    with pytest.raises(ConfigError, match=f"a search compares scores, and {WHY}"):
        SearchStudy("noise", "Noise", Noise(), TIMED, results, sampler(4), [])
    with pytest.raises(ConfigError, match=f"aa=true compares scores, and {WHY}"):
        study(results, aa=True)
    with pytest.raises(ConfigError, match=f"evaluation.n=auto asks what scores need, and {WHY}"):
        study(results, evaluation=replace(TIMED, n="auto"))
    asked = replace(TIMED, reference_metrics=["psnr"], held_out=True)
    with pytest.raises(ConfigError) as error:
        Runner(Noise(), asked, results)
    assert f"evaluation.reference_metrics compare pictures, and {WHY}" in str(error.value)
    assert f"evaluation.held_out is the FID to held-out images, and {WHY}" in str(error.value)
