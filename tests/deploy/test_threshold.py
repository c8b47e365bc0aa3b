"""`accel threshold`: quantiles of what a method compares, what each candidate does, the knee, and the margins."""

from __future__ import annotations

import hub_tiny
import numpy as np
import pytest
import torch
from saved import DPM, FAST, saved

from accel.caching import DiffusersCache
from accel.cli import threshold as cli
from accel.core.recipe import Recipe, accelerate
from accel.deploy import threshold
from accel.deploy.opened import open_recipe
from accel.deploy.threshold import Point, curve, knee
from accel.deploy.watched import tunable
from accel.errors import AccelError, ConfigError
from accel.evaluation.generate import generate
from accel.guidance import CFG, AdaptiveGuidance
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.samplers import DiffusersSampler

CURVE = ((1, 0.0, 0.0), (2, 0.3, 0.01), (3, 0.5, 0.02), (4, 0.6, 0.5), (5, 1, 1))  # threshold, saved, distance
SAMPLER = DiffusersSampler("DPMSolverMultistepScheduler", 6, "dpmpp_2m", DPM)


@pytest.fixture(scope="module")
def adaptive(light_words, tmp_path_factory):
    recipe = Recipe(SAMPLER, guidance=AdaptiveGuidance(3.0, threshold=0.95))
    return saved(tmp_path_factory.mktemp("ag") / "r", light_words, recipe, samples=None)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    root = tmp_path_factory.mktemp("fbc")
    cache = DiffusersCache("first_block", {"threshold": 0.1})
    words = ["suite=hub", f"suite.model={hub_tiny.save('dit', root / 'dit')}"]
    return saved(root / "r", words, Recipe(SAMPLER, cache=cache), samples=None)


def test_the_cosines_are_those_that_adaptive_guidance_compares(adaptive):
    opened = open_recipe(adaptive)
    found = curve(opened, samples=4, batch=4)
    recipe = opened.saved.recipe
    assert 0 < found.quantiles[0] <= found.quantiles[-1] <= 1
    assert list(found.quantiles) == sorted(found.quantiles)
    # At the least cosine that was seen guidance ends for somebody, just above the largest for nobody.
    watched, seen = tunable(recipe).watch()
    with accelerate(opened.pipe, watched):
        plain = generate(opened.pipe, opened.suite, watched, 0, 0, 4, 4)
    assert len(seen) == 4 * 5, "each sample at each step but the first"
    for value, ends in ((max(seen) + 1e-6, False), (max(seen), True)):
        own = tunable(recipe).at(value)
        with accelerate(opened.pipe, own) as run:
            images = generate(opened.pipe, opened.suite, own, 0, 0, 4, 4)
        assert bool(run.events) is ends
        if not ends:
            assert torch.equal(images, plain), "nothing is saved while it is watched"
    assert np.allclose(found.quantiles, np.quantile(seen, threshold.QUANTILES))


def test_lower_cosines_save_more(adaptive):
    found = curve(open_recipe(adaptive), samples=4, batch=4)
    thresholds, saved_ = zip(*[(point.threshold, point.saved) for point in found.points], strict=True)
    assert list(thresholds) == sorted(thresholds, reverse=True)
    assert list(saved_) == sorted(saved_)
    assert saved_[-1] > 0.2
    assert all(0 <= point.hits <= 1 for point in found.points)
    assert found.points[-1].hits > found.points[0].hits
    assert found.points[-1].distance > 0


def test_the_changes_are_those_that_first_block_cache_compares(cached):
    opened = open_recipe(cached)
    own = tunable(opened.saved.recipe)
    watched, seen = own.watch()
    with accelerate(opened.pipe, watched, count_macs=True) as run:
        plain = generate(opened.pipe, opened.suite, watched, 0, 0, 2, 2)
        whole = run.macs
    assert len(seen) == 5, "one an evaluation after the first"

    def ran(value):
        with accelerate(opened.pipe, own.at(value), count_macs=True) as run:
            return generate(opened.pipe, opened.suite, own.at(value), 0, 0, 2, 2), run.macs

    # The first change is that of the plain trajectory: it decides whether the second evaluation is computed. Below the
    # least of all changes nothing is reused.
    images, macs = ran(min(seen) * 0.999)
    assert macs == whole
    assert torch.equal(images, plain)
    assert ran(seen[0] * 1.001)[1] < whole
    found = curve(opened, samples=2, batch=2)
    assert [point.threshold for point in found.points] == sorted(point.threshold for point in found.points)
    assert found.points[-1].saved > 0
    # Five of six evaluations may reuse, and all cost the same.
    assert all(abs(5 * point.hits - round(5 * point.hits)) < 1e-6 for point in found.points)


def test_the_knee_is_farthest_below_the_chord():
    points = [
        Point(t, 0, s, d) for t, s, d in ((1, 0.0, 0.0), (2, 0.3, 0.01), (3, 0.5, 0.02), (4, 0.6, 0.5), (5, 1, 1))
    ]
    assert knee(points).threshold == 3
    assert knee(points[:2]) is None
    assert knee([Point(t, 0, t / 4, t / 4) for t in range(4)]) is None, "a straight line has none"
    assert knee([Point(t, 0, 0.5, t) for t in range(4)]) is None


def test_the_most_saving_value_inside_the_margins_is_found(adaptive, tmp_path):
    opened = open_recipe(adaptive)
    found = curve(opened, samples=4, batch=4)
    wide = Margins(fid=1e6, accuracy=1.0, recall=1.0)
    told = list(threshold.inside_margins(opened, found, Results(tmp_path), wide, 60, 0))
    assert [(point, gate.outcome) for point, gate in told] == [(found.points[-1], "pass")]
    base, own = told[0][1].study.rows
    assert base.label == opened.saved.recipe.label.replace("ag3(x0>=0.95)", "cfg3")
    assert own.quality["recipe"]["guidance"]["threshold"] == found.points[-1].threshold


def test_the_command_tells_all_of_it(adaptive, capsys, monkeypatch):
    assert cli.main([str(adaptive), "--samples", "4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("cosine of conditional and unconditional prediction (x0), by step and sample; the first 4")
    assert "5%: " in said
    assert "guidance.threshold        hits   MACs saved" in said
    assert "the file has guidance.threshold=0.95" in said
    monkeypatch.setattr(cli, "inside_margins", lambda *given: iter(()))
    assert cli.main([str(adaptive), "--samples", "2", "--quality"]) == 0
    assert "no candidate that saves anything stays inside the margins" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{fast}"], "has no method whose residual is held against a threshold; allowed: guidance=ag"),
        (["nowhere"], "cannot read nowhere"),
        (["{ag}", "--samples", "0"], "--samples is 0"),
        (["{ag}", "--n", "5"], "--n is 5"),
        (["{ag}", "suite=digits_dit"], "another model than that of this suite 'digits_dit'"),
    ],
)
def test_bad_requests_are_one_error(words, reason, fast, adaptive):
    with pytest.raises(AccelError, match=reason):
        cli.main([word.format(fast=fast, ag=adaptive) for word in words])


def test_a_single_step_compares_nothing(light_words, tmp_path):
    one = Recipe(DiffusersSampler("DDIMScheduler", 1, "ddim"), guidance=AdaptiveGuidance(3.0))
    path = saved(tmp_path / "r", light_words, one, samples=None)
    with pytest.raises(ConfigError, match="never compared anything; it needs two steps or more"):
        curve(open_recipe(path), samples=2)
    assert tunable(one).off == Recipe(one.sampler, guidance=CFG(3.0))
    with pytest.raises(ConfigError, match="has no method"):
        tunable(FAST)
