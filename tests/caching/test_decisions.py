"""What each cache decides at a step, and what it forecasts or learns from, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from accel.caching.blocks import remaining
from accel.caching.deepcache import FULL, branch_at, needed
from accel.caching.diffusers_blocks import magnitude_ratio, residual_norm
from accel.caching.encoder_propagation import injected, injects, together
from accel.caching.inheritance import FeatureInheritance, inherits
from accel.caching.learned_router import OBJECTIVES, gate, mixed, router_loss, step_weights
from accel.caching.module_cache import differences, taylor
from accel.caching.schedules import Uniform, released_powers, signed_powers


def test_deepcache_runs_the_whole_network_at_the_full_steps_and_keeps_what_is_coming():
    assert [branch_at(step, frozenset({0, 3}), 2) for step in range(5)] == [FULL, 2, 2, FULL, 2]
    plan = [FULL, 2, 1, 2, FULL, 3]
    assert needed(plan, 0) == [1, 2]
    assert needed(plan, 2) == [1, 2], "a step that had to be full keeps for itself too"
    assert needed(plan, 4) == [3]
    assert needed([FULL, FULL], 0) == []


@pytest.mark.parametrize(("stage", "group", "found"), [
    (1, 1, [1]), (1, 2, [1, 2]), (1, 9, [1, 2, 3]), (5, 9, [5, 6]), (6, 2, [6]),
])  # fmt: skip
def test_decoders_run_together_up_to_the_next_key_step(stage, group, found):
    keys = [True, False, False, False, True, False, False]
    assert together(keys, stage, group) == found


def test_prior_noise_enters_in_the_later_half():
    assert [injects(step, 5) for step in range(5)] == [False, False, False, True, True]
    assert [injects(step, 4) for step in range(4)] == [False, False, True, True]
    x, start = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([2.0, 4.0], dtype=torch.float64)
    assert injected(x, start, 0.25).tolist() == [1.5, 0.0]


def test_modules_inherit_within_the_window_but_not_at_full_steps():
    window = FeatureInheritance(begin=0.25, end=0.75).window
    found = [inherits(step, 8, Uniform(2).full(8), window) for step in range(8)]
    assert found == [False, False, False, True, False, True, False, False]


def test_a_table_names_what_does_not_run():
    assert remaining(["a", "b", "c"], (0, 2)) == {"b"}
    assert remaining(["a", "b", "c"], ()) == {"a", "b", "c"}


def test_taylor_is_the_series_of_its_factors():
    factors = [torch.tensor([v], dtype=torch.float64) for v in (2.0, -1.0, 0.5)]
    assert float(taylor(factors, 3)) == pytest.approx(2 - 3 + 0.5 * 9 / 2)
    assert float(taylor(factors[:1], 3)) == 2.0, "of order 0 it is the last output"


def test_differences_are_those_of_the_runs():
    """y = 1, 3, 2 at steps 0, 1, 4; an order more with each run, up to the one asked for."""
    runs = [torch.tensor(v, dtype=torch.float64) for v in (1.0, 3.0, 2.0)]
    first = differences(runs[0], (), 1, 2)
    second = differences(runs[1], first, 1, 2)
    third = differences(runs[2], second, 3, 2)
    assert [[float(d) for d in run] for run in (first, second)] == [[1.0], [3.0, 2.0]]
    assert [float(d) for d in third] == pytest.approx([2.0, -1 / 3, -7 / 9])
    assert len(differences(runs[2], second, 3, 1)) == 2


def test_the_knots_of_the_non_uniform_schedule():
    """p = 2 by hand: knots -2, 0, 2 of 3 before the end 4; (2 i + (4 - 2 i) / 2)^2 = (2 + i)^2 halfway."""
    assert signed_powers(3, 4, 16, 2.0) == pytest.approx([-4.0, 0.0, 4.0])
    assert released_powers(2, 4, 16, 2.0) == pytest.approx([-4.0, 3.0])


def test_a_router_runs_what_scores_above_the_threshold():
    logits = torch.tensor([math.log(3.0), 0.0, -math.log(3.0)], dtype=torch.float64)  # 3/4, 1/2, 1/4
    assert gate(logits, 0.4).tolist() == [True, True, False]
    assert gate(logits, 0.5).tolist() == [True, False, False]
    assert OBJECTIVES["harmonica"](5) == [0]
    assert OBJECTIVES["l2c"](5) == [0, 2, 4]


def test_a_router_learns_from_mixed_outputs_and_the_relative_error():
    fresh, kept = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 8.0])
    assert mixed(fresh, kept, 0.25).tolist() == [1.0, 6.0]
    student, teacher = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    loss = router_loss(student, teacher, torch.tensor([0.2, 0.6]), weight=2.0, beta=0.5)
    assert float(loss) == pytest.approx(2 * 8 / 10 + 0.5 * 0.4)
    assert step_weights([1.0, 3.0, 2.0]) == [0.5, 1.5, 1.0]
    assert step_weights([0.0, 0.0]) is None


def test_mag_ratios_are_of_what_the_blocks_add_to_each_token():
    before, after = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    assert residual_norm(before, after).tolist() == [5.0, 2.0]
    assert magnitude_ratio(torch.tensor([5.0, 2.0]), torch.tensor([2.5, 4.0])).tolist() == pytest.approx([2.0, 0.5])
