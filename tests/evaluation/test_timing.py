"""Timing on a clock that the tests turn: order of repetitions, what is timed, A/A floor, intervals, refusals."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from snapshots import assert_same, snapshot

from accel.caching import DeepCache
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.evaluation import timing
from accel.evaluation.timing import interleave, median_interval, stopwatch, time_recipe, warmed
from accel.precision import Cast, FakeQuant
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True})


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


# --- interleaving


def test_stopwatch_measures_the_run_only(clock):
    clock.work(5)
    assert stopwatch(lambda: clock.work(0.25)) == 0.25


def test_rounds_visit_the_arms_in_turn_and_every_other_one_backwards(clock):
    visits = []

    def arm(name):
        @contextmanager
        def context():
            clock.work(50)  # entering is not timed
            yield lambda: (visits.append(name), clock.work(ord(name)))
            clock.work(70)  # nor is leaving

        return context

    seconds = interleave({n: arm(n) for n in "ABC"}, repetitions=4, warmup=2)
    rounds = ["".join(visits[i : i + 3]) for i in range(0, len(visits), 3)]
    assert len(rounds) == 2 + 4
    assert rounds[2:] == ["ABC", "CBA", "ABC", "CBA"]
    assert all(a != b for a, b in pairwise(rounds)), "warm-up rounds too"
    assert {n: s.tolist() for n, s in seconds.items()} == {n: [float(ord(n))] * 4 for n in "ABC"}


def test_warm_up_is_not_in_the_numbers(clock):
    calls = []

    @contextmanager
    def arm():
        yield lambda: (calls.append(0), clock.work(100.0 if len(calls) == 1 else 1.0))

    assert interleave({"a": arm}, 3)["a"].tolist() == [1.0, 1.0, 1.0]
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("times", "limits", "rounds", "stable"),
    [
        ((9, 5, 2, 1.01, 1, 1), {}, 6, True),  # the last three within 2 %
        ((1, 1, 1), {}, 3, True),
        ((8, 4, 2, 1), {"most": 4}, 4, False),
        ((8, 4, 2, 1), {"seconds": 11}, 2, False),
    ],
)
def test_warm_up_lasts_until_rounds_agree(clock, times, limits, rounds, stable):
    left = list(times)

    @contextmanager
    def arm():
        clock.work(0.25)
        yield lambda: clock.work(left.pop(0))

    found = warmed({"a": arm}, **limits)
    assert (found["rounds"], found["stable"], len(times) - len(left)) == (rounds, stable, rounds)
    assert found["round_seconds"] == pytest.approx(times[rounds - 1] + 0.25)


def test_a_drift_of_the_machine_cancels(clock):
    """Each run is 1 % slower than the one before. One arm after the other would make the second 10 % slower."""
    done = []

    @contextmanager
    def arm():
        yield lambda: (done.append(0), clock.work(1.01 ** len(done)))

    seconds = interleave({"a": arm, "other": arm, "b": arm}, repetitions=10)
    ratio = median_interval(seconds["a"] / seconds["b"])
    assert ratio["value"] == pytest.approx(1, abs=1e-3)
    assert ratio["lo"] <= 1 <= ratio["hi"]
    assert seconds["a"][5:].mean() / seconds["a"][:5].mean() > 1.1, "the drift was there"


# --- intervals


def test_median_interval_covers_the_median_of_a_skewed_sample():
    """95 % interval: of 400 log-normal samples nearly all, but not all, and not the mean."""
    rng = np.random.default_rng(0)
    samples = rng.lognormal(0.0, 1.0, (400, 15))
    found = [median_interval(s, seed=i, draws=500) for i, s in enumerate(samples)]
    covered = np.mean([f["lo"] <= 1.0 <= f["hi"] for f in found])
    assert 0.90 <= covered < 0.995
    assert np.mean([f["lo"] <= np.exp(0.5) <= f["hi"] for f in found]) < 0.8
    assert all(f["lo"] <= f["value"] <= f["hi"] for f in found)


def test_values_of_one_round_are_not_taken_for_independent():
    once = np.random.default_rng(2).normal(10, 1, 20)
    assert median_interval(np.stack([once] * 3, 1)) == median_interval(once)
    assert median_interval(np.concatenate([once] * 3))["lo"] > median_interval(once)["lo"], "which would be too narrow"


def test_median_interval_of_simple_samples():
    assert median_interval(np.full(9, 2.5)) == {"value": 2.5, "lo": 2.5, "hi": 2.5}
    values = np.array([1.0, 1.1, 1.2, 1.3, 50.0])
    found = median_interval(values)
    assert found["value"] == 1.2, "an outlier does not move it"
    assert found == median_interval(values), "deterministic"
    narrow, wide = (median_interval(np.random.default_rng(1).normal(10, 1, n)) for n in (200, 10))
    assert narrow["hi"] - narrow["lo"] < 0.5 * (wide["hi"] - wide["lo"])


# --- recipes


@pytest.fixture
def timed(monkeypatch, clock, pipe, digits):
    """timed(recipe, baseline, seconds) -> time_recipe's result; generating takes seconds(recipe, call number)."""
    calls = []

    def timed(recipe, baseline, seconds, **kwargs):
        def generate(pipe, suite, which, seed, start, stop, batch):
            calls.append((which, seed, start, stop, batch))
            clock.work(seconds(which, len(calls)))

        monkeypatch.setattr(timing, "generate", generate)
        return time_recipe(pipe, digits, recipe, baseline, **kwargs), calls

    return timed


def test_ratios_and_units(timed):
    recipe, baseline = Recipe(DDIM, cache=DeepCache(2, 1)), Recipe(DDIM)
    found, calls = timed(recipe, baseline, lambda which, n: 0.2 if which is recipe else 0.8, batch=4, repetitions=5)
    assert found["ms_per_image"]["value"] == pytest.approx(50)
    assert found["baseline_ms"]["value"] == pytest.approx(200)
    assert found["speedup"] == pytest.approx({"value": 4, "lo": 4, "hi": 4})
    assert found["aa"] == pytest.approx({"value": 1, "lo": 1, "hi": 1})
    assert (found["repetitions"], found["batch"]) == (5, 4)
    # A round is baseline, recipe, baseline; every run generates one whole batch.
    assert [which is recipe for which, *_ in calls] == [False, True, False] * 6
    assert {tuple(rest) for _, *rest in calls} == {(0, 0, 4, 4)}


def test_floor_shows_the_noise_of_the_baseline(timed):
    """Baseline runs that differ by 20 % at random: no speed-up within that is one."""
    rng, recipe = np.random.default_rng(0), Recipe(DDIM, cache=DeepCache(2, 1))
    found, _ = timed(recipe, Recipe(DDIM), lambda which, n: rng.uniform(0.9, 1.1), repetitions=15)
    assert found["aa"]["hi"] - found["aa"]["lo"] > 0.01
    assert found["aa"]["lo"] < 1.02
    assert found["aa"]["hi"] > 0.98
    assert found["speedup"]["lo"] < 1.05


def test_pipeline_is_restored_between_and_after_the_arms(timed, pipe):
    before, states = snapshot(pipe), []
    recipe = Recipe(DDIM, precision=Cast("bfloat16"))

    def seconds(which, n):
        states.append(next(pipe.unet.parameters()).dtype)
        return 1.0

    timed(recipe, Recipe(DDIM), seconds, repetitions=3)
    assert [str(s) for s in states] == ["torch.float32", "torch.bfloat16", "torch.float32"] * 4
    assert_same(before, snapshot(pipe))


def test_simulated_recipes_are_refused_before_anything_runs(timed):
    simulated = Recipe(DDIM, precision=FakeQuant())
    for recipe, baseline in ((simulated, Recipe(DDIM)), (Recipe(DDIM), simulated)):
        with pytest.raises(ConfigError, match=r"ddim-4 \+ w8a8\(sim\) is simulated: .* never timed"):
            timed(recipe, baseline, lambda which, n: pytest.fail("it ran"))


def test_a_real_timing_is_plausible(pipe, digits):
    """Three rounds on the real clock: twice the steps take more time, and the parts fit together."""
    longer = Recipe(DiffusersSampler("DDIMScheduler", 12))
    found = time_recipe(pipe, digits, Recipe(DiffusersSampler("DDIMScheduler", 2)), longer, batch=1, repetitions=3)
    assert found["speedup"]["value"] > 2
    assert 0 < found["ms_per_image"]["lo"] <= found["ms_per_image"]["value"] <= found["ms_per_image"]["hi"]
    assert found["ms_per_image"]["value"] < found["baseline_ms"]["value"]


# --- disturbance


def measured(ms: float = 10.0, lo: float = 0.98, hi: float = 1.03) -> dict:
    return {"baseline_ms": {"value": ms, "lo": ms, "hi": ms}, "aa": {"value": 1.0, "lo": lo, "hi": hi}}


def test_disturbance_is_the_floor_s_or_a_slow_baseline_s():
    assert timing.disturbance(measured()) == pytest.approx(0.03)
    assert timing.disturbance(measured(lo=0.6)) == pytest.approx(0.4)
    assert timing.disturbance(measured(15.0), [10.0, 12.0]) == pytest.approx(0.5), "evenly slow: A/A does not show it"
    assert timing.disturbance(measured(9.0), [10.0]) == pytest.approx(0.03)


def test_a_disturbed_timing_is_tried_again_and_the_calmest_is_kept():
    for found, tries, kept in (([measured(ms=1)], 1, 1), ([measured(lo=0.5), measured(ms=2)], 2, 2),
                               ([measured(1, lo=0.5), measured(2, hi=3.0)], 2, 1)):  # fmt: skip
        left = list(found)
        got = timing.calmest(lambda left=left: left.pop(0))
        assert len(found) - len(left) == tries
        assert got["baseline_ms"]["value"] == kept
        assert timing.disturbed(got) == (got["disturbance"] > timing.DISTURBED) == (kept == 1 and tries == 2)


def test_records_from_before_disturbances_were_kept_stay_valid():
    assert not timing.disturbed(measured(lo=0.1))


def test_the_same_command_times_a_disturbed_recipe_again(pipe, digits, tmp_path, monkeypatch):
    said, left = [], [measured(20, lo=0.4), measured(20, lo=0.5), measured(10), measured(10)]
    evaluation = Evaluation(n=60, timing_batch=1, repetitions=3, device="cpu")
    runner = Runner(digits, evaluation, Results(tmp_path), said.append)
    rest = {"ms_per_image": {"value": 1.0}, "speedup": {"value": 1.0}, "repetitions": 3, "batch": 1}
    monkeypatch.setattr("accel.studies.runner.time_recipe", lambda *args, **kwargs: left.pop(0) | rest)
    recipes = Recipe(DDIM, cache=DeepCache(2, 1)), Recipe(DDIM)
    assert runner.timing(*recipes)["disturbance"] == 0.5
    assert "was timed on a disturbed machine (by 50%; at most 25% is kept): the same command times it again" in said[0]
    assert runner.timing(*recipes)["disturbance"] == pytest.approx(0.03)
    assert runner.timing(*recipes)["disturbance"] == pytest.approx(0.03)
    assert len(left) == 1, "a calm one is kept"
