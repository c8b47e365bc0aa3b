"""Timing on a clock that the tests turn: order of rounds, what is timed, when it ends, A/A floors, refusals."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count, pairwise

import numpy as np
import pytest
from snapshots import assert_same, snapshot

from accel.caching import DeepCache
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.evaluation import load, timing
from accel.evaluation.intervals import median_interval
from accel.evaluation.load import Round
from accel.evaluation.timing import enough, interleave, stopwatch, time_recipes, warmed
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
    """Wall and processor time; nobody else is on the machine."""
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    monkeypatch.setattr(timing.time, "process_time", clock)
    monkeypatch.setattr(load, "busy_seconds", lambda: None)
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


# --- how many rounds


def endless(values, foreign=()):
    """Rounds whose ratio a / b is `values` in turn, and 1 when they are over."""
    for i in count():
        value = values[i] if i < len(values) else 1.0
        yield Round({"a": value, "b": 1.0}, {}, foreign[i] if i < len(foreign) else 0.0)


def taken(values, foreign=(), least=6, most=12, precision=0.05):
    found = []
    for one in endless(values, foreign):
        found.append(one)
        if (end := enough(found, lambda s: s["a"] / s["b"], least, most, precision)) is not None:
            return end
    return None


def test_rounds_end_when_the_interval_is_narrow():
    assert len(taken([1.0] * 3).seconds["a"]) == 6, "the least"
    wide = taken([0.5, 2.0])  # until neither is in the interval: the second smallest of nine
    assert (len(wide.seconds["a"]), wide.narrow) == (9, True)
    assert wide.seconds["a"].tolist() == [0.5, 2.0] + [1.0] * 7


def test_rounds_end_at_the_most_and_that_is_said():
    found = taken([0.5, 2.0] * 20)
    assert (len(found.seconds["a"]), found.narrow) == (12, False)
    assert taken([1.0, 1.001] * 20, precision=0.0).narrow is False
    assert taken([1.0] * 20, precision=0.0).narrow is True


def test_disturbed_rounds_are_measured_again():
    found = taken([9.0] * 2, foreign=[1000.0] * 2)
    assert found.seconds["a"].tolist() == [1.0] * 6
    assert (found.rejected, found.tolerated) == (2, 0)


def test_a_machine_that_is_always_busy_does_not_hold_it_up_for_ever():
    found = taken([], foreign=[1000.0] * 99, least=6)
    assert (len(found.seconds["a"]), found.rejected, found.tolerated) == (6, 5, 6)


def test_stopping_when_it_is_narrow_costs_little_coverage():
    """Log-normal ratios, looked at after each round: the interval at the end holds the median nearly as often."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(250):
        found = taken(rng.lognormal(0.0, 0.1, 40), least=9, most=25)
        own = median_interval(found.seconds["a"])
        held += own["lo"] <= 1.0 <= own["hi"]
    assert held / 250 >= 0.91


# --- recipes


@pytest.fixture
def timed(monkeypatch, clock, pipe, digits):
    """timed(recipe, baseline, seconds) -> its result of time_recipes; generating takes seconds(recipe, call number)."""
    calls = []

    def timed(recipe, baseline, seconds, **kwargs):
        def generate(pipe, suite, which, seed, start, stop, batch):
            calls.append((which, seed, start, stop, batch))
            clock.work(seconds(which, len(calls)))

        monkeypatch.setattr(timing, "generate", generate)
        return time_recipes(pipe, digits, [recipe], baseline, **kwargs)[0], calls

    return timed


def test_ratios_and_units(timed):
    recipe, baseline = Recipe(DDIM, cache=DeepCache(2, 1)), Recipe(DDIM)
    found, calls = timed(recipe, baseline, lambda which, n: 0.2 if which is recipe else 0.8, batch=4, repetitions=6)
    assert found["ms_per_image"]["value"] == pytest.approx(50)
    assert found["baseline_ms"]["value"] == pytest.approx(200)
    assert found["speedup"] == pytest.approx({"value": 4, "lo": 4, "hi": 4})
    assert found["aa"] == found["aa_recipe"] == pytest.approx({"value": 1, "lo": 1, "hi": 1})
    assert (found["repetitions"], found["batch"], found["stopped"], found["protocol"]) == (6, 4, "narrow", 2)
    assert (found["rejected"], found["tolerated"]) == (0, 0)
    # A round is baseline, recipe, baseline, recipe, every other one backwards; every run generates one whole batch.
    rounds = ([True, False] * 2 + [False, True] * 2) * 3 + [True, False] * 2
    assert [which is recipe for which, *_ in calls] == rounds + [True] * 3, "stages are timed by further calls"
    assert found["stages"] == pytest.approx({"rest": 50})
    assert {tuple(rest) for _, *rest in calls} == {(0, 0, 4, 4)}


def test_each_arm_is_held_against_itself(timed):
    """A recipe whose second run in a round takes twice as long shows it in its own floor, not in the baseline's."""
    recipe = Recipe(DDIM, cache=DeepCache(2, 1))

    def seconds(which, n):
        backwards = (n - 1) // 4 % 2 == 0  # as the warm-up is
        again = n % 4 == (1 if backwards else 0)
        return (0.2 if again else 0.1) if which is recipe else 1.0

    found, _ = timed(recipe, Recipe(DDIM), seconds, repetitions=6)
    assert found["aa"] == pytest.approx({"value": 1, "lo": 1, "hi": 1})
    assert found["aa_recipe"] == pytest.approx({"value": 0.5, "lo": 0.5, "hi": 0.5})
    assert found["speedup"]["value"] == pytest.approx(2 / 0.3)


def test_floor_shows_the_noise_of_the_baseline(timed):
    """Baseline runs that differ by 20 % at random: no speed-up within that is one."""
    rng, recipe = np.random.default_rng(0), Recipe(DDIM, cache=DeepCache(2, 1))
    found, _ = timed(recipe, Recipe(DDIM), lambda which, n: rng.uniform(0.9, 1.1), repetitions=15)
    assert {"aa", "aa_recipe"} <= set(found)
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

    timed(recipe, Recipe(DDIM), seconds, repetitions=6)
    there, back = ["torch.float32", "torch.bfloat16"] * 2, ["torch.bfloat16", "torch.float32"] * 2
    assert [str(s) for s in states] == (back + there) * 3 + back + ["torch.bfloat16"] * 3
    assert_same(before, snapshot(pipe))


def test_simulated_recipes_are_refused_before_anything_runs(timed):
    simulated = Recipe(DDIM, precision=FakeQuant())
    for recipe, baseline in ((simulated, Recipe(DDIM)), (Recipe(DDIM), simulated)):
        with pytest.raises(ConfigError, match=r"ddim-4 \+ w8a8\(sim\) is simulated: .* never timed"):
            timed(recipe, baseline, lambda which, n: pytest.fail("it ran"))


def test_a_real_timing_is_plausible(pipe, digits):
    """A few rounds on the real clock: more steps take more time, and the parts fit together."""
    longer = Recipe(DiffusersSampler("DDIMScheduler", 12))
    short = Recipe(DiffusersSampler("DDIMScheduler", 2))
    found = time_recipes(pipe, digits, [short], longer, batch=1, repetitions=2, most_repetitions=2)[0]
    assert found["repetitions"] == 2
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
    kept = measured() | {"repetitions": 10, "tolerated": 4}
    assert timing.disturbance(kept) == pytest.approx(0.4), "rounds that had to be kept on a busy machine"
    assert timing.disturbance(kept | {"tolerated": 0}) == pytest.approx(0.03)


def test_a_disturbed_timing_is_tried_again_and_the_calmest_is_kept():
    for found, tries, kept in (([measured(ms=1)], 1, 1), ([measured(lo=0.5), measured(ms=2)], 2, 2),
                               ([measured(1, lo=0.5), measured(2, hi=3.0)], 2, 1)):  # fmt: skip
        left = list(found)
        got = timing.calmest(lambda places, left=left: [left.pop(0)], 1)[0]
        assert len(found) - len(left) == tries
        assert got["baseline_ms"]["value"] == kept
        assert (
            timing.disturbed(got)
            == (not got["calm"])
            == (got["disturbance"] > timing.DISTURBED)
            == (kept == 1 and tries == 2)
        )


def test_a_machine_that_is_busy_throughout_is_not_tried_again_at_once():
    left = [measured() | {"repetitions": 9, "tolerated": 8}, measured()]
    assert timing.disturbed(timing.calmest(lambda places: [left.pop(0)], 1)[0])
    assert len(left) == 1


def test_records_from_before_disturbances_were_kept_stay_valid():
    assert not timing.disturbed(measured(lo=0.1))


def test_the_same_command_times_a_disturbed_recipe_again(pipe, digits, tmp_path, monkeypatch):
    said, left = [], [measured(20, lo=0.4), measured(20, lo=0.5), measured(10), measured(10)]
    evaluation = Evaluation(n=60, timing_batch=1, repetitions=6, device="cpu")
    runner = Runner(digits, evaluation, Results(tmp_path), said.append)
    rest = {"ms_per_image": {"value": 1.0}, "speedup": {"value": 1.0}, "repetitions": 3, "batch": 1}
    monkeypatch.setattr("accel.studies.runner.time_recipes", lambda *args, **kwargs: [left.pop(0) | rest])
    recipes = Recipe(DDIM, cache=DeepCache(2, 1)), Recipe(DDIM)
    assert runner.timing(*recipes)["disturbance"] == 0.5
    assert "was timed on a disturbed machine (by 50%; at most 25% is kept): the same command times it again" in said[0]
    assert runner.timing(*recipes)["disturbance"] == pytest.approx(0.03)
    assert runner.timing(*recipes)["disturbance"] == pytest.approx(0.03)
    assert len(left) == 1, "a calm one is kept"


# --- batches


@pytest.fixture
def runner(digits, tmp_path, monkeypatch):
    """runner(**settings) -> a runner whose timings are made up, and what it says."""

    def made(**settings):
        monkeypatch.setattr(
            "accel.studies.runner.time_recipes",
            lambda pipe, suite, recipes, baseline, batch, **kwargs: [
                measured() | {"batch": batch, "ms_per_image": {}, "speedup": {}} for _ in recipes
            ],
        )
        said = []
        return Runner(digits, Evaluation(n=60, device="cpu", **settings), Results(tmp_path), said.append), said

    return made


def test_each_batch_has_a_record_and_the_first_is_the_study_s(runner):
    recipes = Recipe(DDIM, cache=DeepCache(2, 1)), Recipe(DDIM)
    both, _ = runner(timing_batch=[8, 1])
    found = both.timings([recipes[0]], recipes[1])[0]
    assert [record["batch"] for record in found] == [8, 1]
    assert [record["id"] for record in found] == [both.timing_id(*recipes, batch) for batch in (8, 1)]
    assert both.timing(*recipes)["id"] == found[0]["id"]
    one, _ = runner(timing_batch=1)
    assert one.timing_id(*recipes) == found[1]["id"], "an id is of one batch, however many others there are"


def test_the_id_tells_protocols_and_rules_of_stopping_apart(runner, monkeypatch):
    recipes, ids = (Recipe(DDIM, cache=DeepCache(2, 1)), Recipe(DDIM)), set()
    for own in ({}, {"repetitions": 10}, {"most_repetitions": 30}, {"timing_precision": 0.1}, {"timing_batch": 4}):
        ids.add(runner(**own)[0].timing_id(*recipes))
    monkeypatch.setattr("accel.studies.runner.PROTOCOL", 3)
    assert len(ids | {runner()[0].timing_id(*recipes)}) == 6


def test_a_batch_that_a_sampler_s_groups_do_not_fill_is_left_out_and_said(runner, monkeypatch):
    monkeypatch.setattr(DiffusersSampler, "group", lambda self, period: 4)
    both, said = runner(timing_batch=[8, 1])
    assert [record["batch"] for record in both.timings([Recipe(DDIM)], Recipe(DDIM))[0]] == [8]
    assert said == ["ddim-4 makes samples in groups of 4: not timed at batch 1 of evaluation.timing_batch."]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"repetitions": 5}, r"evaluation.repetitions is 5; allowed: an integer >= 6 \(fewer rounds have no 95 %"),
        ({"repetitions": 9, "most_repetitions": 8}, r"most_repetitions is 8; allowed: an integer >= 9"),
        ({"timing_precision": -0.1}, r"timing_precision is -0.1; allowed: a number in \[0.0, 1.0\]"),
        *[({"timing_batch": b}, r"timing_batch is .*; allowed: an integer >= 1, or several different ones")
          for b in (0, [], [8, 8], [1, 0], "8", True, None, [True], 2.5, [[1]])],
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Evaluation(**settings)


# --- equal time
