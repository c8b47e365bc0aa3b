"""The bill of a student's training, and when it is paid, on fabricated records."""

from __future__ import annotations

import pytest

from accel.results.comparison import Comparison
from accel.results.frame import study_frame
from accel.results.markdown import markdown
from accel.results.students import break_even, rival, students_section

BILL = {"kind": "endpoint", "seconds": 167.4, "steps": 240, "samples": 7680, "macs": 4e12, "data": "training images"}


@pytest.fixture
def study(fabric):
    """A student of four evaluations as good as twenty steps, better than eight; the baseline has fifty."""
    for label, fid, evaluations in (("ddim-50", 1.0, 50), ("dpmpp_2m-20", 1.0, 20), ("dpmpp_2m-8", 2.0, 8)):
        row = fabric.quality(label, fid, 0.03, evaluations * 1e6, steps=evaluations)
        fabric.line("baseline" if evaluations == 50 else "cell", row)
    row = fabric.quality("ddim_accel-4@pd4 + pd4", 1.0, 0.03, 4e6, steps=4, student="pd4")
    fabric.results.save(row | {"student": BILL})
    fabric.line("cell", row)
    return Comparison.load(fabric.results, fabric.save("s"))


def test_it_is_held_against_the_cheapest_untrained_row_that_is_as_good(study):
    row = study.done[-1]
    assert rival(study, row).label == "dpmpp_2m-20", "eight steps are cheaper, and worse"
    # 4e12 MACs are paid by 16e6 an image
    assert break_even(BILL, row, study.done[1]) == 250_000
    assert break_even(BILL, study.done[1], row) is None, "what costs more is never paid"
    assert break_even(BILL, row, None) is None


def test_the_page_says_what_training_cost(study):
    section = students_section(study)
    assert "| ddim_accel-4@pd4 + pd4 | endpoint | 167 | 240 | 7,680 | training images | 80,000 |" in section
    assert "250,000, against dpmpp_2m-20" in section
    assert section in markdown(study)


def test_a_decoder_is_billed_with_the_student_and_alone(study, fabric):
    decoder = {"seconds": 32.6, "steps": 160, "samples": 320, "macs": 1e12, "data": "pictures"}
    for label, more in (("+ pd4 + tiny", {"student": BILL}), ("+ tiny", {})):
        row = fabric.quality(f"ddim_accel-4@pd4 {label}", 1.0, 0.03, 4e6, steps=4, decoder="tiny")
        fabric.results.save(row | more | {"decoder": decoder})
        fabric.line("cell", row)
    own = Comparison.load(fabric.results, fabric.save("s"))
    section = students_section(own)
    both = "endpoint + decoder | 200 | 400 | 8,000 | training images, pictures | 100,000 | 312,500, against dpmpp_2m-20"
    assert f"| ddim_accel-4@pd4 + pd4 + tiny | {both} |" in section
    assert "| ddim_accel-4@pd4 + tiny | decoder | 32.6 | 160 | 320 | pictures | 20,000 | – |" in section
    assert "A decoder's bill is added" in section
    assert "A decoder's bill" not in students_section(study)
    assert rival(own, own.done[3]).label == "dpmpp_2m-20", "what needs no training has no decoder, either"


def test_without_students_there_is_no_such_section(study):
    rows = tuple(row for row in study.rows if "student" not in row.quality)
    assert students_section(Comparison("s", "S", "digits", rows)) == ""


def test_the_axis_is_a_column_where_one_is_on_it(study, fabric, demo):
    assert [*study_frame(fabric.results, "s").student] == ["none", "none", "none", "pd4"]
    assert "student" not in study_frame(demo.results, "demo")
