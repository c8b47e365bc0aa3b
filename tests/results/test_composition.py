"""Composition: predicted from the parts beside measured, and the interaction's interval, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from accel.metrics.statistics import Estimate, mean_estimate
from accel.records import Results
from accel.results.comparison import APART, Comparison
from accel.results.composition import (
    HELP,
    QUARREL,
    compositions,
    macs,
    quality,
    quality_word,
    speed,
    speed_word,
)
from accel.results.composition_table import write_composition
from tests.results.conftest import Fabric
from tests.results.test_tables import grid, page

TRACKED = Results(Path(__file__).parents[2] / "results")
N = 200
DEVICE = ("Testchip 9 (AVX2)", 1, 8)
CFG, AG = {"type": "CFG", "scale": 3.0}, {"type": "AdaptiveGuidance", "scale": 3.0}
CACHE, STITCH, BF16 = {"type": "DeepCache"}, {"type": "TStitch"}, {"type": "Cast"}


def samples(shift, seed):
    """A value of each sample: noise of the seeds, which all rows share, and some of the row's own."""
    shared, own = (np.random.default_rng(s).standard_normal(N) for s in (0, seed))
    return 1 + 0.3 * shared + shift + 0.05 * own


def row(fabric, label, values, *, cost=1e9, sampler="dpmpp_2m", converged="c", n=N, **axes):
    """A record of per-sample `values`, by key; `axes` as records describe them."""
    record = fabric.quality(label, 2.0, macs=cost, n=n)
    record["values"] = {key: mean_estimate(own[:n]).to_dict() for key, own in values.items()}
    record["recipe"] = {"sampler": {"type": sampler, "steps": 10}, "grid": None} | axes
    fabric.results.save(record | {"converged": converged})
    return record


def built(fabric, whole, *, whole_speed=10.0, key="distance"):
    """A study of plain, cache (0.1 more), stitch (0.2 more) and both: `whole` more, `whole_speed` times as fast."""
    start = fabric.quality("start-50", 3.0, macs=5e9, n=N)
    start["values"] = {key: mean_estimate(samples(0.0, 9)).to_dict()}
    fabric.results.save(start | {"converged": "c"})
    fabric.line("baseline", start, fabric.timing(start, start, 1.0))
    for i, (label, shift, cost, faster, axes) in enumerate((
        ("p", 0.0, 1e9, 2.0, {}),
        ("a", 0.1, 5e8, 4.0, {"cache": CACHE}),
        ("b", 0.2, 4e8, 6.0, {"stitch": STITCH}),
        ("both", whole, 2.5e8, whole_speed, {"cache": CACHE, "stitch": STITCH}),
    )):  # fmt: skip
        made = row(fabric, label, {key: samples(shift, i + 1)}, cost=cost, **axes)
        fabric.line("cell", made, fabric.timing(made, start, faster))
    fabric.save(n=N)
    return Comparison.load(fabric.results, "demo")


def test_the_interaction_is_the_mean_of_each_sample_s(fabric):
    """Linear in the replicates: the interval is that of the mean of c - p - (a - p) - (b - p) over the samples."""
    study = built(fabric, 0.45)
    (own,) = compositions(study)
    assert (own.row.label, own.plain.label) == ("both", "p")
    assert {axis: part.label for axis, part in own.parts.items()} == {"cache": "a", "stitch": "b"}
    p, a, b, c = (samples(shift, seed) for shift, seed in ((0.0, 1), (0.1, 2), (0.2, 3), (0.45, 4)))
    found = quality(study, own, "distance")
    for estimate, exact in zip(found, (a + b - 2 * p, c - p, c - a - b + p), strict=True):
        expected = mean_estimate(exact)
        assert [estimate.value, estimate.lo, estimate.hi] == pytest.approx([expected.value, expected.lo, expected.hi])


@pytest.mark.parametrize(("key", "whole", "word"), [
    ("distance", 0.1, HELP), ("distance", 0.5, QUARREL), ("distance", 0.3, APART),
    ("adherence", 0.1, QUARREL), ("adherence", 0.5, HELP),
])  # fmt: skip
def test_better_than_promised_is_help_whatever_the_direction(fabric, key, whole, word):
    study = built(fabric, whole, key=key)
    (own,) = compositions(study)
    assert quality_word(quality(study, own, key), key) == word


def test_costs_multiply(fabric):
    """MACs 1/2 and 2/5 promise 1/5; 1/4 is 5/4 of that. Speed-ups 4/2 and 6/2 promise 6; 10/2 is 5/6 of that."""
    study = built(fabric, 0.3)
    (own,) = compositions(study)
    assert macs(own) == pytest.approx((0.2, 0.25, 1.25))
    found = speed(study, own, DEVICE)
    assert [part["value"] for part in found] == pytest.approx([6, 5, 5 / 6])
    # Each timing's interval is (0.98, 1.02) of its value. The plain row is in the promise twice, once beside the whole.
    down, up = -math.log(0.98), math.log(1.02)
    for part, above, below in ((found.predicted, 2, [2]), (found.measured, 1, [1]), (found.beyond, 2, [1, 1])):
        lo = math.hypot(*[down] * above, *(k * up for k in below))
        assert part["lo"] / part["value"] == pytest.approx(math.exp(-lo))
        hi = math.hypot(*[up] * above, *(k * down for k in below))
        assert part["hi"] / part["value"] == pytest.approx(math.exp(hi))
    assert speed_word(study, own, DEVICE) == QUARREL


def test_times_within_the_a_a_floor_are_not_told_apart(fabric):
    for measured, word in ((12.0, APART), (15.0, HELP), (9.0, QUARREL)):
        other = Fabric(fabric.results.root / str(measured))
        study = built(other, 0.3, whole_speed=measured)
        assert speed_word(study, compositions(study)[0], DEVICE) == word
    quality = other.results.load("quality", compositions(study)[0].row.quality["id"])
    floor = {"value": 1.0, "lo": 0.7, "hi": 1.3}
    other.timing(quality, study.baseline.quality, 9.0, aa=floor)
    study = Comparison.load(other.results, "demo")
    assert speed_word(study, compositions(study)[0], DEVICE) == APART


def test_times_against_another_baseline_are_not_multiplied(fabric):
    study = built(fabric, 0.3)
    both = compositions(study)[0].row.quality
    fabric.timing(both, {"id": "another"}, 10.0)
    study = Comparison.load(fabric.results, "demo")
    (own,) = compositions(study)
    assert speed(study, own, DEVICE) is None
    assert speed_word(study, own, DEVICE) is None


def test_a_shortcut_of_guidance_is_a_part(fabric):
    """It is held against the trajectory of the CFG that it is a shortcut of; another guidance is no part."""
    values = {"distance": samples(0.0, 1)}
    lines = [
        row(fabric, "cfg", values, guidance=CFG),
        row(fabric, "ag", values, guidance=AG),
        row(fabric, "cfg+cache", values, guidance=CFG, cache=CACHE),
        row(fabric, "ag+cache", values, guidance=AG, cache=CACHE),
        row(fabric, "apg", values, guidance={"type": "APG"}, converged="d"),
        row(fabric, "apg+cache", values, guidance={"type": "APG"}, cache=CACHE, converged="d"),
    ]
    for line in lines:
        fabric.line("cell", line)
    fabric.save(n=N)
    (own,) = compositions(Comparison.load(fabric.results, "demo"))
    assert (own.row.label, own.plain.label) == ("ag+cache", "cfg")
    assert {axis: part.label for axis, part in own.parts.items()} == {"guidance": "ag", "cache": "cfg+cache"}


@pytest.mark.parametrize("change", [{"sampler": "ddim"}, {"grid": {"type": "Karras"}}, {"n": 100}, {"cache": BF16}])
def test_a_part_of_another_sampler_grid_n_or_setting_is_none(fabric, change):
    values = {"distance": samples(0.0, 1)}
    fabric.line("cell", row(fabric, "plain", values))
    fabric.line("cell", row(fabric, "stitch", values, stitch=STITCH))
    fabric.line("cell", row(fabric, "cache", values, **{"cache": CACHE} | change))
    fabric.line("cell", row(fabric, "both", values, cache=CACHE, stitch=STITCH))
    fabric.save(n=N)
    assert compositions(Comparison.load(fabric.results, "demo")) == []
    assert "## Composition" not in page(fabric)
    assert write_composition(fabric.results) == []


def test_of_three_parts_it_is_the_whole_interaction(fabric):
    p, a, b, c, d = (samples(shift, i) for i, shift in enumerate((0.0, 0.1, 0.2, 0.3, 0.9)))
    for label, own, axes in (
        ("p", p, {}), ("a", a, {"cache": CACHE}), ("b", b, {"stitch": STITCH}), ("c", c, {"precision": BF16}),
        ("d", d, {"cache": CACHE, "stitch": STITCH, "precision": BF16}),
    ):  # fmt: skip
        fabric.line("cell", row(fabric, label, {"distance": own}, **axes))
    fabric.save(n=N)
    study = Comparison.load(fabric.results, "demo")
    (own,) = compositions(study)
    assert own.axes == ("cache", "stitch", "precision")
    expected = mean_estimate(d - p - (a - p) - (b - p) - (c - p))
    assert quality(study, own, "distance").beyond.value == pytest.approx(expected.value)
    assert quality(study, own, "distance").beyond.hi == pytest.approx(expected.hi)


def test_the_page_has_predicted_beside_measured(fabric):
    built(fabric, 0.1)
    lines = {line["of"]: line for line in grid(page(fabric), "## Composition")}
    assert set(lines) == {"MACs ÷ plain", "speed-up over plain", "Δdistance"}
    assert {line["parts"] for line in lines.values()} == {"cache × stitch"}
    found = lines["MACs ÷ plain"]
    assert (found["predicted"], found["measured"], found["interaction"]) == ("0.200", "0.250", "1.25")
    assert lines["speed-up over plain"]["predicted"].startswith("6.0")
    assert lines["speed-up over plain"]["interaction"].endswith(QUARREL)
    assert lines["Δdistance"]["interaction"].endswith(f"{HELP}‡")


def test_all_studies_of_a_suite_are_one_page_and_shared_records_count_once(fabric):
    built(fabric, 0.5)
    fabric.save("again", n=N)
    (path,) = write_composition(fabric.results)
    assert path.name == "composition_pairs_digits.md"
    text = path.read_text()
    (pair,) = grid(text, "## Which pairs")
    assert (pair["parts"], pair["recipes"], pair["distance"]) == ("cache × stitch", "1", f"1 {QUARREL}")
    (line,) = grid(text, "\n## cache × stitch")
    assert (line["recipe"], line["N"], line["MACs, measured ÷ predicted"]) == ("both", str(N), "1.25")
    assert line["timed on"] == "Testchip 9 (AVX2), 1 thread, batch 8"
    assert line["Δdistance"].endswith(f"{QUARREL}‡")


def test_what_was_measured_before_there_were_parts_is_composed_too():
    """`overview_shapes`: the numbers of its records, by hand."""
    study = Comparison.load(TRACKED, "overview_shapes")
    (own,) = compositions(study)
    assert own.axes == ("guidance", "cache", "stitch")
    rows = {row.label: row for row in study.competing}
    alone = ("cfg3", "ag3(x0>=0.98)", "cfg3 + deepcache2b1", "cfg3 + tstitch40%")
    plain, *parts = (rows[f"dpmpp_2m-20 + {name}"] for name in alone)
    whole = rows["dpmpp_2m-20 + ag3(x0>=0.98) + tstitch40% + deepcache2b1"]
    cost = [row.quality["cost"]["macs"] / plain.quality["cost"]["macs"] for row in (*parts, whole)]
    assert macs(own).beyond == pytest.approx(cost[3] / math.prod(cost[:3]))
    found = quality(study, own, "adherence").beyond
    replicates = [Estimate.from_dict(row.quality["values"]["adherence"]).replicates for row in (whole, plain, *parts)]
    c, p, *each = map(np.array, replicates)
    assert found.replicates == pytest.approx(tuple(c + 2 * p - sum(each)))
