"""Several recipes in the same rounds: what is shared, who leaves when, and what a study makes of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from accel.caching import DeepCache
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.evaluation import load, timing
from accel.evaluation.timing import time_recipes
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.studies import study as studies
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner

BASE, FAST, FASTER, SLOW = (Recipe(DiffusersSampler("DDIMScheduler", n, "ddim")) for n in (8, 4, 2, 9))


@pytest.fixture
def times(monkeypatch, pipe, digits):
    """times(recipes, seconds, **kwargs): results, and who ran; a run of `which` takes seconds(which, run's number)."""
    now, calls = [1000.0], []
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(timing.time, name, lambda: now[0])
    monkeypatch.setattr(load, "busy_seconds", lambda: None)

    def times(recipes, seconds, **kwargs):
        def generate(pipe, suite, which, **_):
            calls.append(which)
            now[0] += seconds(which, len(calls))

        monkeypatch.setattr(timing, "generate", generate)
        return time_recipes(pipe, digits, recipes, BASE, batch=1, **kwargs), calls

    return times


def by_steps(which, n):
    return which.sampler.steps / 8


def test_how_many_rounds_there_will_be_is_told(times):
    """At least as many as are asked for; more where an interval is wide, and never more than most."""
    told = []
    times([FAST, FASTER], by_steps, repetitions=6, on_round=lambda *said: told.append(said))
    assert told == [(kept, 6, 6, 25) for kept in range(6)], "the last round needs no outlook"

    def noisy(which, n):
        return by_steps(which, n) * (1.2 if which == FAST and n % 3 else 1.0)

    told.clear()
    [_, found] = times(
        [FASTER, FAST], noisy, repetitions=6, most_repetitions=20, precision=0.01, on_round=lambda *s: told.append(s)
    )[0]
    assert found["repetitions"] == 20
    assert [kept for kept, *_ in told] == [*range(20)]
    assert told[0] == (0, 6, 6, 20)
    assert {expected for kept, expected, *_ in told if kept >= 10} == {20}
    assert all(kept < expected <= 20 for kept, expected, *_ in told)


def test_recipes_share_the_baseline_of_a_round(times):
    found, calls = times([FAST, FASTER], by_steps, repetitions=6)
    there = [BASE, FAST, FASTER] * 2
    stages = [FAST] * timing.STAGE_CALLS + [FASTER] * timing.STAGE_CALLS
    rounds = (there[::-1] + there) * 3 + there[::-1]
    assert calls == rounds + stages, "one warm-up round and six, every other one backwards"
    assert [one["speedup"]["value"] for one in found] == pytest.approx([2, 4])
    assert [one["ms_per_image"]["value"] for one in found] == pytest.approx([500, 250])
    assert [(one["baseline_ms"]["value"], one["repetitions"], one["together"]) for one in found] == [(1000, 6, 2)] * 2


def test_a_recipe_leaves_when_it_has_enough(times):
    """FASTER's time jumps between 1 and 2, so that its interval never becomes narrow."""

    def seconds(which, n):
        return 1.0 + (n // 6 % 2 if which is FASTER else 0)

    found, calls = times([FAST, FASTER], seconds, repetitions=6, most_repetitions=10)
    assert [(one["repetitions"], one["stopped"]) for one in found] == [(6, "narrow"), (10, "most")]
    stages = timing.STAGE_CALLS
    assert [calls.count(one) for one in (FAST, FASTER, BASE)] == [2 * 7 + stages, 2 * 11 + stages, 2 * 11]


def test_together_is_as_alone(times):
    """A drift of 1 % a run cancels in long rounds as in short ones."""
    drift = lambda which, n: by_steps(which, n) * 1.01**n  # noqa: E731
    together, _ = times([FAST, FASTER, SLOW], drift, repetitions=10)
    for one, steps in zip(together, (4, 2, 9), strict=True):
        assert one["speedup"]["value"] == pytest.approx(8 / steps, rel=5e-3)


def test_a_round_is_judged_by_the_recipe_s_own_arms(times, monkeypatch):
    """Processor time that falls behind in the run of one recipe is no reason to throw away the round of another."""
    behind = [0.0]
    clock = timing.time.perf_counter
    monkeypatch.setattr(timing.time, "process_time", lambda: clock() - behind[0])

    def seconds(which, n):
        if which is FASTER and n in (9, 12):  # in the first round that counts
            behind[0] += 1.0
            return 1.25
        return by_steps(which, n)

    found, _ = times([FAST, FASTER], seconds, repetitions=6)
    assert [one["rejected"] for one in found] == [0, 1]
    assert [one["speedup"]["value"] for one in found] == pytest.approx([2, 4])


def test_only_the_disturbed_are_timed_again():
    asked = []

    def measure(places):
        asked.append(list(places))
        off = 0.5 if len(asked) == 1 else 0.1
        return [
            {"baseline_ms": {"value": 1.0}, "aa": {"value": 1.0, "lo": 1 - off * (place == 1), "hi": 1.0}}
            for place in places
        ]

    found = timing.calmest(measure, 3)
    assert asked == [[0, 1, 2], [1]]
    assert [one["disturbance"] for one in found] == pytest.approx([0, 0.1, 0])


# --- in a study


@pytest.fixture
def together(monkeypatch):
    """Labels of the recipes of each run of common rounds, which are made up, as are samples and costs (a cache halves
    them); one in `broken` fails."""
    seen, broken = [], []

    def made(pipe, suite, recipes, baseline, batch, **_):
        seen.append((batch, [one.label for one in recipes]))
        if bad := [one for one in recipes if one.label in broken]:
            raise ConfigError(f"{bad[0].label} fails")
        of = {"value": 1.0, "lo": 1.0, "hi": 1.0}
        keys = ("speedup", "aa", "aa_recipe", "ms_per_image", "baseline_ms")
        return [dict.fromkeys(keys, of) | {"batch": batch, "repetitions": 9} for _ in recipes]

    def images(pipe, suite, recipe, seed, start, stop, batch):
        return torch.randn(stop - start, 1, 16, 16, generator=torch.Generator().manual_seed(recipe.sampler.steps))

    def cost(pipe, suite, recipe, *_):
        steps = recipe.sampler.steps
        return {"steps": steps, "nfe": steps, "macs": steps / (2 if recipe.cache else 1), "strip": "",
                "model_bytes": 1, "peak_bytes": 1}  # fmt: skip

    monkeypatch.setattr("accel.studies.samples.generate", images)
    monkeypatch.setattr("accel.studies.runner.counted_cost", cost)
    monkeypatch.setattr("accel.studies.runner.time_recipes", made)
    monkeypatch.setattr(studies, "write_figures", lambda results, name: [])
    return seen, broken


def study(digits, folder: Path, cells, **settings) -> studies.Study:
    e = Evaluation(n=60, distance_n=60, batch=60, shard=60, device="cpu", timing_batch=[8, 1], **settings)
    return studies.Study("s", "t", digits, e, Results(folder), BASE, cells, console=Console(file=io.StringIO()),
                         wandb="disabled")  # fmt: skip


def rows(made: studies.Study) -> dict[str, dict]:
    return {row["label"]: row for row in made.results.load_study("s")["rows"] if row["role"] != "floor"}


def test_a_study_times_its_cells_together_and_finds_what_is_there(digits, tmp_path, together, monkeypatch):
    seen, _ = together
    monkeypatch.setattr(studies, "TOGETHER", 2)
    cached = Recipe(DiffusersSampler("DDIMScheduler", 10, "ddim"), cache=DeepCache(2, 1))
    made = study(digits, tmp_path, [FASTER, cached, SLOW])
    assert made.run() == 0
    controls = {label for label, row in rows(made).items() if row["role"] == "control"}
    assert controls == {"ddim-5", BASE.label}, "equal MACs, and equal time, with a speed-up of 1"
    names = [BASE.label, FASTER.label, cached.label, SLOW.label]
    assert seen == [(batch, own) for own in (names[:2], names[2:], ["ddim-5"]) for batch in (8, 1)]
    ids = {label: (row["timing"], row.get("timings")) for label, row in rows(made).items()}
    runner = Runner(digits, made.evaluation, made.results)
    assert ids[SLOW.label] == (runner.timing_id(SLOW, BASE, 8), [runner.timing_id(SLOW, BASE, 1)])

    seen.clear()
    more = study(digits, tmp_path, [FASTER, FAST, cached, SLOW])
    assert more.run() == 0
    assert seen == [(8, [FAST.label]), (1, [FAST.label])], "the others are there"
    again = {label: (row["timing"], row.get("timings")) for label, row in rows(more).items()}
    assert ids.items() <= again.items()


def test_who_fails_while_timed_fails_alone(digits, tmp_path, together):
    _, broken = together
    broken.append(FAST.label)
    made = study(digits, tmp_path, [FASTER, FAST, SLOW])
    assert made.run() == 1
    found = rows(made)
    assert found[FAST.label]["refused"] == f"failed: {FAST.label} fails"
    assert all(found[one.label]["timing"] for one in (BASE, FASTER, SLOW))


def test_the_order_of_rounds_is_even():
    """A round forwards and one backwards: every arm has the same mean place, whatever the number of recipes."""
    for count in (1, 2, 6):
        places = np.arange(2 * (count + 1))
        assert np.all(places + places[::-1] == places.sum() / (count + 1))
