"""How the time is divided: N and the search fit into it, and an interrupted request keeps its plan."""

from __future__ import annotations

import pytest

from accel.errors import ConfigError
from accel.recommend.plan import FRONT, SHARE, Division, divide, kept, known
from accel.recommend.precisions import Rates

ROW = 0.01


def validation(plan: Division, today: int, converged: int) -> float:
    """Seconds of today's recipe, the front, its controls, and converged samples."""
    return ROW * (plan.n * today * (1 + 2 * FRONT * SHARE) + plan.distance_n * converged)


@pytest.mark.parametrize("budget", [900, 3600, 36_000])
@pytest.mark.parametrize("today", [20, 100])
def test_it_fits_and_is_spent(budget, today):
    plan = divide(budget, ROW, today, 100)
    assert 60 <= plan.n <= 2000
    assert validation(plan, today, 100) <= 0.45 * budget
    if plan.n < 2000:
        assert validation(plan, today, 100) > 0.4 * budget
    assert plan.nfe * ROW <= 0.45 * budget
    assert plan.seconds <= budget


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


def test_a_damaged_plan_is_said(tmp_path):
    kept(tmp_path, {}, Division(60, 60, 1000, 4, 10.0))
    (path,) = (tmp_path / "artefacts/recommend").glob("*.json")
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        kept(tmp_path, {}, Division(60, 60, 1000, 4, 10.0))
