"""AutoDiffusion's two stages on digits: what is searched, what each candidate costs, and what comes out."""

from __future__ import annotations

import pytest

from accel.caching.blocks import units
from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError
from accel.samplers import DiffusersSampler
from accel.search.autodiffusion import AutoDiffusion
from accel.search.base import Room
from accel.search.objective import Halving
from accel.search.optimisers import RandomSearch
from accel.stitching import TStitch
from accel.studies.evaluation import Evaluation

BASE = Recipe(DiffusersSampler("DEISScheduler", 3, "ddim_accel", {"variant": "tab", "ab_order": 0}))
SMALL = Recipe(BASE.sampler, stitch=TStitch(fractions=(1.0,)))
EVALUATION = Evaluation(n=60, distance_n=60, timing=False, device="cpu")
SEARCH = AutoDiffusion("fid", Halving(4, 1), 600, 2, 8, first_stage=0.4, max_skipped=0.4)


def room(search, root, digits, base=BASE) -> Room:
    return Room(search, RandomSearch(batch=3), base, digits, EVALUATION, root)


@pytest.mark.parametrize("mode", ["remove", "reuse"])
def test_two_stages_at_equal_cost(mode, tmp_path, digits, pipe):
    search = AutoDiffusion("fid", Halving(4, 1), 340, 2, 4, first_stage=0.4, max_skipped=0.4, mode=mode)
    record = search.run(room(search, tmp_path, digits))
    assert record["cost"]["nfe"] <= 340
    assert record["method"] == "autodiffusion"
    count = len(units(pipe.unet))
    first = [h for h in record["history"] if "without" not in h["candidate"]]
    later = [h["candidate"].split(" without ") for h in record["history"] if "without" in h["candidate"]]
    assert len(first) > 3
    assert {len(times.split()) for times, _ in later} == {4, 5}, "1 - 3/5 = 0.4 is the most that is left out"
    for times, rows in later:
        left_out = [row.split(",") if row else [] for row in rows.split(";")]
        steps = len(times.split())
        assert len(left_out) == steps
        assert steps * count - sum(map(len, left_out)) == 3 * count, "it runs as many units as three whole steps"
    found = search.found(BASE, record)
    found.check(pipe)
    assert (found.cache is None) == (record["table"] is None)
    assert found.sampler.steps == len(record["timesteps"])
    overrides = search.overrides(record)
    assert ("cache=blocks" in overrides) == (found.cache is not None)


def test_a_table_that_was_found_can_be_deployed():
    from accel.config import recipe_from

    record = {"timesteps": [900, 600, 300, 50], "table": [[], [1, 4], [], [0]]}
    made = recipe_from(("sampler=ddim_accel", *SEARCH.overrides(record)))
    assert made == SEARCH.found(Recipe(made.sampler), record)
    assert made.cache.table == ((), (1, 4), (), (0,))


def test_number_of_steps_of_the_second_stage():
    assert list(AutoDiffusion(max_skipped=0.25).more_steps(3)) == [4]
    assert list(AutoDiffusion(max_skipped=0.25).more_steps(10)) == [11, 12, 13]
    assert list(AutoDiffusion(max_skipped=0.0).more_steps(4)) == []


def test_bad_requests(tmp_path, digits):
    with pytest.raises(IncompatibleError, match="decides which blocks run; use cache=none and stitch=none"):
        SEARCH.run(room(SEARCH, tmp_path, digits, SMALL))
    with pytest.raises(ConfigError, match=r"search\.max_skipped is 1"):
        AutoDiffusion(max_skipped=1.0)
    with pytest.raises(ConfigError, match=r"unknown search\.mode 'skip'"):
        AutoDiffusion(mode="skip")
