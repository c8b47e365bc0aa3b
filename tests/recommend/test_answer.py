"""What is recommended of a study: the cheapest that loses nothing, plain samplers too, on the tracked studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.recommend.answer import _price, answer, told
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.recipe_search import holds, worst_end

TRACKED = Results(Path(__file__).parents[2] / "results")
SEARCH = {"tried": 7, "refused": 1, "optimiser": {"label": "nsga2"}, "cost": {"nfe": 1000}}


@pytest.fixture(params=["headline_digits", "stitching_digits", "caching_digits", "stitching_dit"])
def study(request):
    return Comparison.load(TRACKED, request.param)


def test_the_cheapest_that_holds(study):
    found = answer(study)
    best, others = found.recommended, [row for row in study.done if row.role in ("cell", "control", "plain")]
    assert holds(study, best)
    assert _price(study, best) < 1, "cheaper than what is run today"
    for row in others:
        if row is not best and _price(study, row) < _price(study, best):
            assert not holds(study, row), row.label
    for row in found.safer:
        assert holds(study, row)
        assert _price(study, row) >= _price(study, best)
        assert worst_end(study, row) < worst_end(study, best)
    for row in found.cheaper:
        assert not holds(study, row)
        assert "worse" not in study.verdicts(row).values()
        assert _price(study, row) <= _price(study, best)
    assert len(found.safer) <= 2 >= len(found.cheaper)


def test_every_recipe_that_is_named_has_its_reason(study):
    found = answer(study)
    lines = told(study, found, SEARCH).splitlines()
    named = [found.recommended, *found.safer, *found.cheaper]
    heads = [line for line in lines if line.startswith(("Recommended", "Safer", "Cheaper"))]
    assert [head.partition(": ")[2] for head in heads] == [row.label for row in named]
    for i, line in enumerate(lines):
        if line in heads:
            assert "% of the MACs" in lines[i + 1]
            assert ("holds in" if line[0] in "RS" else "undecided in") in lines[i + 1]


def test_where_nothing_holds_nothing_is_recommended():
    study = Comparison.load(TRACKED, "dmcmc")  # none of its rows is cheaper than the baseline and loses nothing
    found = answer(study)
    assert found.recommended is None
    assert not found.safer
    text = told(study, found, SEARCH)
    assert "Nothing is recommended" in text
    assert "Recommended:" not in text
