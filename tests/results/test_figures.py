"""The figures exist, have a sensible size, show what they may and nothing more."""

import numpy as np
import pytest
from PIL import Image

from accel.results import pareto, samples
from accel.results.canvas import DPI, fit, new_figure
from accel.results.comparison import Comparison
from accel.results.figures import write_figures
from accel.results.panels import Point, front, kind_of


def panels(fabric, monkeypatch):
    """Titles and recipe labels of the drawn panels, and the labels written into them."""
    drawn = []
    panel = pareto._panel

    def spy(axes, study, group, title, points):
        panel(axes, study, group, title, points)
        drawn.append((title, [p.row.label for p in points], {text.get_text() for text in axes.texts}, axes))

    monkeypatch.setattr(pareto, "_panel", spy)
    write_figures(fabric.results, "demo")
    return drawn


def test_both_figures_are_written(demo):
    plot, sheet = write_figures(demo.results, "demo")
    assert (plot.name, sheet.name) == ("demo_pareto.png", "demo_samples.png")
    with Image.open(plot) as image:
        assert image.size == (round(13.6 * DPI), round(5.1 * DPI))
        assert np.asarray(image.convert("L")).std() > 10
    with Image.open(sheet) as image:
        rows = 14  # the reference and every recipe once
        assert image.width > 16 * 72
        assert image.height == 96 + rows * (72 + samples.LINE) + 12


def test_rebuilding_gives_the_same_bytes(demo):
    first = [path.read_bytes() for path in write_figures(demo.results, "demo")]
    assert [path.read_bytes() for path in write_figures(demo.results, "demo")] == first


def test_panels_show_cost_and_time_and_simulated_rows_have_no_time(demo, monkeypatch):
    (cost, by_cost, texts, axes), (time, by_time, _, _) = panels(demo, monkeypatch)
    assert cost == "GMACs / image"
    assert time.startswith("ms / image")
    assert "deis3-10+w8a8" in by_cost
    assert "deis3-10+w8a8" not in by_time
    assert set(by_time) < set(by_cost)
    assert "ddim-50" in by_time
    assert not {"heun-100", "held-out digits"} & set(by_cost)  # bands, not points
    assert {"converged: heun-100", "floor: held-out digits, N = 500"} <= texts
    assert "ddim-50 (baseline)" in texts
    assert set(by_cost) - {"ddim-50"} <= texts
    assert axes.get_xscale() == "log"


def test_labels_do_not_overlap_each_other_or_leave_the_panel(demo, monkeypatch):
    for _, _, _, axes in panels(demo, monkeypatch):
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(boxes) > 10
        for i, box in enumerate(boxes):
            assert axes.bbox.x0 - 1 <= box.x0
            assert box.x1 <= axes.bbox.x1 + 1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_long_title_becomes_smaller():
    figure = new_figure(4, 3)
    texts = [figure.text(0.1, 0.5, words, size=13) for words in ("short", "a title of many words, " * 5)]
    for text in texts:
        fit(text, 3)
        assert text.get_window_extent(figure.canvas.get_renderer()).width <= 3 * figure.dpi
    assert texts[0].get_fontsize() == 13 > texts[1].get_fontsize()


def test_missing_timing_leaves_one_panel(fabric, monkeypatch):
    for role, label, fid in (("baseline", "a", 2.0), ("cell", "b", 3.0)):
        fabric.line(role, fabric.quality(label, fid, macs=1e8 * fid))
    fabric.save()
    assert [title for title, *_ in panels(fabric, monkeypatch)] == ["GMACs / image"]


def test_without_macs_the_cost_is_nfe_and_without_pictures_there_is_no_grid(fabric, monkeypatch):
    for role, label, steps in (("baseline", "a", 10), ("cell", "b", 20)):
        record = fabric.quality(label, distance=1 / steps**2, macs=1, steps=steps, suite="mixture", picture=False)
        record["cost"]["macs"] = 0
        fabric.results.save(record)
        fabric.line(role, record)
    fabric.save(suite="mixture")
    assert [title for title, *_ in panels(fabric, monkeypatch)] == ["NFE"]
    assert [path.name for path in write_figures(fabric.results, "demo")] == ["demo_pareto.png"]


def test_each_device_has_its_own_panel(fabric, monkeypatch):
    base = fabric.quality("base", 2.0, macs=1e9)
    fabric.line("baseline", base)
    for label, device in (("a", "CPU"), ("b", "GPU"), ("c", "CPU")):
        cell = fabric.quality(label, 3.0, macs=1e8)
        fabric.line("cell", cell, fabric.timing(cell, base, 2.0, device=device))
    fabric.save()
    drawn = {title: labels for title, labels, *_ in panels(fabric, monkeypatch)}
    assert drawn["ms / image  (CPU, 1 thread, batch 8)"] == ["base", "a", "c"]
    assert drawn["ms / image  (GPU, 1 thread, batch 8)"] == ["base", "b"]


def test_runs_of_another_n_are_not_drawn(fabric, monkeypatch):
    fabric.line("baseline", fabric.quality("base", 2.0, macs=1e9))
    fabric.line("cell", fabric.quality("small", 1.0, macs=1e8, n=500))
    fabric.save()
    assert [labels for _, labels, *_ in panels(fabric, monkeypatch)] == [["base"]]


def test_a_study_without_results_makes_no_figure(fabric):
    fabric.line("cell", label="x", refused="no")
    fabric.save()
    assert write_figures(fabric.results, "demo") == []


def test_the_front_holds_what_no_other_beats():
    def at(x, y):
        return Point(None, (x, x, x), (y, y, y))

    best = [at(1, 9), at(2, 5), at(4, 1)]
    beaten = [at(2, 6), at(3, 5), at(4, 2), at(9, 1)]
    assert front([*beaten, *best]) == best
    assert front([]) == []


@pytest.mark.parametrize(
    ("axes", "kind"),
    [
        ({}, "plain sampler"),
        ({"guidance": "cfg7.5"}, "plain sampler"),
        ({"guidance": "cfg2(0.2,5]"}, "guidance"),
        ({"cache": "deepcache3b1"}, "cache"),
        ({"cache": "deepcache3b1", "precision": "w8a8(sim)"}, "combined"),
        ({"stitch": "tstitch40%"}, "stitch"),
        ({"skip": "skip0.9-1"}, "skip"),
    ],
)
def test_kinds(fabric, axes, kind):
    fabric.line("baseline", fabric.quality("a", 2.0, **axes))
    fabric.save()
    assert kind_of(Comparison.load(fabric.results, "demo").baseline) == kind


@pytest.mark.parametrize(("size", "side"), [(8, 72), (32, 64), (64, 64), (512, 76)])
def test_pixels_are_enlarged_by_a_whole_factor(fabric, size, side):
    record = fabric.quality("a", 2.0, picture=False)
    fabric.line("baseline", record)
    fabric.save()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (size, 4 * size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(fabric.results.path("quality", record["id"]).with_suffix(".png"))
    row = Comparison.load(fabric.results, "demo").baseline
    squares = samples._strip(fabric.results, row)
    assert len(squares) == 4
    assert {s.size for s in squares} == {(side, side)}
    if side % size == 0:
        factor = side // size
        assert (np.asarray(squares[1])[::factor, ::factor] == pixels[:, size : 2 * size]).all()
