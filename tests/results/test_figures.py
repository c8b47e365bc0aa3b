"""The figures exist, have a sensible size, show what they may and nothing more."""

import numpy as np
import pytest
from PIL import Image

from accel.results import lines, pareto, samples
from accel.results.canvas import DPI, fit, new_figure
from accel.results.comparison import Comparison
from accel.results.figures import write_figures
from accel.results.panels import Point, front, kind_of
from tests.results.conftest import estimate


def panels(fabric, monkeypatch):
    """Titles and recipe labels of the drawn panels, and the labels written into them."""
    drawn = []
    draw = pareto._panel

    def spy(axes, study, group, panel, styles):
        draw(axes, study, group, panel, styles)
        labels = [p.row.label for p in panel.points]
        drawn.append((panel.title, labels, {text.get_text() for text in axes.texts}, axes))

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


def test_where_prompts_are_followed_how_well_stands_beside_fid(fabric, monkeypatch):
    for role, label, fid, adherence in (("baseline", "a", 2.0, 0.9), ("cell", "b", 3.0, 0.8), ("cell", "c", 2.5, 0.95)):
        record = fabric.quality(label, fid, macs=1e8 * fid, more={"adherence": adherence, "clip_score": 30.0})
        fabric.line(role, record)
    fabric.save()
    (first, _, _, fid), (second, labels, _, adherence) = panels(fabric, monkeypatch)
    assert first == second == "GMACs / image"
    assert set(labels) == {"a", "b", "c"}
    assert [axes.get_ylabel() for axes in (fid, adherence)] == [
        "FID (digits), lower is better", "adherence %, higher is better",
    ]  # fmt: skip
    assert 80 <= adherence.get_ylim()[1] <= 110  # in per cent
    assert fid.get_position().y0 == adherence.get_position().y0


def test_a_front_of_what_is_better_when_higher():
    points = [Point(None, (x,) * 3, (y,) * 3, higher=True) for x, y in ((1, 0.5), (2, 0.9), (3, 0.7))]
    assert [p.x[0] for p in front(points)] == [1, 2]


@pytest.mark.parametrize(("key", "below"), [("distance", False), ("kid_digits", True)])
def test_an_axis_goes_below_zero_only_where_a_value_may(fabric, monkeypatch, key, below):
    """FID cannot be negative, whatever its symmetric interval says; KID, which is unbiased, can."""
    for role, label, value in (("baseline", "a", 0.02), ("cell", "b", 0.03)):
        record = fabric.quality(label, macs=1e8 * value, distance=value)
        record["values"] = {key: estimate(value, label, spread=4.0)}
        fabric.results.save(record)
        fabric.line(role, record)
    fabric.save()
    monkeypatch.setattr("accel.results.comparison.metric_of", lambda record: key)
    (_, _, _, axes), *_ = panels(fabric, monkeypatch)
    assert (axes.get_ylim()[0] < 0) == below
    assert axes.get_ylim()[0] <= 0


@pytest.fixture
def samplers(fabric):
    """Two methods of four step counts, all with one guidance, and a third with one."""
    for label in (*(f"{name}-{n}@karras + cfg2" for name in ("ddim", "deis") for n in (5, 10, 20, 40)), "pc-10 + cfg2"):
        steps = int(label.split("-")[1].split("@")[0].split(" ")[0])
        base = label == "ddim-40@karras + cfg2"
        fabric.line("baseline" if base else "cell", fabric.quality(label, 40 / steps, macs=1e8 * steps, steps=steps))
    fabric.save()
    return fabric


def test_a_study_of_samplers_is_drawn_as_lines_by_method(samplers, monkeypatch):
    ((title, labels, texts, axes),) = panels(samplers, monkeypatch)
    assert title == "NFE"
    assert len(labels) == 9
    assert not texts & set(labels)  # a legend names the methods
    long = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 4]
    assert len(long) == 2
    assert all(np.allclose(line, [5, 10, 20, 40], rtol=0.02) for line in long)
    assert not np.isin(*long).any()  # whiskers of equal cost do not cover each other


def test_methods_are_labels_without_steps(samplers):
    rows = Comparison.load(samplers.results, "demo").competing
    assert {lines.method_of(row) for row in rows} == {"ddim@karras + cfg2", "deis@karras + cfg2", "pc + cfg2"}
    assert lines.shared_end(["ddim@karras + cfg2", "pc + cfg2"]) == " + cfg2"
    assert lines.shared_end(["ddim + cfg2", "pc"]) == ""


def test_a_study_that_accelerates_otherwise_has_no_lines(demo):
    assert lines.methods(Comparison.load(demo.results, "demo").competing) is None


def test_points_of_equal_cost_stand_side_by_side(samplers):
    rows = Comparison.load(samplers.results, "demo").competing
    points = [Point(row, (10.0,) * 3, (1.0,) * 3) for row in rows if row.label.startswith(("deis-10", "pc", "ddim-10"))]
    placed = lines.apart(points, sorted({lines.method_of(row) for row in rows}))
    at = [placed[id(point)] for point in sorted(points, key=lambda p: p.row.label)]
    assert at == pytest.approx([10 / (1 + lines.APART), 10, 10 * (1 + lines.APART)])


def test_a_sheet_has_thirty_rows_the_front_first(fabric):
    """The cheapest recipe is on the front, though its rank is the last."""
    fabric.line("reference", fabric.quality("exact", 0.5, macs=1e12))
    fabric.line("baseline", fabric.quality("base", 50.0, macs=1e10))
    for i in range(40):
        fabric.line("cell", fabric.quality(f"cell{i}", 1.0 + i, macs=2e9 if i < 39 else 1e8))
    fabric.save()
    study = Comparison.load(fabric.results, "demo")
    shown = [row.label for row in samples.chosen(study, study.members(study.groups[0]))]
    assert len(shown) == samples.MOST_ROWS
    assert {"exact", "base", "cell0", "cell39"} <= set(shown)
    assert "cell38" not in shown
    assert shown[0] == "exact"
    sheet = samples.sample_sheet(study, fabric.results)
    assert round(sheet.get_figheight() * DPI) == 96 + 30 * (72 + samples.LINE) + 12
    assert any("30 of 42 rows" in text.get_text() and "(12 left out)" in text.get_text() for text in sheet.texts)


def test_differences_are_to_the_trajectory_that_a_recipe_is_compared_with(fabric):
    made = {"exact": ("reference", 100, None), "base": ("baseline", 110, "t"), "other": ("cell", 200, "guided")}
    strips = []
    for label, (role, value, converged) in made.items():
        record = fabric.quality(label, 2.0) | {"samples": "t" if role == "reference" else label, "converged": converged}
        fabric.results.save(record)
        fabric.line(role, record)
        strips.append([np.full((2, 2, 3), value + i, np.uint8) for i in range(4)])
    fabric.save()
    rows = Comparison.load(fabric.results, "demo").rows
    found, gain = samples.differences(list(zip(rows, strips, strict=True)), 3)
    assert list(found) == [id(rows[1])]  # neither the reference itself nor what has another one
    assert gain == 8
    assert [picture.tolist() for picture in found[id(rows[1])]] == [[[[80] * 3] * 2] * 2] * 3


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
