"""Successive halving and the ledger, on scores that are made up."""

from __future__ import annotations

import math

import pytest

from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.samplers import DiffusersSampler
from accel.search.evaluations import Score
from accel.search.objective import STALLED, BudgetSpent, Halving, Objective
from accel.search.pareto import order
from accel.search.spaces import Space

HALVING = Halving(first=8, doublings=2, keep=0.5)  # 8, 16, 32 samples


class Line(Space):
    """0..99; the recipe of x has 1 + x % 2 steps, so that costs differ."""

    bounds = ((0, 99),)
    seeds = ((50,),)

    def canonical(self, vector):
        return tuple(int(v) for v in vector)

    def random(self, rng):
        return (int(rng.integers(100)),)

    def recipe(self, vector):
        return Recipe(DiffusersSampler("DDIMScheduler", 1 + vector[0] % 2, f"s{vector[0]}"))


class Scores:
    """Score of x on n samples: x + 100 / n, a bias like that of FID; it notes what it is asked."""

    def __init__(self, infinite=()):
        self.asked, self.infinite = [], infinite

    def key(self, recipe):
        return recipe.sampler.name

    def __call__(self, recipes, n):
        found = []
        for recipe in recipes:
            x = int(recipe.sampler.name[1:])
            self.asked.append((x, n))
            found.append(Score(math.inf if x in self.infinite else x + 100 / n, 0.5))
        return found


def objective(budget=10_000, scores=None, **kwargs) -> tuple[Objective, Scores]:
    scores = scores or Scores()
    return Objective(Line(), scores, HALVING, budget, **kwargs), scores


def test_only_the_best_half_gets_more_samples_and_nothing_is_scored_twice():
    own, scores = objective()
    assert own([(40,), (60,), (70,), (80,)]) == [(-10.0,), (10.0,), (20.0,), (30.0,)]
    by_n = {n: {x for x, m in scores.asked if m == n} for n in HALVING.rungs}
    assert by_n == {8: {40, 50, 60, 70, 80}, 16: {40, 50, 60}, 32: {40, 50}}
    own([(10,), (40,)])
    assert len(set(scores.asked)) == len(scores.asked)
    assert [t.vector for t in own.finished()] == [(10,), (40,), (50,)]
    assert own.best.vector == (10,)


def test_scores_of_different_n_compare():
    """The bias that depends on n cancels in the difference to the reference."""
    own, _ = objective()
    (early,), (late,) = own([(90,), (20,)])
    assert own.trials[(90,)].n == 8
    assert own.trials[(20,)].n == 32
    assert (early, late) == (40.0, -30.0)


def test_ledger_counts_evaluations_and_seconds_once():
    own, scores = objective()
    assert own.ledger.nfe == 32  # the reference, one step
    own([(40,), (60,), (71,)])
    # 40: 32 samples; 60 on 16 at most (half of 4 are kept), 71 on 8 with two steps.
    asked = [(x, n) for x, n in scores.asked if x != 50]
    most = {x: max(n for y, n in asked if y == x) for x, _ in asked}
    assert own.ledger.nfe == 32 + sum(n * (1 + x % 2) for x, n in most.items())
    assert own.ledger.seconds == 0.5 * len(scores.asked)
    before = own.ledger.nfe
    again = Objective(Line(), scores, HALVING, 10_000, own.ledger)
    again([(40,), (60,), (71,)])
    assert own.ledger.nfe == before, "another stage of the same search pays for nothing twice"


def test_budget_ends_the_search_and_is_never_exceeded():
    own, _ = objective(budget=100)
    with pytest.raises(BudgetSpent):
        all(own([(x,)]) for x in range(0, 100, 2))
    assert own.ledger.nfe <= 100
    assert own.trials[(0,)].scores, "what could be paid was scored"


def test_a_search_that_finds_nothing_new_ends():
    own, _ = objective()
    with pytest.raises(BudgetSpent):
        all(own([(50,)]) for _ in range(STALLED + 1))


def test_a_space_whose_every_candidate_has_been_tried_ends_the_search():
    class Short(Line):
        bounds = ((50, 52),)

    own = Objective(Short(), Scores(), HALVING, 10_000)
    own([(51,)])
    own([(51,)]), own([(51,)])
    assert own([(52,), (51,)]) == [(2.0,), (1.0,)], "what is new is told"
    with pytest.raises(BudgetSpent):
        own([(50,), (52,)])


def test_budget_below_one_candidate_is_refused():
    with pytest.raises(ConfigError, match=r"budget of 31 network evaluations, but .* takes 32 \(1 for each of 32 samp"):
        objective(budget=31)
    with pytest.raises(ConfigError, match=r"search\.halving\.first is 1"):
        Halving(first=1)


def test_what_is_over_the_limit_is_worse_than_any_score_and_ranked_by_its_excess():
    own, scores = objective(costs=lambda r: (float(r.sampler.name[1:]),), limit=60.0)
    points = own([(99,), (60,), (70,)])
    assert points[1] == (10.0, 60.0)
    assert {x for x, _ in scores.asked} == {50, 60}
    assert order(points) == [1, 2, 0]
    with pytest.raises(BudgetSpent):
        all(own([(61 + i % 39,)]) for i in range(STALLED + 1))


def test_what_diverges_or_is_refused_is_worst():
    own, scores = objective(scores=Scores(infinite=(20,)), costs=lambda r: None if r.sampler.name == "s30" else (1.0,))
    assert own([(20,), (30,), (40,)]) == [(math.inf, 1.0), (math.inf, math.inf), (-10.0, 1.0)]
    assert 30 not in {x for x, _ in scores.asked}
    assert (20, 16) not in scores.asked
    assert own.best.vector == (40,)


def test_a_search_that_came_to_nothing_says_what_mends_it():
    own, _ = objective(scores=Scores(infinite=range(51, 100)))
    own([(60,), (70,)])
    assert own.some([own.trials[60,]]) == [own.trials[60,]]
    with pytest.raises(ConfigError, match=r"scored none on 32 samples.* larger search\.budget \(now 10000 network"):
        own.some([t for t in own.finished() if t.vector != (50,)])
