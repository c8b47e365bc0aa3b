"""Times in tables: columns that never contradict each other, every batch, both floors, and whether others disturbed."""

import io

import pandas
import pytest
from rich.console import Console

from accel.errors import IntegrityError
from accel.results.comparison import Comparison, no_speed
from accel.results.frame import study_frame
from accel.results.markdown import markdown
from accel.results.terminal import print_study

NEW = {
    "protocol": 2, "aa_recipe": {"value": 1.0, "lo": 0.99, "hi": 1.01}, "rejected": 0, "tolerated": 0, "calm": True,
    "stopped": "narrow", "timing_precision": 0.05, "disturbance": 0.02,
}  # fmt: skip


def page(fabric) -> str:
    return markdown(Comparison.load(fabric.results, "demo"))


def main_table(text: str) -> dict[str, dict[str, str]]:
    """Rows of the main table by their label."""
    table = [line.strip("| ").split(" | ") for line in text.split("jackknife")[1].splitlines() if line.startswith("|")]
    rows = [dict(zip(table[0], row, strict=True)) for row in table[2:]]
    return {row["recipe"].strip("*").replace("** (baseline)", ""): row for row in rows}


def test_time_and_speed_up_never_contradict_each_other(fabric):
    """The machine was half as fast while b was timed: the slower recipe must not look the faster one."""
    base, a, b = (fabric.quality(label, 2.0) for label in ("base", "a", "b"))
    fabric.line("baseline", base, fabric.timing(base, base, 1.01, base=25.0))
    fabric.line("cell", a, fabric.timing(a, base, 2.0, base=24.0))
    fabric.line("cell", b, fabric.timing(b, base, 3.0, base=48.0))
    fabric.save()
    rows = main_table(page(fabric))
    assert {label: rows[label]["ms/image"] for label in rows} == {"base": "25.0", "a": "12.50", "b": "8.33"}
    frame = study_frame(fabric.results, "demo").set_index("label")
    assert frame["ms"].to_dict() == pytest.approx({"base": 25.0, "a": 12.5, "b": 25 / 3})
    assert frame.loc["a", "ms_lo"] == pytest.approx(25 / (2.0 * 1.02))
    assert frame["baseline_ms"].to_dict() == {"base": 25.0, "a": 24.0, "b": 48.0}, "as recorded"
    assert frame.loc["base", "speedup"] == 1.01, "as recorded"
    assert "ms/image: the baseline's, the median of all its timings in this study" in page(fabric)


def test_times_are_pooled_by_device_baseline_and_record(fabric):
    base, other, a, b, c = (fabric.quality(label, 2.0) for label in ("base", "other", "a", "b", "c"))
    fabric.line("baseline", base)
    one = fabric.timing(a, base, 2.0, base=10.0)
    for of in ("b", "c"):  # the control of two cells: one timing, not two
        fabric.line("control", a, one, of=of)
    fabric.line("cell", b, fabric.timing(b, base, 2.0, base=30.0))
    fabric.line("cell", c, fabric.timing(c, other, 2.0, base=90.0))
    fabric.save()
    study = Comparison.load(fabric.results, "demo")
    (device,) = study.devices
    assert study.baseline_ms(device, base["id"])["value"] == 20.0
    assert study.baseline_ms(device, other["id"])["value"] == 90.0
    assert study.baseline_ms((*device[:2], 1), base["id"]) is None
    assert study.timing(study.baseline, device)["ms_per_image"]["value"] == 20.0, "though it has no timing of its own"


@pytest.fixture
def batches(fabric):
    """Two cells at batch 8 and 1, a third one, whose sampler makes groups, at 8 only."""
    base = fabric.quality("base", 2.0)
    fabric.line("baseline", base, fabric.timing(base, base, 1.0, **NEW),
                others=[fabric.timing(base, base, 1.0, batch=1, base=40.0, **NEW)])  # fmt: skip
    for label, at_8, at_1 in (("cached", 2.0, 1.3), ("half", 2.0, 2.0)):
        cell = fabric.quality(label, 2.5)
        fabric.line("cell", cell, fabric.timing(cell, base, at_8, **NEW),
                    others=[fabric.timing(cell, base, at_1, batch=1, base=40.0, **NEW)])  # fmt: skip
    grouped = fabric.quality("grouped", 3.0)
    fabric.line("cell", grouped, fabric.timing(grouped, base, 4.0, **NEW))
    fabric.save()
    return fabric


def test_every_batch_has_its_columns(batches):
    text = page(batches)
    rows = main_table(text)
    assert "timed on Testchip 9 (AVX2), 1 thread, batch 8 and 1;" in text
    assert "## Speed on" not in text
    shown = {label: [row[f"{name}, batch {b}{end}"] for b in (8, 1) for name, end in
                     (("ms/image", ""), ("speed-up", " [95 %]"))] for label, row in rows.items()}  # fmt: skip
    assert shown["base"] == ["24.0", "1", "40.0", "1"]
    assert shown["cached"] == ["12.00", "2.00× [1.96, 2.04]", "30.8", "1.300× [1.274, 1.326]"]
    assert shown["grouped"] == ["6.00", "4.00× [3.92, 4.08]", "–", "–"]
    for batch in (8, 1):
        assert f"A/A floor of the timing at batch {batch} (the baseline against itself" in text


def test_the_csv_has_the_further_batches_by_name(batches):
    frame = study_frame(batches.results, "demo").set_index("label")
    assert frame["speedup"].to_dict() == {"base": 1.0, "cached": 2.0, "half": 2.0, "grouped": 4.0}
    assert frame["speedup@1"].dropna().to_dict() == {"base": 1.0, "cached": 1.3, "half": 2.0}
    assert frame.loc["cached", "ms@1"] == pytest.approx(40 / 1.3)
    assert frame.loc["cached", ["aa_recipe", "aa_recipe@1", "stopped", "batch"]].tolist() == [1.0, 1.0, "narrow", 8]
    assert frame["timing_id@1"].notna().sum() == 3
    assert pandas.isna(frame.loc["grouped", "speedup@1_told_apart"])
    assert not [name for name in frame if "baseline_ms@" in name]


def test_the_terminal_shows_the_speed_up_at_every_batch(batches):
    console = Console(width=120, record=True, file=io.StringIO())
    print_study(batches.results, "demo", console)
    text = console.export_text()
    assert "1 thread, batch 8 and 1" in text
    assert all(name in text for name in ("ms@8", "speed-up@8", "speed-up@1"))
    narrow = Console(width=90, record=True, file=io.StringIO())
    print_study(batches.results, "demo", narrow)
    assert "ms@8" not in narrow.export_text()


def test_tables_of_older_records_have_no_column_of_newer_ones(demo):
    names = set(study_frame(demo.results, "demo"))
    assert not {name for name in names if "@" in name or name in ("aa_recipe", "rejected", "stopped")}
    assert "median of 9 repetitions interleaved with the baseline" in page(demo)


def test_a_further_timing_that_is_damaged_stops_the_table(batches):
    path = batches.results.path("timing", batches.lines[1]["timings"][0])
    path.write_text(path.read_text().replace("1.3", "1.4", 1))
    with pytest.raises(IntegrityError):
        page(batches)


def test_a_speed_up_within_the_recipe_s_own_floor_is_not_told_apart():
    timing = {"speedup": {"lo": 1.2, "hi": 1.3}, "aa": {"lo": 0.99, "hi": 1.01}}
    assert not no_speed(timing)
    assert no_speed(timing | {"aa_recipe": {"lo": 0.8, "hi": 1.25}})
    assert not no_speed(timing | {"aa_recipe": {"lo": 0.8, "hi": 1.19}})


def test_a_busy_machine_is_said_under_the_table(fabric):
    base = fabric.quality("base", 2.0)
    fabric.line("baseline", base, fabric.timing(base, base, 1.0, **NEW))
    for label, own in (("a", {"rejected": 9, "tolerated": 4, "stopped": "most"}),
                       ("b", {"calm": False, "disturbance": 0.41})):  # fmt: skip
        cell = fabric.quality(label, 2.5)
        fabric.line("cell", cell, fabric.timing(cell, base, 2.0, **NEW | own))
    fabric.save()
    text = page(fabric)
    assert (
        "* Busy machine: 25% of the rounds were thrown away, because others used the processor; such rounds had to be "
        "kept for a (4 of 9); disturbed all the same, and timed again by the same command: b (by 41%)."
    ) in text
    assert "median of 9 rounds, each of baseline and recipe twice" in text
    assert "until half of it is at most 5% of the speed-up, or there are enough: wider are a." in text


def test_a_calm_machine_needs_no_words(batches):
    assert "Busy machine" not in page(batches)
    assert "wider are" not in page(batches)


def test_stages_tell_what_bounds_the_speed_up(fabric):
    """Of 20 ms the baseline's denoiser takes 16; the cached one's, 4 of 8: without any it would still take 4."""
    base, cell = fabric.quality("base", 2.0), fabric.quality("cached", 2.5)
    ms = {"text encoder": 1.0, "denoiser": 16.0, "scheduler": 0.5, "decoder": 2.0, "rest": 0.5}
    fabric.line("baseline", base, fabric.timing(base, base, 1.0, stages=ms, **NEW))
    fabric.line("cell", cell, fabric.timing(cell, base, 2.5, stages=ms | {"denoiser": 4.0}, **NEW))
    fabric.save()
    rows = main_table(page(fabric))
    assert rows["base"]["outside the denoiser %"] == "20.0 (text encoder 5.0, scheduler 2.5, decoder 10.0, rest 2.5)"
    assert rows["cached"]["outside the denoiser %"].startswith("50.0 (text encoder 12.5,")
    assert [rows[label]["bound"] for label in ("base", "cached")] == ["5×", "5×"]
    frame = study_frame(fabric.results, "demo").set_index("label")
    assert frame.loc["cached", ["ms_text_encoder", "ms_denoiser", "ms_rest"]].tolist() == [1.0, 4.0, 0.5]


def test_records_without_stages_have_no_such_column(batches):
    assert "outside the denoiser" not in page(batches)
    assert not [name for name in study_frame(batches.results, "demo") if name.startswith("ms_d")]
