"""Rounds that others disturbed: made-up clocks and a made-up /proc/stat, never the machine's."""

from __future__ import annotations

import os

import numpy as np
import pytest

from accel.evaluation import load
from accel.evaluation.load import Reading, Round, busy_seconds, calm, foreign_load


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)


def round_of(share: float = 1.0, foreign: float = 0.0, seconds: float = 1.0, threads: int = 1) -> Round:
    return Round({"a": seconds, "b": 2.0}, {"a": threads * share * seconds, "b": 2.0 * threads}, foreign)


def kept(*rounds: Round) -> tuple[list[bool], int]:
    mask, tolerated = calm(rounds)
    return mask.tolist(), tolerated


@pytest.mark.parametrize("threads", [1, 4])
def test_a_round_whose_processor_time_falls_behind_is_thrown_away(threads):
    made = [round_of(share, threads=threads) for share in (1, 0.95, 0.85, 1.1, 1)]
    assert kept(*made) == ([True, True, False, True, True], 0)


def test_slow_rounds_that_had_the_processor_to_themselves_stay():
    assert kept(round_of(), round_of(seconds=3.0), round_of()) == ([True] * 3, 0)


def test_a_tick_is_forgiven_in_a_short_arm():
    made = [round_of(share, seconds=0.01) for share in (1, 0.85, 1, 0.6)]
    assert kept(*made) == ([True, True, True, False], 0)


def test_a_round_beside_foreign_load_is_thrown_away():
    assert kept(round_of(), round_of(foreign=0.19), round_of(foreign=0.3)) == ([True, True, False], 0)


def test_at_most_as_many_are_thrown_away_as_are_kept_and_the_worst_go():
    made = [round_of(foreign=f) for f in (1.0, 2.0, 0.5, 1.5, 0.0)]
    assert kept(*made) == ([True, False, True, False, True], 2)
    assert kept(round_of(foreign=2.0)) == ([True], 1)


def test_without_processor_times_nothing_is_judged():
    """As on a GPU, whose rounds have wall times alone."""
    assert kept(Round({"a": 1.0}), Round({"a": 9.0}), Round({"a": 1.0})) == ([True] * 3, 0)


def test_busy_time_is_all_but_idle_and_waiting(tmp_path):
    stat, hertz = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  100 20 30 99999 88888 4 5 6 70 80\ncpu0 1 2 3 4\n")
    assert busy_seconds(stat) == pytest.approx((100 + 20 + 30 + 4 + 5 + 6) / hertz), "guests' time is in user's already"
    for text in ("", "cpu 1 2", "intr 5 5 5 5 5"):
        stat.write_text(text)
        assert busy_seconds(stat) is None
    assert busy_seconds(tmp_path / "absent") is None


def test_foreign_load_is_what_the_machine_did_beyond_this_process():
    before, forgiven = Reading(10.0, 3.0, 50.0), 4 / os.sysconf("SC_CLK_TCK")
    assert foreign_load(before, Reading(12.0, 5.0, 53.0)) == pytest.approx((3 - 2 - forgiven) / 2)
    assert foreign_load(before, Reading(12.0, 5.0, 52.0)) == 0, "its own work alone"
    assert foreign_load(before, Reading(12.0, 5.0, None)) == foreign_load(before._replace(busy=None), before) == 0
    assert np.isfinite(foreign_load(before, before))
