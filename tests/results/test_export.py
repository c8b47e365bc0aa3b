"""Tables and figures for papers: the same numbers in every format, escaped as each needs, by the columns asked for."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas
import pytest

from accel import __main__ as cli
from accel.errors import ConfigError
from accel.records import Results
from accel.results.canvas import FORMATS
from accel.results.comparison import Comparison
from accel.results.export import export, headings, latex
from accel.results.figures import figure_path, write_figures
from accel.results.frame import study_frame
from accel.results.text import interval

CHOSEN = ["recipe", "fid (digits)", "ΔFID (digits) vs baseline", "fid_digits_lo", "all values"]


def cells(text, kind):
    """The lines of cells that a table has in a format, its headings first."""
    if kind == "csv":
        return list(csv.reader(io.StringIO(text)))
    if kind == "md":
        lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line] for line in [lines[0], *lines[2:]]]
    if kind == "html":
        return [["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(text).iter("tr")]
    rows = re.findall(r"^(.*) \\\\$", text, re.MULTILINE)
    return [row.split(" & ") for row in rows]


@pytest.mark.parametrize("kind", ["latex", "csv", "md", "html"])
def test_each_format_has_the_same_rows_and_the_columns_asked_for(demo, kind):
    study, found = Comparison.load(demo.results, "demo"), cells(export(demo.results, "demo", kind, CHOSEN), kind)
    plain = str if kind != "latex" else latex
    names = ["recipe", "FID (digits) [95 %]", "ΔFID (digits) vs baseline", "fid_digits_lo", "all values"]
    assert found[0] == [plain(name) for name in names]
    rows = study.members(study.groups[0])
    assert len(found) == len(rows) + 1
    for row, line in zip(rows, found[1:], strict=True):
        value = row.value("fid_digits")
        assert line[0].startswith(plain(row.label))
        assert line[1] == plain(interval(value))
        assert float(line[3]) == pytest.approx(value.lo, rel=1e-3)


def test_csv_without_a_choice_is_everything_and_the_others_the_table(demo):
    text = export(demo.results, "demo", "csv")
    assert text == study_frame(demo.results, "demo").to_csv(index=False, lineterminator="\n")
    assert len(pandas.read_csv(io.StringIO(text))) == len(demo.lines)
    shown = headings(Comparison.load(demo.results, "demo"))
    for kind in ("md", "html"):
        assert cells(export(demo.results, "demo", kind), kind)[0] == shown


def test_groups_that_do_not_compare_stand_apart(fabric):
    fabric.line("baseline", fabric.quality("base", 2.0, macs=1e9))
    fabric.line("cell", fabric.quality("small", 1.0, macs=1e8, n=500))
    fabric.save()
    assert export(fabric.results, "demo", "latex", ["recipe"]).count("\\begin{table}") == 2
    found = cells(export(fabric.results, "demo", "csv", ["recipe", "NFE"]), "csv")
    assert [line[0] for line in found] == ["group", *(f"FID (digits), N = {n}, seed 0" for n in (1000, 500))]
    assert export(fabric.results, "demo", "md", ["recipe"]).count("## FID") == 2


def test_what_a_format_would_take_for_its_own_is_escaped(fabric):
    label = r"a_5% & #1 {x} $y$ ~z^2 \w <b>|c"
    fabric.line("baseline", fabric.quality("base", 2.0, macs=1e9))
    fabric.line("cell", fabric.quality(label, 3.0, macs=1e8))
    fabric.save(title=r"50 % of \LaTeX & <b>")
    text = export(fabric.results, "demo", "latex", ["recipe", "ΔFID (digits) vs baseline"])
    assert r"a\_5\% \& \#1 \{x\} \$y\$ \textasciitilde{}z\textasciicircum{}2 \textbackslash{}w $<$b$>$$|$c" in text
    assert r"\caption{50 \% of \textbackslash{}LaTeX \& $<$b$>$" in text
    assert text.isascii()
    assert len(re.findall(r"\\begin\b", text)) == len(re.findall(r"\\end\b", text)) == 2
    assert latex("[0.1, 2] ± 3") == r"{[0.1, 2] $\pm$ 3}"
    for kind in ("html", "csv"):
        assert label in {line[0] for line in cells(export(fabric.results, "demo", kind, ["recipe"]), kind)}
    assert r"<b>\|c" in export(fabric.results, "demo", "md", ["recipe"])


@pytest.mark.parametrize(
    ("kind", "columns", "said"),
    [
        ("docx", [], "unknown format of tables 'docx'"),
        ("md", ["recpe"], r"unknown column 'recpe'. Did you mean recipe .* Allowed: a heading \(rank, recipe, "),
        ("csv", ["recipe", "x", "y"], "2 things to mend"),
    ],
)
def test_unknown_formats_and_columns(demo, kind, columns, said):
    with pytest.raises(ConfigError, match=said):
        export(demo.results, "demo", kind, columns)


def test_the_command(demo, monkeypatch, capsys, tmp_path):
    def ran(*words):
        monkeypatch.setattr("sys.argv", ["accel", "table", *words, "--results", str(demo.results.root)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    assert ran("demo", "--format", "csv") == (0, export(demo.results, "demo", "csv"), "")
    path = tmp_path / "deep" / "demo.tex"
    assert ran("demo", "--format", "latex", "--to", str(path), "--columns", "recipe", "NFE") == (0, f"{path}\n", "")
    assert path.read_text() == export(demo.results, "demo", "latex", ["recipe", "NFE"])
    code, out, err = ran("dmeo")
    assert (code, out) == (2, "")
    assert err.startswith("error: unknown study 'dmeo'. Did you mean demo?")


def test_a_study_of_searches_is_refused_with_where_its_table_is(fabric):
    record = {"kind": "search_study", "id": "steps", "title": "S", "suite": "digits", "n": 60, "seed": 0, "rows": []}
    fabric.results.save(record)
    with pytest.raises(ConfigError, match=r"^steps is a study of searches.*tables/steps\.md"):
        export(fabric.results, "steps", "md")
    with pytest.raises(ConfigError, match=r"^unknown study 'stps'"):
        export(fabric.results, "stps", "md")


# --- LaTeX, compiled

ROOT = Path(__file__).parents[2]
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")


def compiled(folder, *tables):
    """What pdflatex says of a document of these tables: the log of a run without an error."""
    packages = "\\documentclass{article}\\usepackage{booktabs,graphicx}"
    (folder / "t.tex").write_text(f"{packages}\\begin{{document}}\n{''.join(tables)}\\end{{document}}\n", "utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    for _ in range(2):  # the second time no reference is unknown
        ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
        assert ended.returncode == 0, ended.stdout[-2000:]
    assert (folder / "t.pdf").stat().st_size > 10_000
    return (folder / "t.log").read_text(errors="replace")


@needs_latex
@pytest.mark.latex
@pytest.mark.parametrize("name", ["headline_digits", "samplers_digits", "guidance_shapes", "students_digits"])
def test_tracked_tables_fit_their_pages(name, tmp_path):
    """Wide ones and long ones, with every mark and label; and the columns that somebody chose."""
    results = Results(ROOT / "results")
    study = Comparison.load(results, name)
    whole = export(results, name, "latex")
    chosen = export(results, name, "latex", headings(study)[:7])
    log = compiled(tmp_path, whole, chosen.replace("\\label{tab:", "\\label{tab:chosen-"))
    assert not re.findall(r"Overfull|too large|undefined|multiply", log)
    rows = {latex(row.label) for row in study.done}
    assert all(row in whole for row in rows)


@needs_latex
@pytest.mark.latex
def test_every_character_is_printed(fabric, tmp_path):
    label = r"a_5% & #1 {x} $y$ ~z^2 \w <b>|c @karras -- `q' \"r\" ‡ † ± → Δ − × ÷ ≥ ≤ ↑ ↓ · é […] 7→9"
    fabric.line("baseline", fabric.quality("base", 2.0, macs=1e9))
    fabric.line("cell", fabric.quality(label, 3.0, macs=1e8))
    fabric.save(title=r"50 % of \LaTeX & <b>")
    log = compiled(tmp_path, export(fabric.results, "demo", "latex", ["recipe", "ΔFID (digits) vs baseline"]))
    assert "Missing character" not in log
    if tool := shutil.which("pdftotext"):
        text = subprocess.run([tool, "t.pdf", "-"], cwd=tmp_path, capture_output=True, text=True).stdout
        assert all(word in text for word in ("#1", "{x}", "$y$", "<b>|c", "@karras", "±", "→", "≥", "50 %"))


# --- figures


@pytest.fixture
def small(fabric):
    for role, label, fid in (("baseline", "a", 2.0), ("cell", "b", 3.0)):
        fabric.line(role, fabric.quality(label, fid, macs=1e8 * fid))
    fabric.save()
    return fabric.results


@pytest.mark.parametrize("kind", FORMATS)
def test_figures_of_every_format_are_whole_and_the_same_again(small, kind):
    paths = write_figures(small, "demo", kind)
    assert paths == [figure_path(small, "demo", name, kind) for name in ("pareto", "samples")]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_figures(small, "demo", kind)] == first
    if kind == "pdf":
        assert all(data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF") for data in first)
        assert b"/Image" in first[1]
        for data in first:
            assert b"/Type3" not in data, "publishers refuse such fonts"
            assert b"/TrueType" in data or b"/CIDFontType2" in data
    if kind == "svg":
        for path, data in zip(paths, first, strict=True):
            root = ElementTree.fromstring(data)
            width, height = (float(x) for x in root.get("viewBox").split()[2:])
            images = [e for e in root.iter() if e.tag.endswith("}image")]
            assert bool(images) == ("samples" in path.name)
            for image in images:
                assert float(image.get("width")) <= width
                assert float(image.get("height")) <= height


def test_an_unknown_format_of_figures(small):
    with pytest.raises(ConfigError, match="unknown format of figures 'gif'"):
        write_figures(small, "demo", "gif")


def test_rebuild_writes_them(small, monkeypatch, capsys):
    def ran(*words):
        monkeypatch.setattr("sys.argv", ["accel", "rebuild", *words, "--results", str(small.root)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    code, out, _ = ran("figures", "--format", "svg")
    assert (code, out.split()) == (0, [str(figure_path(small, "demo", n, "svg")) for n in ("pareto", "samples")])
    code, _, err = ran("tables", "--format", "svg")
    assert code == 2
    assert err.startswith("error: --format svg is of figures: accel rebuild figures --format svg.")
    code, out, err = ran("plain")
    assert (code, out) == (2, ""), "nothing is made of no study"
    assert "no study plain_<suite> in" in err
