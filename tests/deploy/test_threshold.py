"""`accel threshold`: quantiles of what a method compares, what each candidate does, the knee, and the margins."""

from __future__ import annotations

from dataclasses import replace

import hub_tiny
import numpy as np
import pytest
import torch
from saved import DPM, FAST, saved

from accel import registry
from accel.caching import DiffusersCache, LearnedRouter
from accel.cli import threshold as cli
from accel.config import compose, instantiate
from accel.core.method import Method
from accel.core.recipe import Recipe, accelerate
from accel.core.threshold import ThresholdRule
from accel.deploy import threshold
from accel.deploy.opened import open_recipe
from accel.deploy.saved_runner import SavedRunner
from accel.deploy.threshold import Point, curve, knee
from accel.deploy.watched import tunable
from accel.errors import AccelError, ConfigError
from accel.evaluation.generate import generate
from accel.guidance import CFG, AdaptiveGuidance
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies.evaluation import Evaluation

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


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """Words that open a tiny DiT, and a folder beside it."""
    root = tmp_path_factory.mktemp("dit")
    return ["suite=hub", f"suite.model={hub_tiny.save('dit', root / 'dit')}"], root


RATIOS = (1.0, 0.9, 0.96, 1.03, 0.98, 0.95)  # of the six steps of SAMPLER
SKIPS = 2
MAG = DiffusersCache("mag", {"threshold": 1e-4, "max_skip_steps": SKIPS, "retention_ratio": 0.2})


@pytest.fixture(scope="module")
def mag(dit):
    words, root = dit
    ratios = {"cache": {"mag_ratios": torch.tensor(RATIOS)}}
    return saved(root / "mag", words, Recipe(SAMPLER, cache=MAG), samples=None, artefacts=ratios)


def skipped(value: float) -> int:
    """Steps that MagCache leaves out at a threshold: its rule, written again."""
    count, error, product, run = 0, 0.0, 1.0, 0
    for step, ratio in enumerate(RATIOS):
        if step < 1:  # int(0.2 * 6 + 0.5): retained
            continue
        product, run = product * ratio, run + 1
        error += abs(1 - product)
        if error <= value + 1e-6 and run <= SKIPS:  # diffusers adds in float32
            count += 1
        else:
            error, product, run = 0.0, 1.0, 0
    return count


def test_mag_cache_is_held_against_the_errors_that_it_adds_up(mag):
    one = [abs(1 - g) for g in RATIOS[1:]]
    two = [e + abs(1 - g * h) for e, g, h in zip(one, RATIOS[1:], RATIOS[2:], strict=False)]
    opened = open_recipe(mag)
    found = curve(opened, samples=2, batch=2)
    assert found.tunable.setting == "cache.options.threshold"
    assert np.allclose(found.quantiles, np.quantile([*one, *two], threshold.QUANTILES), atol=1e-6)
    assert found.easiest == pytest.approx(min(one), abs=1e-6)
    assert found.never, "the file's own is below all of them"
    assert [point.hits for point in found.points] == [
        pytest.approx(skipped(point.threshold) / skipped(1e9)) for point in found.points
    ]
    assert len({point.hits for point in found.points}) > 2
    with accelerate(opened.pipe, found.tunable.at(min(one) * 0.99), artefacts=opened.saved.artefacts) as run:
        images = generate(opened.pipe, opened.suite, opened.saved.recipe, 0, 0, 2, 2)
    assert all(e.mode == "full" for e in run.trace)
    with accelerate(opened.pipe, found.tunable.off):
        assert torch.equal(images, generate(opened.pipe, opened.suite, found.tunable.off, 0, 0, 2, 2))


def test_ratios_that_the_recipe_says_itself_are_those(mag):
    own = {**MAG.options, "mag_ratios": RATIOS, "num_inference_steps": 6}
    said = tunable(Recipe(SAMPLER, cache=DiffusersCache("mag", own))).watch()[1]
    assert said == tunable(Recipe(SAMPLER, cache=MAG), {"cache": {"mag_ratios": torch.tensor(RATIOS)}}).watch()[1]
    few = tunable(Recipe(SAMPLER, cache=DiffusersCache("mag", own | {"max_skip_steps": 1}))).watch()[1]
    assert few == pytest.approx([abs(1 - g) for g in RATIOS[1:]], abs=1e-6)
    with pytest.raises(ConfigError, match="has no ratios of MagCache"):
        tunable(Recipe(SAMPLER, cache=MAG)).watch()


@pytest.fixture(scope="module", params=["harmonica", "l2c"])
def routed(request, dit):
    """A recipe whose router has learned scores that were written here; and the steps that may reuse."""
    words, root = dit
    router = LearnedRouter(request.param, threshold=0.3)
    recipe = Recipe(SAMPLER, cache=router)
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    certain = slice(0, 1) if request.param == "harmonica" else slice(0, None, 2)
    scores[certain] = float(torch.tensor(5.0).sigmoid())
    scores[1, 0] = scores[0, 0]  # one that may reuse, and never will
    pipe = instantiate(compose(words)["suite"]).pipeline()
    made = {"scores": scores, "table": (scores > 0.3).to(torch.uint8), "loss": torch.zeros(1)}
    artefacts = {"cache": made | router._made_for(pipe, recipe)}
    free = torch.ones(6, dtype=torch.bool)
    free[certain] = False
    path = saved(root / request.param, words, recipe, samples=None, artefacts=artefacts)
    return path, scores, free


@pytest.mark.parametrize("choice", ["easycache", "teacache"])
def test_a_step_cache_is_held_against_its_indicators(choice, light_words, tmp_path):
    """Quantiles are of indicators and their sums; a threshold below all changes no image, and is said to be such."""
    cache = registry.method("cache", choice, threshold=1e-6)
    recipe, artefacts = Recipe(SAMPLER, cache=cache), None
    pipe = instantiate(compose(light_words)["suite"]).pipeline()
    suite = instantiate(compose(light_words)["suite"])
    if cache.calibrated:
        sample = lambda made, a, b: generate(pipe, suite, made, 7, a, b, b - a)  # noqa: E731
        artefacts = {"cache": cache.calibrate(pipe, recipe, sample)}
    opened = open_recipe(saved(tmp_path / "r", light_words, recipe, samples=None, artefacts=artefacts))
    found = curve(opened, samples=2, batch=2)
    assert found.never
    assert 0 < found.quantiles[0] <= found.easiest * 4
    assert [point.saved for point in found.points] == sorted(point.saved for point in found.points)
    assert found.points[-1].saved > 0.2
    assert 0 < found.points[-1].hits <= 1
    with accelerate(opened.pipe, recipe, artefacts=opened.saved.artefacts) as run:
        images = generate(opened.pipe, opened.suite, recipe, 0, 0, 2, 2)
    assert all(e.mode == "full" for e in run.trace)
    with accelerate(opened.pipe, found.tunable.off):
        assert torch.equal(images, generate(opened.pipe, opened.suite, found.tunable.off, 0, 0, 2, 2))


def test_a_router_is_held_against_its_scores_and_nothing_is_learned_again(routed, monkeypatch):
    monkeypatch.delattr(LearnedRouter, "calibrate")
    path, scores, free = routed
    opened, own = open_recipe(path), scores[free].flatten()
    found = curve(opened, samples=2, batch=2)
    assert np.allclose(found.quantiles, np.quantile(own.numpy(), threshold.QUANTILES))
    for point in found.points:
        assert point.hits == pytest.approx(float((own <= point.threshold).float().mean()))
        recipe = found.tunable.at(point.threshold)
        table = recipe.cache.prepared(opened.pipe, recipe, opened.saved.artefacts["cache"]).fitted
        assert torch.equal(torch.tensor(table.rows), scores > point.threshold)
        assert torch.tensor(table.rows)[~free].all(), "what always ran does"
    assert [point.saved for point in found.points] == sorted(point.saved for point in found.points)
    assert found.points[-1].saved > found.points[0].saved
    assert not found.never
    at = found.tunable.at(1e-6)
    with accelerate(opened.pipe, at, artefacts=opened.saved.artefacts) as run:
        images = generate(opened.pipe, opened.suite, at, 0, 0, 2, 2)
    assert all(e.mode == "full" for e in run.trace), "below every score nothing is left out"
    with accelerate(opened.pipe, found.tunable.off):
        assert torch.equal(images, generate(opened.pipe, opened.suite, at, 0, 0, 2, 2))


def test_the_quality_of_another_threshold_is_that_of_the_same_scores(routed, tmp_path):
    opened = open_recipe(routed[0])
    runner = SavedRunner(opened, Evaluation(n=60, distance_n=60, device="cpu"), Results(tmp_path))
    own = tunable(opened.saved.recipe, opened.saved.artefacts)
    there, other = opened.saved.recipe, own.at(0.9)
    assert runner.artefacts(other)[0] == runner.artefacts(there)[0]
    assert len({runner.generation_id(recipe) for recipe in (there, other, own.off)}) == 3
    with pytest.raises(ConfigError, match="needs a calibration"):
        runner.artefacts(replace(other, cache=replace(other.cache, beta=1.0)))


def test_of_several_thresholds_one_is_chosen(capsys, dit):
    words, root = dit
    both = Recipe(SAMPLER, guidance=AdaptiveGuidance(2.0), cache=DiffusersCache("first_block", {"threshold": 1e-9}))
    path = saved(root / "both", words, both, samples=None)
    with pytest.raises(ConfigError) as error:
        cli.main([str(path)])
    assert "guidance.threshold and cache.options.threshold; choose one of them: --axis guidance or --axis cache." in (
        str(error.value)
    )
    with pytest.raises(ConfigError, match=r"--axis is 'grid'.*allowed: guidance, cache"):
        cli.main([str(path), "--axis", "grid"])
    assert cli.main([str(path), "--axis", "cache", "--samples", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("relative change of what the first block adds")
    assert "A threshold below every residual (" in said
    assert "the file has cache.options.threshold=1e-09, which is below every residual and never hits" in said
    assert tunable(both, axis="guidance").off == replace(both, guidance=CFG(2.0))


def test_a_method_of_ones_own_says_how_its_threshold_is_found():
    class Own(Method):
        def __init__(self, value):
            self.value = value

        @property
        def threshold_rule(self):
            watch = lambda recipe, artefact: (None, [1.0, 2.0])  # noqa: E731
            return ThresholdRule("limit", self.value, "a distance", True, 9.0, Own, None, watch, fixed=True)

    found = tunable(Recipe(SAMPLER, cache=Own(0.5)))
    assert (found.setting, found.at(7.0).cache.value, found.off.cache) == ("cache.limit", 7.0, None)
    assert found.watch() == (Recipe(SAMPLER), [1.0, 2.0])


def test_what_has_a_threshold_is_listed():
    with pytest.raises(ConfigError) as error:
        tunable(Recipe(SAMPLER))
    allowed = str(error.value).partition("allowed: ")[2].rstrip(".").split(", ")
    assert set(allowed) == {
        "guidance=ag", "cache=diffusers_first_block", "cache=diffusers_mag", "cache=harmonica", "cache=l2c",
        "cache=easycache", "cache=seacache", "cache=teacache",
    }  # fmt: skip


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
