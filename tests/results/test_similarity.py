"""Reference metrics and what caches keep, in tables: columns where there are values, with direction and verdict."""

from __future__ import annotations

import pytest

from accel.results.comparison import Comparison
from accel.results.frame import study_frame
from tests.results.test_tables import grid, page

PLAIN = {"psnr": 30.0, "ssim": 0.90, "lpips": 0.20, "sharpness": 500.0}
CACHED = {"psnr": 25.0, "ssim": 0.95, "lpips": 0.10, "sharpness": 300.0}


@pytest.fixture
def study(fabric):
    """A baseline and a cached recipe that has lost PSNR and sharpness; its records say what it keeps."""
    base = fabric.quality("base", 2.0, 0.1, 2e9, more=PLAIN)
    cached = fabric.quality("cached", 2.0, 0.1, 1e9, cache="deepcache", more=CACHED | {"psnr_to_plain": 27.0})
    cached["cost"] |= {"cache_bytes": 3_210_000, "vram_bytes": 45_600_000, "hits": 0.25}
    fabric.results.save(cached)
    fabric.line("baseline", base)
    fabric.line("cell", cached)
    fabric.line("control", fabric.quality("control", 2.0, 0.1, 1e9, more=PLAIN), of="cached")
    fabric.save()
    return fabric


def test_values_stand_in_the_main_table_with_their_direction(study):
    rows = {row["recipe"].strip("*").split()[0].strip("*"): row for row in grid(page(study), "jackknife")}
    assert rows["cached"]["PSNR dB ↑"].startswith("25.0")
    assert rows["base"]["PSNR dB ↑ to plain"] == "–"
    assert rows["cached"]["PSNR dB ↑ to plain"].startswith("27.0")
    assert {"SSIM ↑", "LPIPS ↓", "sharpness"} < set(rows["base"])
    assert (rows["cached"]["cache MB"], rows["cached"]["GPU peak MB"]) == ("3.21", "45.6")
    assert (rows["cached"]["reused %"], rows["base"]["reused %"]) == ("25", "–")
    assert not any(word in rows["cached"]["all values"] for word in ("PSNR", "SSIM", "sharp"))  # no margin, no gate


def test_verdicts_follow_each_direction(study):
    frame = study_frame(study.results, "demo").set_index("label").loc["cached"]
    verdicts = {key: frame[f"delta_{key}_verdict"] for key in PLAIN}
    assert verdicts == {"psnr": "worse", "ssim": "better", "lpips": "better", "sharpness": "blurrier"}
    assert frame["delta_psnr_holm"]
    assert (frame["cache_bytes"], frame["hits"]) == (3_210_000, 0.25)
    (row,) = grid(page(study), "## Equal-cost controls")
    assert row["ΔPSNR dB ↑"].endswith("worse‡")
    assert row["Δsharpness"].endswith("blurrier‡")
    assert "Of a value with ↑ positive is better." in page(study)
    assert "no distance: lower than the baseline's means blurrier" in page(study)


def test_sharper_is_said_and_not_better(study):
    rows = {row.label: row for row in Comparison.load(study.results, "demo").done}
    loaded = Comparison.load(study.results, "demo")
    assert loaded.verdict(rows["base"], rows["cached"], "sharpness") == "sharper"
    assert loaded.verdict(rows["base"], rows["control"], "sharpness") in ("undecided", "sharper", "blurrier")


def test_studies_without_them_have_no_such_column(demo):
    columns = set(study_frame(demo.results, "demo").columns)
    assert not {"psnr", "sharpness", "cache_bytes", "vram_bytes", "hits"} & columns
    assert "↑" not in page(demo)
