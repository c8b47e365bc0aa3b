"""Encodings: every vector is a candidate, no candidate has two names; what AutoDiffusion's joint space costs."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import numpy as np
import pytest

from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.samplers import DiffusersSampler
from accel.samplers.grids import Grid, PowerGrid
from accel.samplers.noise_schedule import noise_schedule
from accel.search.autodiffusion import JointSpace, widened
from accel.search.spaces import Subset, TimestepSpace

SCHEDULE = noise_schedule({"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02})
GRIDS = (Grid("trailing"), Grid("karras"), PowerGrid())


def space(steps: int, schedule=SCHEDULE, **kwargs) -> TimestepSpace:
    sampler = DiffusersSampler("DEISScheduler", steps, "ddim_accel", {"variant": "tab", "ab_order": 0})
    return TimestepSpace(Recipe(sampler), schedule, GRIDS, **kwargs)


@pytest.mark.parametrize(("size", "total"), [(0, 3), (1, 1), (2, 5), (3, 6), (4, 4), (4, 7)])
def test_encoding_is_a_bijection_onto_increasing_lists(size, total):
    subset = Subset(size, total)
    wanted = set(combinations(range(total), size))
    vectors = {v for v in product(*(range(lo, hi + 1) for lo, hi in subset.bounds)) if list(v) == sorted(v)}
    assert {subset.decode(v) for v in vectors} == wanted
    assert len(vectors) == len(wanted)
    assert all(subset.encode(subset.decode(v)) == v for v in vectors)
    for v in product(*(range(lo, hi + 1) for lo, hi in subset.bounds)):
        assert subset.decode(v) in wanted, "a vector in any order is valid, too"


def test_random_subsets_are_uniform():
    subset, rng = Subset(2, 4), np.random.default_rng(0)
    drawn = [subset.decode(subset.random(rng)) for _ in range(3000)]
    counts = np.array([drawn.count(c) for c in combinations(range(4), 2)])
    assert counts.sum() == 3000
    assert (np.abs(counts - 500) < 5 * 500**0.5).all()


@pytest.mark.parametrize("start", ["free", "last"])
@pytest.mark.parametrize("steps", [1, 2, 10, 999, 1000])
def test_timesteps_of_every_vector_fall_strictly(start, steps):
    own, rng = space(steps, start=start), np.random.default_rng(steps)
    for vector in (*own.seeds, own.random(rng), tuple(hi for _, hi in own.bounds), tuple(lo for lo, _ in own.bounds)):
        times = own.timesteps(own.canonical(vector))
        assert len(times) == steps
        assert all(a > b for a, b in pairwise(times))
        assert times[0] <= 999
        assert times[-1] >= 0
        assert start == "free" or times[0] == 999
        assert own.vector(times) == own.canonical(vector)
        assert list(own.recipe(own.canonical(vector)).grid.timesteps) == list(times)


def test_hand_made_grids_are_where_it_begins():
    own = space(5)
    assert own.timesteps(own.seeds[0]) == (999, 799, 599, 399, 199)
    crowded = space(300)  # karras has many timesteps that round to the same one
    assert len(crowded.seeds) == 3


def test_more_steps_than_the_schedule_has_is_refused():
    with pytest.raises(ConfigError, match=r"1001 timesteps, but the model's schedule has 1000; allowed: .*1\.\.1000"):
        space(1001)
    with pytest.raises(ConfigError, match=r"search.start is 'first'; allowed: free, or last"):
        space(4, start="first")


def test_a_flow_has_timesteps_from_one():
    flow = noise_schedule({"num_train_timesteps": 1000, "shift": 1.0})
    own = space(4, flow)
    assert own.total == 1000
    assert own.timesteps((0, 0, 0, 0)) == (4, 3, 2, 1)
    assert own.timesteps(own.seeds[0])[0] == 1000


@pytest.mark.parametrize("mode", ["remove", "reuse"])
def test_joint_space_leaves_out_exactly_what_more_steps_cost(mode):
    units, steps, more = 7, 3, 4
    joint = JointSpace(space(more), units, (more - steps) * units, mode, (900, 600, 300, 100))
    rng = np.random.default_rng(0)
    for vector in (*joint.seeds, *(joint.random(rng) for _ in range(20))):
        rows = joint.table(joint.canonical(vector))
        assert len(rows) == more
        assert sum(units - len(row) for row in rows) == steps * units, "as many units run as in fewer whole steps"
        assert all(len(set(row)) == len(row) for row in rows)
        assert all(0 <= u < units for row in rows for u in row)
        assert mode == "remove" or rows[0] == ()
    assert joint.times.timesteps(joint.seeds[0][:more]) == (900, 600, 300, 100)


def test_a_step_is_put_into_the_widest_gap():
    once = widened((999, 500, 30), 4, SCHEDULE)
    assert once[:3] == (999, 500, 30)[:1] + once[1:3]
    assert sorted({*once} - {999, 500, 30}) == [t for t in once if t not in (999, 500, 30)]
    assert len(once) == 4
    gaps = np.diff(np.log(SCHEDULE.rho(np.array([999, 500, 30, 0]))))
    (new,) = set(once) - {999, 500, 30}
    widest = int(np.abs(gaps).argmax())
    low, high = [(500, 999), (30, 500), (-1, 30)][widest]
    assert low < new < high
    assert len(set(widened((2, 1), 3, SCHEDULE))) == 3, "a gap without room is passed over"
