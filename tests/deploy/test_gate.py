"""`accel gate`: the harness's verdicts on two recipe files, as an exit code and a table."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from saved import BASE, FAST, PLAIN, saved

from accel.cli import gate as cli
from accel.core.recipe import Recipe
from accel.deploy import gate
from accel.deploy.gate import FAIL, PASS, UNDECIDED, Gate
from accel.deploy.recipe_file import load_recipe
from accel.deploy.saved_runner import compared
from accel.errors import AccelError, ConfigError, DivergedError
from accel.metrics.statistics import Estimate
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.results.comparison import Comparison
from accel.samplers import DiffusersSampler


@pytest.fixture(scope="session")
def ones(light_words, tmp_path_factory):
    """Folders of recipes of one model, by name: the baseline, the same again, and one of a single step."""
    root = tmp_path_factory.mktemp("gate")
    poor = Recipe(DiffusersSampler("DDIMScheduler", 1, "ddim", BASE.sampler.options))
    made = {"base": BASE, "fast": FAST, "poor": poor}
    return {name: saved(root / name, light_words, recipe, samples=None).parent for name, recipe in made.items()}


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """A results folder that the gates of these tests share."""
    return str(tmp_path_factory.mktemp("kept"))


def test_the_same_again_passes_and_a_poor_one_fails(ones, kept, capsys, tmp_path):
    words = ["--n", "60", "--results", kept]
    assert cli.main([str(ones["base"]), str(ones["base"]), *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("**Gate: pass**: `ddim-5` in the place of `ddim-5` on suite digits (N = 60, seed 1,")
    assert "equivalent |" in said
    page = tmp_path / "gate.md"
    assert cli.main([str(ones["base"]), str(ones["poor"]), *words, "--to", str(page)]) == 1
    assert capsys.readouterr().out == f"fail: {page}\n"
    lines = page.read_text().splitlines()
    assert lines[0].startswith("**Gate: fail**: `ddim-1` in the place of `ddim-5`")
    fid = next(line for line in lines if line.startswith("| FID (digits)"))
    assert fid.endswith("| worse |")
    assert fid.count("|") == lines[2].count("|") == 7
    assert any(line == "| network evaluations | 5 | 1 | 0.2 |" for line in lines)


def test_a_folder_is_no_file_for_the_table_and_nothing_is_sampled(ones, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "run_gate", lambda *given: pytest.fail("it sampled"))
    with pytest.raises(ConfigError, match="a folder; allowed: a file to write"):
        cli.main([str(ones["base"]), str(ones["base"]), "--to", str(tmp_path)])


def test_its_verdicts_are_those_of_a_study(ones, kept):
    found = gate.run_gate(ones["base"], ones["fast"], Results(kept), n=60)
    base, own = found.study.rows
    assert (base.quality["seed"], own.quality["seed"]) == (1, 1), "neither was measured on it"
    study = Comparison("s", "s", "digits", (base, own), found.study.margins)
    assert found.words == study.verdicts(own)
    assert set(found.words) == {"fid_digits", "accuracy", "recall"}
    assert found.study.margins.fid_least == 0.1, "the suite's own"


def value(mean, spread, n=400):
    replicates = [mean + spread * (-1) ** i for i in range(20)]
    return Estimate.from_replicates(mean, replicates, n).to_dict()


def judged(accuracy, margins=None):
    """The gate of two records that differ in accuracy: (value, spread of its replicates)."""
    record = {"suite": "digits", "n": 400, "seed": 1, "reference": {"sha256": "r"}, "cost": {"nfe": 10}}
    base = record | {"id": "a", "label": "a", "values": {"fid_digits": value(2.0, 0.0), "accuracy": value(0.9, 0.0)}}
    own = base | {"id": "b", "label": "b", "values": base["values"] | {"accuracy": value(*accuracy)}}
    study = compared(base, own, margins or Margins())
    return Gate(study, gate.next_n(study, 400, gate.MOST, 10)[0])


@pytest.mark.parametrize(
    ("accuracy", "outcome"),
    [((0.9, 0.0), PASS), ((0.95, 0.0), PASS), ((0.899, 0.0001), PASS), ((0.85, 0.0), FAIL), ((0.9, 0.005), UNDECIDED)],
)
def test_outcomes(accuracy, outcome):
    found = judged(accuracy)
    assert found.outcome == outcome
    assert f"**Gate: {outcome}**" in gate.markdown(found)


def test_what_is_undecided_says_how_many_samples_would_decide():
    found = judged((0.9, 0.005))
    assert found.more > 400
    assert f"`--n {found.more}` would likely decide" in gate.markdown(found)
    assert judged((0.9, 0.005), Margins(accuracy=0.2)).outcome == PASS


def test_undecided_is_exit_code_3(ones, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_gate", lambda *given: judged((0.9, 0.005)))
    assert cli.main([str(ones["base"]), str(ones["fast"])]) == 3
    assert "Undecided: the interval reaches beyond the margin" in capsys.readouterr().out


def test_a_candidate_that_diverges_fails(ones, monkeypatch, capsys):
    def diverges(*given):
        raise DivergedError("ddim-1: 3 of 60 images are not finite; the recipe diverges.")

    monkeypatch.setattr(cli, "run_gate", diverges)
    assert cli.main([str(ones["base"]), str(ones["poor"])]) == 1
    assert capsys.readouterr().out.startswith("**Gate: fail**: ddim-1: 3 of 60 images are not finite")


def test_margins_are_the_files_and_then_those_of_the_command(ones):
    own = load_recipe(ones["base"])
    told = replace(own, measured={"margins": {"accuracy": 0.5, "fid": 0.2, "fid_least": 0.3}})
    assert gate.margins_of(told, 0.1, {"fid": 0.05}) == Margins(fid=0.05, fid_least=0.3, accuracy=0.5)
    assert gate.margins_of(own, 0.1, {}).fid_least == 0.1


def test_recipes_of_different_models_are_refused(ones, sd, tmp_path):
    with pytest.raises(ConfigError, match=r"the two recipes are of different models: .*unet \(.* is the baseline's"):
        cli.main([str(ones["base"]), str(sd)])
    with pytest.raises(ConfigError, match="the candidate's file says nothing of a model"):
        cli.main([str(ones["base"]), str(PLAIN.save(tmp_path / "bare"))])


def test_what_two_files_learned_is_told_apart(light_words, tmp_path):
    """Two searches of one method are the same recipe with other numbers: not one run."""
    import torch

    from accel.deploy.opened import open_recipe
    from accel.deploy.saved_runner import SavedRunner
    from accel.studies.evaluation import Evaluation
    from accel.testing.quick import recipe

    solver = Recipe(recipe(sampler="dc_solver").sampler)
    ids = []
    for seed in (0, 0, 1):
        numbers = {"sampler": {"ratios": torch.rand(3, generator=torch.Generator().manual_seed(seed))}}
        path = saved(tmp_path / str(len(ids)), light_words, solver, samples=None, artefacts=numbers)
        runner = SavedRunner(open_recipe(path), Evaluation(n=60, distance_n=60, device="cpu"), Results(tmp_path))
        assert runner.artefacts(solver)[0]["sampler"]["ratios"].equal(numbers["sampler"]["ratios"])
        ids.append(runner.quality_id(solver))
        with pytest.raises(ConfigError, match="needs a calibration"):
            runner.artefacts(Recipe(replace(solver.sampler, steps=7)))
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{base}", "nowhere"], "cannot read nowhere"),
        (["{base}"], r"the following arguments are required: candidate.*Usage: accel gate"),
        (["{base}", "{fast}", "--n", "5"], "--n is 5; allowed: an integer >= 60"),
        (["{base}", "{fast}", "--margin", "fdi=1"], "unknown value of --margin 'fdi'. Did you mean fid"),
        (["{base}", "{fast}", "--margin", "fid=x"], "'x' is no number; write --margin fid=<number>"),
        (["{base}", "{fast}", "--margin", "fid=-1"], r"margins\.fid is -1"),
        (["{base}", "{fast}", "sampler=ddim"], "'sampler=ddim' is none"),
        (["{base}", "{fast}", "suite=digits_dit"], "another model than that of this suite 'digits_dit'"),
        (["{base}", "{fast}", "--device", "gpu"], "--device is 'gpu'"),
    ],
)
def test_bad_requests_are_one_error(words, reason, ones):
    with pytest.raises(AccelError, match=f"(?s){reason}"):
        cli.main([word.format(**ones) for word in words])


def test_a_newer_schema_is_refused(ones, tmp_path):
    shutil.copytree(ones["fast"], tmp_path / "r")
    path = tmp_path / "r/recipe.yaml"
    path.write_text(path.read_text().replace("schema: 1", "schema: 9"))
    with pytest.raises(ConfigError, match=r"of schema 9.*upgrade accel"):
        cli.main([str(ones["base"]), str(path)])
