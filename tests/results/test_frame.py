"""The data frame of a study: axes as the recipes have them, and no column that two values share."""

from pathlib import Path

import pytest

from accel import Recipe
from accel.errors import ConfigError
from accel.records import Results
from accel.results.comparison import metric_of
from accel.results.frame import AXES, LATER_AXES, study_frame
from accel.results.tables import write_tables

TRACKED = Results(Path(__file__).parents[2] / "results")


def test_axes_are_those_of_a_recipe():
    assert tuple(Recipe().axes()) == AXES + LATER_AXES


@pytest.mark.parametrize("study", TRACKED.studies())
def test_the_axes_of_every_tracked_study_are_those_of_its_records(study):
    rows = study_frame(TRACKED, study).dropna(subset="quality_id")
    assert len(rows)
    for _, row in rows.iterrows():
        record = TRACKED.load("quality", row["quality_id"])
        there = [*AXES, *(axis for axis in LATER_AXES if axis in row)]
        shown = {axis: row[axis] for axis in there if not row.isna()[axis]}
        later = dict.fromkeys(LATER_AXES, "none")
        assert shown | {axis: "none" for axis in LATER_AXES if axis not in there} == later | record["axes"], row[
            "label"
        ]
        parts = {axis for axis in there if record["recipe"].get(axis)}
        assert parts == {axis for axis in shown if shown[axis] != "none" and axis != "steps"}, row["label"]


def test_a_metric_stands_beside_the_axis_of_its_name(fabric):
    record = fabric.quality("a", 2.0, more={"precision": 0.9, "recall": 0.4}, precision="w8a8")
    fabric.line("baseline", record)
    fabric.save()
    (row,) = study_frame(fabric.results, "demo").to_dict("records")
    assert row["precision"] == "w8a8"
    for key in ("precision", "recall"):
        for end, part in (("", "value"), ("_lo", "lo"), ("_hi", "hi"), ("_corrected", "corrected")):
            assert row[f"pr_{key}{end}"] == record["values"][key][part]
    assert not {"recall", "precision_lo"} & set(row)


@pytest.mark.parametrize("name", ["cache", "rank", "n", "delta", "ms", "pr_recall", "macs", "fid_digits_lo"])
def test_a_metric_with_the_name_of_a_column_is_refused(fabric, name):
    fabric.line("baseline", fabric.quality("a", 2.0, more={"recall": 0.4, name: 0.5}))
    fabric.save()
    with pytest.raises(ConfigError, match=f"the table of study demo: two values are called '{name}"):
        write_tables(fabric.results, "demo")
    assert not (fabric.results.root / "tables").exists()


def test_names_of_the_ranking_metric_stay(fabric):
    record = fabric.quality("a", 2.0, 0.1)
    fabric.line("baseline", record)
    fabric.save()
    (row,) = study_frame(fabric.results, "demo").to_dict("records")
    assert row[row["metric"]] == record["values"][metric_of(record)]["value"]
