"""A row of the tracked results as a recipe file: what tables say of it, and the recipe that runs on the suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import accel
from accel.cli import recipe as cli
from accel.core.recipe import accelerate
from accel.deploy.measured import of_row
from accel.deploy.methods import recorded
from accel.errors import ConfigError
from accel.records import Results, canonical, describe
from accel.results.comparison import Comparison

ROOT = Path(__file__).parents[2] / "results"
STUDY, ROW = "demo", "dpmpp_2m-10@t_quadratic + bf16"  # tracked with times


@pytest.fixture(scope="module")
def results():
    return Results(ROOT)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    assert cli.main([STUDY, ROW, "--results", str(ROOT), "--to", str(folder)]) == 0
    return accel.load_recipe(folder)


def test_what_was_measured_is_what_the_table_says(saved, results):
    study = Comparison.load(results, STUDY)
    row = next(row for row in study.done if row.label == ROW)
    said = saved.measured
    assert (said["study"], said["row"], said["n"], said["seeds"]) == (STUDY, ROW, 500, [0])
    for key, value in row.quality["values"].items():
        assert said["values"][key] == {end: value[end] for end in ("value", "lo", "hi", "n")}
    assert said["against"]["baseline"] == study.baseline.label
    differences = said["against"]["differences"]
    assert set(study.gates) <= set(differences)
    for key, found in differences.items():
        delta = study.delta(row, study.baseline, key)
        assert (found["value"], found["lo"], found["hi"]) == (delta.value, delta.lo, delta.hi)
        assert found["verdict"] == study.verdict(row, study.baseline, key)
        assert found.get("margin") == study.margin(key, study.baseline)
    assert said["margins"]["fid_least"] == study.margins.fid_least
    speed = next(one for one in said["speed"] if one["batch"] == row.timing["batch"])
    assert (speed["device"], speed["threads"]) == (row.timing["device_name"], row.timing["threads"])
    assert speed["speedup"] == row.timing["speedup"]
    assert said["records"]["quality"] == row.quality["id"]
    assert row.timing["id"] in said["records"]["timing"]
    assert said["cost"]["macs"] == row.quality["cost"]["macs"]


def test_the_recipe_is_the_recorded_one_and_runs_on_the_suites_pipeline(saved, results, pipe, digits, run):
    record = results.load("quality", saved.measured["records"]["quality"])
    again = {key: value for key, value in describe(saved.recipe).items() if value is not None}
    assert canonical(again) == canonical({key: value for key, value in record["recipe"].items() if value is not None})
    saved.check_suite(digits)
    assert {k: v for k, v in saved.model["files"].items() if k in record["weights"]} == record["weights"]
    with accelerate(pipe, saved.recipe):
        expected = run(1.0, steps=10)
    with accel.apply(pipe, saved):
        labels, generators = [0, 1], [torch.Generator().manual_seed(i) for i in range(2)]
        assert torch.equal(pipe(class_labels=labels, generator=generators, output_type="pt").images, expected)


def test_a_row_of_the_baseline_is_held_against_nothing(results):
    found = of_row(results, "demo", "ddim-20")
    assert "against" not in found.said
    assert found.artefacts == {}


def test_recorded_recipes_can_be_made_again():
    """Of each kind of recipe, however old its record is: what it is made of was registered under the same name."""
    seen, strange = set(), []
    for path in sorted((ROOT / "records" / "quality").glob("*.json")):
        record = json.loads(path.read_text())
        described = record["recipe"]
        kind = str([(axis, own and own["type"]) for axis, own in described.items() if axis != "type"])
        if described.get("type") != "Recipe" or kind in seen:
            continue
        seen.add(kind)
        try:
            assert recorded(described).label == record["label"], path
        except ConfigError as error:
            strange.append(str(error))
    assert len(seen) > 10
    assert not [one for one in strange if "epoch" not in one], strange[:3]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["demo", "ddim-21"], "unknown row of study demo 'ddim-21'. Did you mean"),
        (["demoo", ROW], "unknown study 'demoo'. Did you mean demo"),
        (["demo", "real images (held out)"], "unknown row of study demo"),
        (
            ["demo", "dpmpp_2m-10@t_quadratic + w8a8(sim)"],
            r"(?s)artefacts are not among tracked results.*Run the study again",
        ),
        ([STUDY, ROW, "sampler=ddim"], "takes settings of the suite, and 'sampler=ddim' is none"),
        ([STUDY, ROW, "suite=digits_flow"], r"(?s)another model than that of suite 'digits_flow'.*large/unet"),
    ],
)
def test_what_cannot_become_a_file_is_said(words, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        cli.main([*words, "--results", str(ROOT), "--to", str(tmp_path / "r")])
    assert not (tmp_path / "r").exists()


def test_several_rows_of_one_name_are_told_apart_by_their_records(results, tmp_path):
    import shutil

    shutil.copytree(
        ROOT / "records" / "quality", tmp_path / "records" / "quality", ignore=shutil.ignore_patterns("*.png")
    )
    manifest = json.loads((ROOT / "studies" / "demo.json").read_text())
    label = "dpmpp_2m-10"
    other = next(row for row in manifest["rows"] if row["label"] == label)
    twins = {record["id"] for record in results.all("quality") if record["label"] == label} - {other["quality"]}
    manifest["rows"].append(other | {"quality": min(twins)})
    copied = Results(tmp_path)
    copied.save_study({key: value for key, value in manifest.items() if key != "sha256"})
    with pytest.raises(ConfigError, match=r"is several rows of study demo; give the id of one: .*\(N = 500, seed 0\)"):
        of_row(copied, "demo", label)
    assert of_row(copied, "demo", other["quality"]).recipe.label == label


def test_without_a_model_its_files_are_kept(tmp_path):
    cli.main([STUDY, ROW, "--results", str(ROOT), "--to", str(tmp_path), "--without-model"])
    saved = accel.load_recipe(tmp_path)
    assert set(saved.model) == {"files"}
