"""The headline: the fastest recipe that loses nothing, of all that were tried, against each baseline."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.metrics.statistics import Estimate, paired
from accel.metrics.verdicts import non_inferiority_p
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.headline import headlines, ratio, sentences
from tests.results.conftest import estimate
from tests.results.test_tables import page


def study(fabric, cells, against=None):
    """A study of a baseline of FID 2 and `cells`: (label, FID, own noise, speed-up, more values)."""
    base = fabric.quality("ddim-50", 2.0)
    fabric.line("baseline", base, fabric.timing(base, base, 1.0))
    for label, fid, own, speed, more in cells:
        record = fabric.quality(label, fid)
        record["values"]["fid_digits"] = estimate(fid, label, own=own)
        record["values"]["accuracy"] = estimate(0.98, label, spread=0.0, own=0.0001)
        record["values"] |= {key: estimate(value, label, own=0.0001) for key, value in more.items()}
        fabric.results.save(record)
        fabric.line("cell", record, fabric.timing(record, base, speed) if speed else None)
    base["values"]["accuracy"] = estimate(0.98, "ddim-50", spread=0.0, own=0.0001)
    fabric.results.save(base)
    fabric.save()
    manifest = fabric.results.load_study("demo") | ({"against": against} if against else {})
    fabric.results.save_study({k: v for k, v in manifest.items() if k not in ("schema", "sha256")})
    return Comparison.load(fabric.results, "demo")


def test_p_agrees_with_the_interval():
    """p < 0.025 exactly where the worse end of the 95 % interval stays inside the margin."""
    delta = Estimate.from_dict(estimate(2.0, "a", own=0.5))
    for margin in (delta.hi * 0.999, delta.hi * 1.001):
        assert (non_inferiority_p(delta, margin) < 0.025) == (delta.hi < margin)
    for margin in (-delta.lo * 0.999, -delta.lo * 1.001):
        assert (non_inferiority_p(delta, margin, higher=True) < 0.025) == (-delta.lo < margin)


def test_the_fastest_that_loses_nothing_leads(fabric):
    found = study(fabric, [
        ("tight-10", 2.01, 0.001, 4.0, {}), ("worse-5", 3.0, 0.001, 9.0, {}), ("wide-8", 2.05, 0.5, 6.0, {}),
    ])  # fmt: skip
    (one,) = headlines(found)
    assert (one.role, one.row.label, one.tried) == ("baseline", "tight-10", 3)
    assert sentences(found)[0].startswith("tight-10 is 4.00× [3.")


def test_a_narrow_escape_among_many_is_not_quoted(fabric):
    """Alone it would be non-inferior; as the best of thirty it must survive Holm."""
    wide = [(f"wide-{i}", 2.19, 0.5, 2.0, {}) for i in range(29)]
    alone = next(own for own in (0.01 * k for k in range(60, 1, -1)) if 0.003 < _p(own) < 0.025)
    found = study(fabric, [("escape-5", 2.0, alone, 9.0, {}), *wide])
    (one,) = headlines(found)
    assert one.row is None
    assert one.lone >= 1
    assert "No recipe is shown to be non-inferior" in sentences(found)[0]


def _p(own):
    base = Estimate.from_dict(estimate(2.0, "ddim-50"))
    other = Estimate.from_dict(estimate(2.0, "escape-5", own=own))
    return non_inferiority_p(paired(other, base), 0.2)


def test_it_is_held_against_the_best_plain_sampler_too(fabric):
    cells = [("plain-8", 2.0, 0.001, 6.0, {}), ("both-8", 2.01, 0.001, 7.5, {})]
    found = study(fabric, cells, {"conventional": "ddim-50", "plain": "plain-8"})
    first, second = headlines(found)
    assert (first.role, first.row.label) == ("conventional", "both-8")
    assert (second.role, second.other.label, second.row.label) == ("plain", "plain-8", "both-8")
    assert second.speedup["value"] == pytest.approx(7.5 / 6)
    assert "## Headline" in page(fabric)
    assert "as fast as the best plain sampler plain-8" in page(fabric)


def test_a_ratio_of_speed_ups_has_both_their_intervals():
    around = [{"speedup": {"value": v, "lo": v / 1.1, "hi": v * 1.1}} for v in (6.0, 3.0)]
    found = ratio(*around)
    assert found["value"] == 2
    assert found["hi"] / 2 == pytest.approx(1.1**2**0.5)
    assert 2 / found["lo"] == pytest.approx(1.1**2**0.5)


TRACKED = Results(Path(__file__).parents[2] / "results")
CALLED_TIES = [  # at N = 256, by a rule that took an interval with 0 in it for equality
    "dpmpp_2m-8@karras + tstitch60% + deepcache3b1 + bf16",
    "dpmpp_2m-10 + deepcache3b1",
    "dpmpp_2m-6@t_quadratic",
]


@pytest.mark.parametrize("label", CALLED_TIES)
def test_what_was_once_called_a_tie_does_not_pass(label):
    """14.2, 10 and 8.6 times as fast "at a tie": at N = 2,000 each is worse in FID, and no headline names one."""
    found = Comparison.load(TRACKED, "headline_digits")
    row = next(row for row in found.done if row.label == label)
    assert row.quality["n"] >= 2000
    assert found.verdict(row, found.baseline, "fid_digits") == "worse"
    assert not any(sentence.startswith(label) for sentence in sentences(found))
