"""evaluation.n=auto: N comes from the variance alone, and a second run at that N ends the study."""

from __future__ import annotations

import pytest

from accel.errors import ConfigError
from accel.metrics.verdicts import needed_n
from accel.results.comparison import Comparison
from accel.studies.enough import next_n, undecided
from accel.studies.evaluation import Evaluation
from tests.results.conftest import Fabric, estimate


def study(root, shift, own=0.4, n=1000):
    fabric = Fabric(root)
    base = fabric.quality("base", 2.0, n=n)
    cell = fabric.quality("cell", 2.0, n=n)
    for record, value, private in ((base, 2.0, 0.004), (cell, 2.0 + shift, own)):
        record["values"] = {"fid_digits": estimate(value, "cell", n, own=private)}
        fabric.results.save(record)
    fabric.line("baseline", base)
    fabric.line("cell", cell)
    fabric.save(n=n)
    return Comparison.load(fabric.results, "demo")


def test_the_next_n_is_that_of_the_standard_error(tmp_path):
    found = study(tmp_path, 0.0)
    ((row, key),) = undecided(found)
    delta = found.delta(row, found.baseline, key)
    n, said = next_n(found, 1000, 10**6, 10)
    assert n % 10 == 0
    assert needed_n(delta.se, 1000, 0.2) <= n < needed_n(delta.se, 1000, 0.2) + 10
    assert "1 rows are undecided at N = 1,000" in said


def test_which_side_a_difference_is_on_does_not_matter(tmp_path):
    """Else looking would raise the rate of false alarms."""
    sides = [next_n(study(tmp_path / str(shift), shift), 1000, 10**6, 10)[0] for shift in (-0.02, 0.02)]
    assert sides[0] == pytest.approx(sides[1], rel=0.2)  # the standard error of a fabricated record goes with its value
    assert min(sides) > 1000


def test_it_ends_where_every_row_is_decided_or_at_the_cap(tmp_path):
    assert next_n(study(tmp_path / "decided", 0.0, own=0.004), 1000, 10**6, 10)[0] is None
    n, said = next_n(study(tmp_path / "capped", 0.0), 1000, 1000, 10)
    assert n is None
    assert "1 rows stay undecided, at the cap" in said


def test_auto_begins_with_the_pilot():
    auto = Evaluation(n="auto", pilot=200)
    assert (auto.n, auto.auto, Evaluation(n=200).auto) == (200, True, False)
    with pytest.raises(ConfigError, match=r"evaluation\.n"):
        Evaluation(n="automatic")
