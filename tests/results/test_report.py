"""The page of studies: what it shows is what the records say, whatever a label holds, and it works without a browser's
help as with it. `dom.js` is as much of a browser as the page's script needs; real ones are asked where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel import __main__ as cli
from accel.cli import report
from accel.cli.listing import meaning
from accel.errors import ConfigError
from accel.files import write_atomic
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.panels import competitors, cost_panel, front, time_panels
from accel.results.report.fronts import front_data
from accel.results.report.legend import entries
from accel.results.report.page import inlined, marked, page
from accel.results.report.pictures import MOST_HEIGHT, pictures
from accel.results.report.sections import settings_text, tables
from accel.results.report.terms import terms, unexplained

ROOT = Path(__file__).parents[2]
NODE, BROWSER = (
    shutil.which("node"),
    next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None),
)
needs_node = pytest.mark.skipif(NODE is None, reason="no node here to run the page's script with")
NASTY = "a-5 + </script><script>alert(1)</script><!-- <b>\"'&amp;\u2028"


class Page(HTMLParser):
    """Elements of a page with their attributes and text, refusing what is not nested well."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "within": [e["tag"] for e in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in ("meta", "img"):
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **having):
        return [e for e in self.elements if e["tag"] == tag and all(e.get(k) == v for k, v in having.items())]


def made(results, *names):
    return page(results, names or ("demo",), meaning, "1.2.3")


def data_of(html):
    return [json.loads(e["text"]) for e in Page(html).all("script", type="application/json")]


@pytest.fixture
def used(demo, tmp_path):
    """used(*acts, width=900): what the page of `demo` shows after each of them, as dom.js tells."""

    def used(*acts, width=900, html=None):
        path = tmp_path / "page.html"
        path.write_text(html or made(demo.results), encoding="utf-8")
        words = [NODE, str(Path(__file__).with_name("dom.js")), str(path), str(width)]
        ended = subprocess.run(words, input=json.dumps(acts), capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return used


def evaluated(code, **data):
    """What an expression in JavaScript says, with the page's functions as `Report`."""
    script = "const Report = require(process.argv[1]); const data = JSON.parse(require('fs').readFileSync(0));"
    words = [NODE, "-e", f"{script} console.log(JSON.stringify({code}))", str(ROOT / "accel/results/report/report.js")]
    ended = subprocess.run(words, input=json.dumps(data), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# --- the page


def test_the_page_holds_all_that_it_needs_and_asks_nobody(demo):
    html = made(demo.results)
    found = Page(html)
    assert len(found.all("script")) == 2
    assert not found.all("link")
    links = [e[k] for e in found.elements for k in ("src", "href") if k in e]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not re.search(r"https?:|url\(|@import", html.replace("http://www.w3.org/2000/svg", ""))
    assert {e["href"][1:] for e in found.all("a")} <= {e["id"] for e in found.elements if "id" in e}
    ids = [e["id"] for e in found.elements if "id" in e]
    assert len(set(ids)) == len(ids)
    assert found.all("html")[0]["lang"] == "en"
    assert "width=device-width" in found.all("meta", name="viewport")[0]["content"]
    assert "default-src 'none'" in html
    assert html == made(demo.results), "the same records give the same bytes"


def test_tables_can_be_read_by_machines_and_keys(demo):
    found = Page(made(demo.results))
    for table in found.all("table"):
        assert table["within"][-1] == "div"
    assert len(found.all("caption")) == len(found.all("table")) > 4
    heads = [e for e in found.all("th") if "thead" in e["within"]]
    assert heads
    assert all(e["scope"] == "col" for e in heads)
    assert all(e["scope"] == "row" for e in found.all("th") if "tbody" in e["within"])
    sortable = [e for e in found.elements if e["tag"] == "table" and "sortable" in e.get("class", "")]
    assert len(sortable) == len(found.all("table")) - 2  # pictures and labels
    assert all(e["type"] == "button" for e in found.all("button"))
    boxes = [e for e in found.all("div") if "box" in e.get("class", "")]
    assert len(boxes) == len(found.all("table"))
    assert all((e["tabindex"], e["role"]) == ("0", "region") and e["aria-label"] for e in boxes)
    assert all(e["alt"] for e in found.all("img"))
    assert len(found.all("select")) == len([e for e in found.all("label") if e["text"].strip()])


def test_every_recipe_and_value_is_there_with_interval_verdict_and_margin(demo):
    study = Comparison.load(demo.results, "demo")
    results, differences = tables(study)[:2]
    assert {line.cells[1].text.partition(" (")[0] for line in results.lines} == {row.label for row in study.done}
    assert "ΔFID (digits), margin 0.171" in differences.headings
    assert "Δaccuracy %, margin 1 point" in differences.headings
    for heading, key in (("ΔFID (digits), margin 0.171", "fid_digits"), ("Δdistance, no margin", "distance")):
        column = differences.headings.index(heading)
        for row in study.competing:
            if row is study.baseline:
                continue
            own = [x.cells for x in differences.lines if x.cells[0].text.partition(" (")[0] == row.label]
            [cell] = {cells[column] for cells in own}
            delta = study.delta(row, study.baseline, key)
            assert study.verdict(row, study.baseline, key) in cell.text
            assert float(cell.number) == pytest.approx(delta.value, abs=0.06 * (delta.hi - delta.lo))
    found = {table.title: table for table in tables(study)}
    assert set(found) >= {"Equal-cost controls", "Refused or failed", "Environment"}
    assert found["Refused or failed"].lines[0].cells[1].text.startswith("DeepCache needs a UNet")


def test_set_up_is_earned_by_what_a_recipe_saves(fabric):
    base, cell, slow = (fabric.quality(label, 2.0, macs=1e9) for label in ("base", "fast", "slow"))
    for record in (cell, slow):
        record["cost"]["setup_s"] = 3.0
        fabric.results.save(record)
    fabric.line("baseline", base)
    fabric.line("cell", cell, fabric.timing(cell, base, 4.0, base=24.0))
    fabric.line("cell", slow, fabric.timing(slow, base, 0.5, base=24.0))
    fabric.save()
    [table] = [t for t in tables(Comparison.load(fabric.results, "demo")) if t.title == "Set-up costs"]
    shown = {line.cells[0].text: line.cells[2] for line in table.lines}
    assert shown["fast"].text == f"{3000 / (24 - 24 / 4):,.0f}"
    assert shown["slow"].text == "never: not faster"
    assert table.headings[2] == "images until it is earned, Testchip 9 (AVX2), 1 thread, batch 8"


@pytest.mark.parametrize("where", ["label", "title", "reason"])
def test_no_text_can_break_out_of_its_place(fabric, where):
    title, label, reason = (NASTY if own == where else own for own in ("title", "label", "reason"))
    fabric.line("baseline", fabric.quality("base", 2.0, macs=1e9))
    fabric.line("cell", fabric.quality(label, 3.0, macs=1e8, picture=where == "label"))
    fabric.line("cell", label="gone", refused=reason)
    fabric.save(title=title)
    html = made(fabric.results)
    found = Page(html)
    assert len(found.all("script")) == 2
    assert not found.all("b")
    assert html.count("<!--") == 0
    [data] = data_of(html)
    assert label in {point["label"] for point in data["points"]}
    if where == "title":
        assert found.all("h1")[0]["text"] == NASTY
    else:
        assert any(NASTY in e["text"] for e in found.all("th" if where == "label" else "td"))


def test_json_in_a_script_element_is_the_same_data():
    data = {"</script>": ["<!--", "&amp;", "\u2028\u2029", "ü", 0.1, None]}
    text = inlined(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029") & set(text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        inlined(float("nan"))


def test_notes_are_marked_and_escaped():
    assert marked("*better* than `fid_digits`, 2 * 3 * 4 <b>") == (
        "<em>better</em> than <code>fid_digits</code>, 2 * 3 * 4 &lt;b&gt;"
    )


def test_several_studies_are_one_page_and_nothing_is_a_page_too(demo):
    demo.lines = [{"role": "cell", "label": "x", "quality": None, "timing": None, "of": None, "refused": "no"}]
    demo.save("empty", title="Nothing yet")
    html = made(demo.results, "demo", "empty", "demo")
    assert [e["text"] for e in Page(html).all("h2")][:2] == [
        "Digits: samplers, caches and precision at small budgets",
        "Nothing yet",
    ]
    assert len(data_of(html)) == 1


# --- the front


def test_points_have_every_cost_and_value_that_the_study_has(demo):
    study = Comparison.load(demo.results, "demo")
    data = front_data(study)
    assert [axis["key"] for axis in data["x"]] == ["macs_ratio", "nfe", "speedup0", "ms0", "weights"]
    assert [axis["key"] for axis in data["y"]] == ["fid_digits", "accuracy", "distance"]
    assert {axis["key"]: axis["higher"] for axis in data["y"]} == {
        "fid_digits": False, "accuracy": True, "distance": False,
    }  # fmt: skip
    points = {point["label"]: point for point in data["points"]}
    assert set(points) == {row.label for row in study.competing}
    cached = points["deis3-20+deepcache3"]
    row = next(row for row in study.done if row.label == cached["label"])
    value = row.value("fid_digits")
    assert cached["y"]["fid_digits"] == [value.value, value.lo, value.hi]
    assert cached["x"]["macs_ratio"] == [pytest.approx(9.4 / 50)] * 3
    assert cached["kind"] == "cache"
    assert points["deis3-10"]["kind"] == "plain sampler"
    simulated = points["deis3-10+w8a8"]
    assert not {"speedup0", "ms0"} & simulated["x"].keys()
    assert (simulated["hollow"], simulated["simulated"]) == (True, True)
    assert [band["label"] for band in data["bands"]] == ["floor: held-out digits", "converged: heun-100"]


@needs_node
def test_the_front_is_the_figures(demo):
    for results, name in ((demo.results, "demo"), (Results(ROOT / "results"), "caching_digits")):
        study = Comparison.load(results, name)
        data, rows = front_data(study), competitors(study)
        code = (
            "data.study.x.map((x) => { const s = data.study, y = s.y[0], p = Report.shown(s, x, y);"
            " return [x.key, Report.front(p, x, y).map((i) => p[i].label)]; })"
        )
        found = dict(evaluated(code, study=data))
        assert found["macs_ratio"] == [point.row.label for point in front(cost_panel(study, rows).points)], name
        for panel in time_panels(study, rows):
            labels = [point.row.label for point in front(panel.points)]
            assert found["ms0"] == labels
            assert found["speedup0"] == labels, "what is faster costs less"


def test_each_device_has_its_axes_and_its_table_of_speeds(fabric):
    base = fabric.quality("base", 2.0, macs=1e9)
    fabric.line("baseline", base)
    for label, device in (("a", "CPU"), ("b", "GPU"), ("c", "CPU")):
        cell = fabric.quality(label, 3.0, macs=1e8)
        fabric.line("cell", cell, fabric.timing(cell, base, 2.0, device=device))
    fabric.save()
    study = Comparison.load(fabric.results, "demo")
    names = {axis["key"]: axis["name"] for axis in front_data(study)["x"]}
    assert names["speedup0"] == "speed-up (CPU, 1 thread, batch 8)"
    assert names["ms1"] == "ms/image (GPU, 1 thread, batch 8)"
    points = {point["label"]: point["x"].keys() for point in front_data(study)["points"]}
    assert {"ms0", "ms1"} <= points["base"]
    assert "ms1" not in points["a"]
    speeds = [table for table in tables(study) if table.title == "Speed"]
    assert [{line.cells[0].text for line in table.lines} for table in speeds] == [
        {"base (baseline)", "a", "c"},
        {"base (baseline)", "b"},
    ]
    html = made(fabric.results)
    assert "Speed on GPU, 1 thread, batch 8" in html


def test_prompts_and_what_is_left_out_are_said(fabric):
    for i in range(32):
        record = fabric.quality(f"r{i}-9", 2.0 + i, macs=1e9) | {"notes": {"captions": ["a <red> disc", "a star"]}}
        fabric.results.save(record)
        fabric.line("cell" if i else "baseline", record)
    fabric.save()
    html = made(fabric.results)
    assert "<li>a &lt;red&gt; disc</li>" in html
    assert "2 are left out." in html
    assert len([e for e in Page(html).all("img") if e["alt"].startswith("16 samples of")]) == 30


@needs_node
def test_no_axis_goes_below_0_unless_a_value_does():
    near, signed = [[0.01, -0.04, 0.06], [0.02, -0.01, 0.05]], [[-0.01, -0.02, 0.0]]
    wide = [[0.1, -0.5, 0.7], [9, 8, 10]]
    scales = evaluated("data.sets.map((s) => Report.scale(s, 0, 500))", sets=[near, signed, wide])
    assert scales[0]["low"] == 0
    assert scales[1]["low"] < -0.02
    assert scales[2]["log"]
    assert scales[2]["low"] > 0
    shares = evaluated("Report.scale(data.set, 0, 500, false)", set=[[1, 0.9, 1.1], [90, 89, 91]])
    assert (shares["log"], shares["low"]) == (False, 0)
    for scale in [*scales, shares]:
        assert len(scale["ticks"]) >= 2
        assert all(scale["low"] <= tick <= scale["high"] for tick in scale["ticks"])


@needs_node
def test_sorting_is_by_number_then_text_and_nothing_is_last():
    cells = [{"v": "10", "text": "10"}, {"v": "", "text": "–"}, {"v": "9.5", "text": "9.5"}, {"v": "", "text": "b2"},
             {"v": "", "text": "b10"}]  # fmt: skip
    up, down = evaluated(
        "[false, true].map((down) => [...data.cells].sort((a, b) => Report.compare(a, b, down)).map((c) => c.text))",
        cells=cells,
    )
    assert up == ["9.5", "10", "b2", "b10", "–"]
    assert down == ["10", "9.5", "b10", "b2", "–"]


@needs_node
def test_a_column_is_sorted_by_its_button(used):
    up, down = used(["sort", 0, 2], ["sort", 0, 2])
    for shown, order, turned in ((up, "ascending", 1), (down, "descending", -1)):
        assert shown["sort"][2] == order
        assert sum(s is not None for s in shown["sort"]) == 1
        values = [turned * float(cell.split()[0]) for cell in shown["cells"] if cell != "–"]
        assert len(values) > 10
        assert values == sorted(values)


@needs_node
def test_recipes_are_told_by_pointer_and_by_keys(used):
    first, focused, right, end, beyond, pointed = used(
        ["look"], ["focus", 0], ["press", "ArrowRight"], ["press", "End"], ["press", "ArrowRight"], ["point", 1]
    )
    names = [label.partition(",")[0] for label in first["points"]]
    assert first["told"] == "ddim-50"  # the baseline
    assert {shown["stops"] for shown in (first, focused, right, end, pointed)} == {1}
    assert (focused["told"], right["told"], end["told"]) == (names[0], names[1], names[-1])
    assert beyond["told"] == end["told"]
    assert right["focus"].startswith(names[1])
    assert pointed["told"] == names[1]
    assert all("95 % interval" in label for label in first["points"])


@needs_node
def test_axes_are_chosen_and_the_drawing_fits(used):
    first, time, narrow = used(["look"], ["choose", "x", "ms0"], ["resize", 330])
    assert len(time["points"]) < len(first["points"])  # the simulated rows have no time
    assert "ms/image" in time["points"][0]
    assert time["told"] == first["told"] == "ddim-50"
    assert (first["svg"], narrow["svg"]) == ("900", "330")
    bands = ["converged: heun-100", "floor: held-out digits"]
    assert sorted(first["names"]) == bands
    assert narrow["names"] == [], "where they would cover the points"
    assert set(bands) <= set(first["key"]) & set(narrow["key"])


@needs_node
def test_a_nasty_label_is_text_in_the_drawing_too(used, fabric):
    fabric.line("baseline", fabric.quality("base", 2.0, macs=1e9))
    fabric.line("cell", fabric.quality(NASTY, 3.0, macs=1e8))
    fabric.save("nasty")
    [_, shown] = used(["look"], ["point", 0], html=made(fabric.results, "nasty"))
    assert shown["told"] == NASTY
    assert shown["points"][0].startswith(NASTY)


# --- pictures


def image_of(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_pictures_are_those_of_the_records_with_their_differences(fabric):
    """Each is compared with its own converged samples, also where these are of another study."""
    rng, pixels = np.random.default_rng(0), {}
    for label, samples, converged in (
        ("exact", "t0", "t0"), ("base", "s1", "t0"), ("other", "s2", "t1"), ("lost", "s3", "t9"), ("bare", "s4", "t0"),
        ("exact of another study", "t1", "t1"),
    ):  # fmt: skip
        record = fabric.quality(label, 2.0, picture=False) | {"samples": samples, "converged": converged}
        fabric.results.save(record)
        pixels[label] = rng.integers(0, 30, (8, 80), dtype=np.uint8)
        if label != "bare":
            file = io.BytesIO()
            Image.fromarray(pixels[label]).save(file, "png")
            write_atomic(fabric.results.path("quality", record["id"]).with_suffix(".png"), file.getvalue())
        role = {"exact": "reference", "base": "baseline"}.get(label, "cell")
        if label != "exact of another study":
            fabric.line(role, record)
    fabric.save()
    found = pictures(Comparison.load(fabric.results, "demo"), fabric.results)
    strips = {strip.label: strip for strip in found.strips}
    assert found.gain == 8
    for label, exact in (("base", "exact"), ("other", "exact of another study")):
        assert (image_of(strips[label].samples) == pixels[label]).all()
        expected = np.abs(pixels[label].astype(int) - pixels[exact]) * found.gain
        assert (image_of(strips[label].difference) == np.minimum(expected, 255)).all()
    assert strips["exact"].difference == strips["lost"].difference == ""
    assert (found.absent, found.unpaired) == (["bare"], ["lost"])
    html = made(fabric.results)
    assert "No pictures in this results folder of: bare." in html
    assert "This results folder has no picture of the converged samples of: lost." in html


def test_large_pictures_are_made_smaller(fabric):
    record = fabric.quality("base", 2.0, picture=False)
    fabric.line("baseline", record)
    fabric.save()
    path = fabric.results.path("quality", record["id"]).with_suffix(".png")
    Image.fromarray(np.zeros((256, 2560, 3), np.uint8)).save(path)
    [strip] = pictures(Comparison.load(fabric.results, "demo"), fabric.results).strips
    assert image_of(strip.samples).shape == (MOST_HEIGHT, 10 * MOST_HEIGHT, 3)


# --- the legend


TRACKED = ("headline_shapes", "composition_digits", "executed_digits", "reference_digits")


@pytest.fixture(scope="module")
def studies():
    return [Comparison.load(Results(ROOT / "results"), name) for name in TRACKED]


def test_every_heading_is_explained(studies):
    for study in studies:
        shown = [heading for table in tables(study) for heading in table.headings]
        data = front_data(study)
        shown += [axis["name"] for axis in (*data["x"], *data["y"])]
        assert unexplained(shown) == [], study.name
        assert {"recipe", "N, seed", "front"} <= {term.name for term in terms(shown)}
    assert unexplained(["nonsense"]) == ["nonsense"]


def test_labels_are_spelled_out_by_docstrings_and_settings(studies):
    found = {(entry.axis, entry.label): entry for entry in entries(studies, meaning)}
    for study in studies:
        for row in study.done:
            for axis in ("guidance", "cache", "stitch", "precision", "skip"):
                name = (row.quality.get("axes") or {}).get(axis, "none")
                assert name == "none" or (axis, name) in found
    cached = found["cache", "deepcache3b1"]
    assert cached.settings == "branch = 1, interval = 3"
    assert cached.text.startswith("DeepCache")
    assert found["sampler", "dpmpp_2m-…"].text.startswith("DPM-Solver++(2M)")
    assert all(len(entry.text.split()) > 1 for entry in found.values())


def test_adaptive_guidance_says_its_threshold():
    row = Comparison.load(Results(ROOT / "results"), "guidance_shapes")
    [entry] = [e for e in entries([row], meaning) if e.label == "ag3(x0>=0.98)"]
    assert "threshold = 0.98" in entry.settings
    assert "space = x0" in entry.settings
    assert "scale = 3" in entry.settings
    assert "guidance" in entry.text.lower()


def test_settings_of_any_shape_are_text():
    described = {"type": "X", "epoch": 1, "a": 1.5, "b": None, "c": {"type": "Y", "n": 2}, "d": [1, "two"], "e": {}}
    assert settings_text(described) == "a = 1.5, c = Y(n = 2), d = [1, two]"
    assert meaning("cache", "nothing_of_this_name", "Nothing") is None
    assert meaning("cache", "fora2", "FeatureInheritance").startswith("FORA")
    assert meaning("cache", "inherit2(unit)", "FeatureInheritance").startswith("Feature inheritance")
    assert meaning("cache", "harmonica(beta=0.005,>0.5)", "LearnedRouter").startswith("HarmoniCa")
    assert meaning("sampler", "dmcmc8[dpmpp_2m]", "DenoisingLangevinGibbs").startswith("Denoising MCMC")
    assert "uniform" not in meaning("cache", "deepcache3c12p1.4rb3", "DeepCache"), "its schedule is another one"
    assert "min-max" not in meaning("precision", "w8a8(sim,wL2.4)", "FakeQuant"), "its range is another one"
    assert meaning("guidance", "cfg++0.2", "CFGPlusPlus").startswith("CFG++")
    assert meaning("cache", "halving", "DeepCache", "somebody") is None


# --- the command


def test_the_command_writes_the_page_and_says_where(demo, monkeypatch, capsys, tmp_path):
    for words, path in (
        (["demo"], demo.results.root / "report_demo.html"),
        (["demo", "--to", str(tmp_path / "deep/own.html")], tmp_path / "deep/own.html"),
    ):
        monkeypatch.setattr("sys.argv", ["accel", "report", *words, "--results", str(demo.results.root)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        assert capsys.readouterr().out.strip() == str(path)
        assert Page(path.read_text(encoding="utf-8")).all("table")


def test_a_folder_without_studies_is_said_as_such(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown study 'demo': .*absent holds none; run one"):
        report.main(["demo", "--results", str(tmp_path / "absent")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmeo"], "unknown study 'dmeo'. Did you mean demo? Allowed: demo."),
        (["demo", "--to", "page.pdf"], "--to is 'page.pdf'; allowed: a file to write that ends in .html."),
        ([], "accel report: the following arguments are required: study."),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(demo, monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["accel", "report", *words, "--results", str(demo.results.root)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {said}")
    assert sorted(tmp_path.rglob("*")) == before


# --- a real browser, where there is one

ASKED = """
<iframe id="f" width="WIDTH" height="800" style="border:0"></iframe><pre id="told"></pre><script>
const frame = document.getElementById("f");
frame.srcdoc = new TextDecoder().decode(Uint8Array.from(atob("PAGE"), (c) => c.charCodeAt(0)));
frame.onload = () => setTimeout(() => {
  const page = frame.contentDocument, root = page.documentElement, window_ = frame.contentWindow;
  const button = page.querySelectorAll("table.sortable thead button")[2];
  button.focus();
  const focused = page.activeElement === button;
  button.click();
  const first = page.querySelector(".point[tabindex='0']");
  first.focus();
  first.dispatchEvent(new window_.KeyboardEvent("keydown", { key: "End", bubbles: true }));
  document.getElementById("told").textContent = JSON.stringify({
    wide: root.scrollWidth, seen: root.clientWidth, focused, sort: button.closest("th").getAttribute("aria-sort"),
    focus: page.activeElement.getAttribute("aria-label"),
    told: page.querySelector("[data-part=told] strong").textContent,
    last: [...page.querySelectorAll(".point")].pop().getAttribute("aria-label"),
  });
}, 300);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium (chromium, chromium-browser, google-chrome) on this machine")
@pytest.mark.parametrize("width", [1280, 360])
def test_in_a_browser(demo, tmp_path, width):
    html = base64.b64encode(made(demo.results).encode()).decode()
    path = tmp_path / "outer.html"
    path.write_text(ASKED.replace("WIDTH", str(width)).replace("PAGE", html))
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    ended = subprocess.run([*words, path.as_uri()], capture_output=True, text=True, timeout=120)
    [told] = [json.loads(e["text"]) for e in Page(ended.stdout).all("pre")]
    assert told["wide"] <= told["seen"], "the page scrolls sideways"
    assert told["focused"]
    assert told["sort"] == "ascending"
    assert told["focus"] == told["last"]
    assert told["last"].startswith(told["told"])
