"""How the time is divided: N and the search fit into it, and an interrupted request keeps its plan."""

from __future__ import annotations

import pytest

from accel.errors import ConfigError
from accel.recommend.plan import FRONT, SEARCH, SHARE, TIME, TIMED, VALIDATE, Division, divide, kept, known, timed
from accel.recommend.precisions import Rates
from accel.records import read_json, write_json

ROW = 0.01


def validation(plan: Division, today: int, converged: int) -> float:
    """Seconds of today's recipe, the front, its controls, and converged samples."""
    return ROW * (plan.n * today * (1 + 2 * FRONT * SHARE) + plan.distance_n * converged)


@pytest.mark.parametrize("budget", [900, 3600, 36_000])
@pytest.mark.parametrize("today", [20, 100])
def test_it_fits_and_is_spent(budget, today):
    plan = divide(budget, ROW, today, 100)
    assert 60 <= plan.n <= 2000
    assert validation(plan, today, 100) <= VALIDATE * budget
    assert plan.validation * ROW == pytest.approx(validation(plan, today, 100), rel=1e-3)
    if plan.n < 2000:
        assert validation(plan, today, 100) > 0.9 * VALIDATE * budget
    assert plan.nfe * ROW <= SEARCH * budget
    assert plan.timing <= TIME * budget
    assert plan.seconds == pytest.approx((plan.validation + plan.nfe) * ROW + plan.timing, abs=0.2)
    assert plan.seconds <= budget


# Milliseconds of an evaluation for one image of Stable Diffusion 1.5, 512 x 512, float16, from the iterations a second
# (two rows an image under guidance) that diffusers' documentation has for torch 2.0 without compilation
# (docs/source/en/optimization/torch2.0.md): A100 11.6 at batch 4 and 21.66 at batch 1, V100 5.96 at batch 4.
SD15 = {"A100": 1000 / (11.6 * 8), "A100, one image": 1000 / (21.66 * 2), "V100": 1000 / (5.96 * 8)}


@pytest.mark.parametrize("gpu", SD15)
def test_the_defaults_of_stable_diffusion_take_an_hour_at_most(gpu):
    """50 steps under guidance, 50 converged ones, budget=60m: what is evaluated, counted by itself, times its rate."""
    rate, today, converged = SD15[gpu] / 1000, 2 * 50, 2 * 50
    plan = divide(3600, rate, today, converged)
    rounds = (plan.most + 1) * 2 * plan.timing_batch * today * (2 + TIMED * SHARE)  # in two groups, each with today's
    evaluations = plan.nfe + validation(plan, today, converged) / ROW + rounds
    assert evaluations * rate <= 3600
    assert plan.seconds <= 3600
    assert plan.n >= 100
    assert plan.least >= 9, "as many rounds as in every study"
    assert plan.nfe >= 20 * plan.first * 20, "twenty candidates of ten steps"


def test_times_take_the_largest_batch_that_there_is_time_for():
    found = [timed(seconds, 1.0) for seconds in (100, 300, 1000, 3000, 1e6)]
    assert [batch for batch, *_ in found] == [1, 1, 4, 8, 8]
    assert [(least, most) for _, least, most, _ in found][-1] == (9, 25)
    assert (found[0][1], found[0][2]) == (6, 6), "fewer have no interval of 95 %"
    for (_, least, most, takes), seconds in zip(found[1:], (300, 1000, 3000, 1e6), strict=True):
        assert 9 <= least <= most <= 25
        assert takes <= seconds


def test_a_slower_machine_gets_fewer_samples_and_candidates():
    fast, slow = divide(3600, ROW, 100, 100), divide(3600, 4 * ROW, 100, 100)
    assert (slow.n < fast.n, slow.nfe < fast.nfe, slow.first <= fast.first) == (True, True, True)


def test_no_more_samples_than_prompts():
    assert divide(36_000, ROW, 20, 100, most=128).n == 120


def test_too_little_time_is_said_with_what_would_do():
    with pytest.raises(ConfigError) as error:
        divide(60, ROW, 100, 100)
    needed = float(str(error.value).partition("budget=")[2].partition("m")[0])
    assert divide(60 * needed, ROW, 100, 100).n >= 60


def test_the_same_request_keeps_its_plan_however_fast_the_machine_is_now(tmp_path):
    first, second = divide(3600, ROW, 100, 100), divide(3600, 2 * ROW, 100, 100)
    assert kept(tmp_path, {"words": ["a"]}, first) == first
    assert kept(tmp_path, {"words": ["a"]}, second) == first
    assert kept(tmp_path, {"words": ["b"]}, second) == second


def test_what_was_measured_of_precisions_is_kept_with_it(tmp_path):
    rates = Rates({"precision=bf16": 0.6}, {"precision=fp16": "slow."}, 12.0)
    plan = divide(3600, ROW, 100, 100, precisions=rates)
    assert plan.precisions == rates
    assert known(tmp_path, {"words": ["a"]}) is None
    kept(tmp_path, {"words": ["a"]}, plan)
    assert known(tmp_path, {"words": ["a"]}) == plan == kept(tmp_path, {"words": ["a"]}, divide(7200, ROW, 100, 100))


def test_a_plan_from_before_times_were_divided_is_read(tmp_path):
    kept(tmp_path, {}, divide(3600, ROW, 100, 100))
    (path,) = (tmp_path / "artefacts/recommend").glob("*.json")
    old = read_json(path)
    for key in ("row", "validation", "timing_batch", "least", "most", "timing"):
        del old[key]
    write_json(path, old)
    assert known(tmp_path, {}).n == divide(3600, ROW, 100, 100).n


def test_a_damaged_plan_is_said(tmp_path):
    kept(tmp_path, {}, Division(60, 60, 1000, 4, 10.0))
    (path,) = (tmp_path / "artefacts/recommend").glob("*.json")
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        kept(tmp_path, {}, Division(60, 60, 1000, 4, 10.0))
