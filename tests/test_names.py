"""Names that become paths: nothing is read or written outside of the results folder, whoever says the name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from accel import __main__ as cli
from accel.config import compose
from accel.errors import AccelError, ConfigError, IntegrityError, check_name
from accel.files import file_name
from accel.records import Results, write_json
from accel.results.comparison import Comparison
from accel.results.figures import write_figures
from accel.results.tables import write_tables

TRACKED = Path(__file__).parents[1] / "results"
QUICK = [
    "suite=mixture", "evaluation.n=60", "evaluation.distance_n=60", "evaluation.timing=false", "evaluation.device=cpu",
    "wandb=disabled", "sampler.steps=2", 'baseline=["sampler=ddim","sampler.steps=2"]',
]  # fmt: skip


@pytest.fixture
def accel(monkeypatch, capsys, tmp_path):
    """accel(*overrides) -> (exit code, stderr) of the command line, run in a folder deep inside of tmp_path."""

    def accel(*overrides: str) -> tuple[int, str]:
        work = tmp_path / "a" / "b" / "c"
        work.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(work)
        monkeypatch.setattr(sys, "argv", ["accel", *QUICK, *overrides])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    return accel


def written(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


STUDIES = {
    "above": "study=../../x",
    "within": "study=x/y",
    "absolute": "study=/somewhere/x",
    "parent": "study=..",
    "dot": "study=.",
    "hidden": "study=.x",
    "empty": "study=''",
    "nothing": "study=",
    "null": "study=null",
    "list": "study=[a]",
    "mapping": "study={a: 1}",
    "truth": "study=true",
    "fraction": "study=1.5",
    "newline": "study='a\nb'",
    "last newline": "study='a\n'",
    "NUL": "study='a\0b'",
    "space": "study='a b'",
    "backslash": "study='a\\b'",
    "long": f"study={'x' * 101}",
}


@pytest.mark.parametrize("case", STUDIES)
@pytest.mark.parametrize("kind", [[], ["search=timesteps", "sampler=ddim_accel"]], ids=["study", "search"])
def test_a_study_is_a_name_and_no_path(case, kind, accel, tmp_path):
    code, printed = accel(*kind, STUDIES[case], "results=out")
    assert code == 2
    assert printed.startswith("error: study is "), printed
    assert "allowed: 1 to 100 of the letters A-Z and a-z, digits, _ . and -, the first of them no dot." in printed
    assert len(printed.splitlines()) == 1
    assert written(tmp_path) == []


RESULTS = {
    "empty": "results=''",
    "nothing": "results=",
    "null": "results=null",
    "list": "results=[a]",
    "mapping": "results={a: 1}",
    "number": "results=1",
    "newline": "results='a\nb'",
    "NUL": "results='a\0b'",
}


@pytest.mark.parametrize("case", RESULTS)
@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["run", "multirun"])
def test_results_is_a_path(case, flags, accel, tmp_path):
    code, printed = accel(*flags, RESULTS[case], "study=x")
    assert code == 2
    assert printed.startswith("error: results is "), printed
    assert "allowed: the path of a folder, such as results=outputs." in printed
    assert len(printed.splitlines()) == 1
    assert written(tmp_path) == []


def test_results_above_and_numbers_as_studies_are_fine(accel, tmp_path):
    code, printed = accel("results=../out", "study=2024")
    assert code == 0, printed
    assert all(name.startswith("a/b/out/") for name in written(tmp_path))
    assert (tmp_path / "a/b/out/studies/2024.json").exists()


def test_tracked_studies_have_valid_names():
    names = Results(TRACKED).studies()
    assert len(names) > 20
    for name in names:
        assert check_name("study", name) == name
        assert Results(TRACKED).load_study(name)["name"] == name
    for record in Results(TRACKED).all("search_study"):
        assert check_name("study", record["id"]) == record["id"]


@pytest.mark.parametrize("model", ["my model", "grüße+1", ".hidden", "x" * 300])
def test_a_model_of_any_name_has_a_study(model):
    study = compose(["suite=hub", f"suite.model='/models/{model}'"]).study
    assert check_name("study", study) == study


def test_other_names_stay_as_they_are():
    for name in ("digits", "hub_sd-1.5", "shapes"):
        assert file_name(name) == name
    assert file_name("../../x") == ".._.._x"
    assert compose([]).study == "adhoc_digits"


OUTSIDE = ["../../outside", "/outside", "..", ".", "", "a/b", "a\0b", "a\nb", ".lock", 1.5, ["a"], {"a": 1}, True]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_no_record_is_outside(name, tmp_path):
    results = Results(tmp_path / "deep" / "results")
    for act in (
        lambda: results.path("quality", name),
        lambda: results.load("quality", name),
        lambda: results.save({"kind": "quality", "id": name}),
        lambda: results.path(name, "abc"),
        lambda: results.all(name),
        lambda: results.save_study({"name": name, "rows": []}),
        lambda: results.load_study(name),
        lambda: write_tables(results, name),
        lambda: write_figures(results, name),
    ):
        with pytest.raises(ConfigError, match="allowed: 1 to 100 of the letters"):
            act()
    assert written(tmp_path) == []


@pytest.mark.parametrize("name", [n for n in OUTSIDE if n], ids=repr)
@pytest.mark.parametrize("kind", ["quality", "timing", "timings"])
def test_a_manifest_that_names_a_file_outside_is_damaged(kind, name, tmp_path, accel):
    row = {"label": "ddim-2", "role": "cell", "quality": None, "timing": None, "of": None, "refused": None}
    results, named = Results(tmp_path / "a/b/c/out"), [name] if kind == "timings" else name
    results.save_study({"name": "forged", "title": "", "suite": "mixture", "n": 60, "rows": [row | {kind: named}]})
    write_json(tmp_path / "a" / "outside.json", {"id": "outside", "kind": kind})
    before = written(tmp_path)
    with pytest.raises(IntegrityError, match=r"forged\.json is damaged: the id of a .* record is"):
        Comparison.load(results, "forged")
    if name == "../../outside":  # the command line reads the rows that are there, to add its own
        code, printed = accel("study=forged", "results=out")
        assert code == 2
        assert printed.startswith("error: ")
        assert "Delete it and run the same command again" in printed
        assert len(printed.splitlines()) == 1
        assert written(tmp_path) == before


@pytest.mark.parametrize("rows", [None, 3, [3], ["abc"]])
def test_a_manifest_without_rows_is_damaged(rows, tmp_path):
    results = Results(tmp_path)
    results.save_study({"name": "forged", "suite": "mixture", "rows": rows})
    with pytest.raises(IntegrityError, match=r"is damaged: (its rows is|row 0: its label is not there)"):
        results.load_study("forged")


def test_a_file_that_calls_itself_otherwise_is_damaged(tmp_path):
    results = Results(tmp_path / "results")
    for id in ("../../../outside", "other", None):
        write_json(results.path("search_study", "own"), {"kind": "search_study", "id": id, "rows": []})
        write_json(results.root / "studies" / "own.json", {"name": id, "rows": []})
        for act in (
            lambda: results.load("search_study", "own"),
            lambda: results.all("search_study"),
            lambda: results.load_study("own"),
        ):
            with pytest.raises(IntegrityError, match=r"own\.json is damaged: its (id|name) is"):
                act()


def test_a_row_of_searches_that_names_a_file_outside(tmp_path):
    from accel.results.search import write_searches

    results = Results(tmp_path / "deep" / "results")
    row = {"group": "g", "of": "x", "name": "n", "kind": "grid", "quality": "../../../../outside", "search": None}
    results.save({"kind": "search_study", "id": "own", "title": "", "suite": "digits", "n": 60, "seed": 0,
                  "rows": [row]})  # fmt: skip
    before = written(tmp_path)
    with pytest.raises(AccelError, match="the id of a quality record is"):
        write_searches(results)
    assert written(tmp_path) == before
