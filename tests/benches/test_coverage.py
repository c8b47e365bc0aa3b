"""Coverage over sets: of values whose intervals are known to be right, too narrow and too wide; and a tiny run."""

import numpy as np
import pytest

from accel.benches.coverage import LEAST, alarms, check_sets, main, rows, summary
from accel.benches.coverage_table import write_coverage
from accel.errors import ConfigError
from accel.metrics.statistics import Estimate, mean_estimate
from accel.records import Results
from accel.suites.digits import DigitsSuite


def sets(count: int = 60, n: int = 100, shift: float = 0.0, seed: int = 0) -> list[Estimate]:
    """Means of normal samples, whose intervals are exact."""
    rng = np.random.default_rng(seed)
    return [mean_estimate(rng.normal(shift, size=n)) for _ in range(count)]


def scaled(estimate: Estimate, factor: float) -> Estimate:
    replicates = [estimate.value + factor * (r - estimate.value) for r in estimate.replicates]
    return Estimate.from_replicates(estimate.value, replicates, estimate.n)


def test_right_intervals_cover_and_narrow_ones_do_not():
    own = sets()
    found = summary(own)
    assert (found["sets"], found["mean"]) == (60, pytest.approx(0, abs=0.05))
    assert found["se"] / found["sd"] == pytest.approx(1, abs=0.25)
    assert found["covers"] > 0.88
    assert found["half"] == pytest.approx(2.093 * found["se"], rel=1e-3)
    narrow, wide = (summary([scaled(e, f) for e in own]) for f in (0.2, 3.0))
    assert narrow["covers"] < 0.5
    assert wide["covers"] == 1
    assert narrow["se"] == pytest.approx(0.2 * found["se"])


def test_false_alarms_are_those_of_two_sets_of_one_recipe():
    own = sets()
    assert alarms(own) == pytest.approx(0.05, abs=0.04)
    assert alarms([scaled(e, 0.2) for e in own]) > 0.4
    assert alarms([scaled(e, 3.0) for e in own]) == 0


def test_differences_are_paired_with_the_baselines_set():
    base, other = {"fid": sets()}, {"fid": [scaled(e, 1.0) for e in sets(shift=0.5)]}
    found = {(r["recipe"], r["of"]): r for r in rows({"base": base, "other": other}, "base")}
    assert set(found) == {("base", None), ("other", None), ("other", "base")}
    difference = found["other", "base"]
    assert (difference["mean"], difference["sd"]) == (pytest.approx(0.5), pytest.approx(0, abs=1e-12))
    assert difference["decided"] == 1
    assert difference["alarms"] is None


def test_sets_that_cannot_be_are_refused():
    for sizes, samples, message in (
        ((255,), 9999, "multiples of 10"),
        ((100,), 700, f"7 sets of --n 100; needed: at least {LEAST} sets, --samples 800"),
        ((50,), 9999, "--n is 50"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_sets(DigitsSuite(), sizes, samples)


def test_a_second_call_goes_on_and_the_table_is_made_of_the_records(tmp_path, capsys, monkeypatch):
    command = ["--results", str(tmp_path), "--n", "60", "90", "--samples", "270", "--recipes",
               "sampler=dpmpp_2m sampler.steps=1", "--baseline", "sampler=ddim sampler.steps=1"]  # fmt: skip
    with pytest.raises(ConfigError, match="at least 8 sets"):
        main(command)
    monkeypatch.setattr("accel.benches.coverage.LEAST", 3)
    main(command)
    results = Results(tmp_path)
    records = {r["n"]: r for r in results.all("coverage")}
    assert {n: r["sets"] for n, r in records.items()} == {60: 4, 90: 3}
    values = {"fid_digits", "kid_digits", "precision", "recall", "accuracy", "nearest"}
    assert {row["value"] for row in records[60]["rows"]} == values
    assert len(records[60]["rows"]) == 3 * len(values)
    text = (tmp_path / "tables/coverage.md").read_text()
    assert "4 of N = 60, 3 of N = 90" in text
    assert "`accel bench coverage --results" in text
    assert text.count("\n| FID (digits) | ") == 2 + 2 * 3
    assert len((tmp_path / "tables/coverage.csv").read_text().splitlines()) == 1 + 2 * 3 * len(values)
    monkeypatch.setattr("accel.benches.coverage.score", None)
    monkeypatch.setattr("accel.studies.samples.generate", None)
    main(command)  # everything is there
    assert (tmp_path / "tables/coverage.md").read_text() == text
    assert write_coverage(Results(tmp_path / "empty")) == []


def test_the_same_recipe_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="different recipes"):
        main(["--results", str(tmp_path), "--recipes", "sampler=ddim sampler.steps=20"])
