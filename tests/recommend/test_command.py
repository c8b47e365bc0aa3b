"""`accel recommend` from words to a recipe file, on light networks."""

from __future__ import annotations

import re
from pathlib import Path

import hub_tiny
import pytest

import accel
from accel.__main__ import main as program
from accel.cli import export, recommend, verify
from accel.errors import ConfigError
from accel.precision import Cast
from accel.recommend import axes
from accel.recommend import study as study_of
from accel.recommend.precisions import Rates
from accel.recommend.request import read
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.recipe_search import holds
from accel.testing.elsewhere import DEVICE, Elsewhere

FEW = [
    "steps=6", "budget=60m", "evaluation.n=60", "evaluation.distance_n=60", "evaluation.timing=false",
    "search.budget=1500", "search.halving.first=4", "search.halving.doublings=1",
    'search.axes.sampler=["sampler=dpmpp_2m"]', 'search.axes.steps=["sampler.steps=2","sampler.steps=3"]',
    'search.axes.grid=["grid=none"]',
    'search.axes.cache=["cache=none"]', 'search.axes.stitch=["stitch=none","stitch=tstitch stitch.fractions=[0.6]"]',
    "evaluation.device=cpu", "evaluation.controls=false", 'search.axes.precision=["precision=none"]',
]  # fmt: skip


@pytest.fixture
def words(light_digits, tmp_path, monkeypatch):
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])  # a second each
    monkeypatch.setattr("accel.evaluation.cost.VARYING", 3)
    where = [f"results={tmp_path / 'out'}", f"to={tmp_path / 'fast'}"]
    return ["suite=digits", f"+suite.weights='{light_digits}'", "suite.converged_steps=4", *where, *FEW]


def test_it_ends_with_a_recipe_file_of_what_it_recommends(words, tmp_path, capsys):
    wide = [f"evaluation.margins.{name}=1000.0" for name in ("fid", "recall", "accuracy")]
    assert recommend.main([*words, *wide]) == 0
    said = capsys.readouterr().out
    label = said.partition("Recommended: ")[2].partition("\n")[0]
    loaded = accel.load_recipe(tmp_path / "fast")
    assert loaded.recipe.label == label
    study = Comparison.load(Results(tmp_path / "out"), "recommend_digits")
    row = next(row for row in study.done if row.label == label)
    assert holds(study, row)
    assert loaded.measured["values"]["fid_digits"]["value"] == row.value("fid_digits").value
    assert loaded.measured["seeds"] == [0], "which the search has not seen"
    assert "accel.apply" in said

    # Again: all is there, and the recipe is not written over.
    with pytest.raises(ConfigError, match="is there already"):
        recommend.main([*words, *wide])
    again = [word if not word.startswith("to=") else f"to={tmp_path / 'again'}" for word in words]
    assert recommend.main([*again, *wide]) == 0
    assert "0 of" in capsys.readouterr().out
    assert accel.load_recipe(tmp_path / "again").recipe == loaded.recipe


def test_words_files_and_values_are_told_together(tmp_path, monkeypatch):
    """What a person who types it for the first time gets wrong is one list, and nothing is in it twice."""
    monkeypatch.chdir(tmp_path)
    words = ["model=mine", "prompts=absent.txt", "small=other", "budget=5x", "fast"]
    words += ["evaluation.n=3", "evaluation.foo=2", "search.budget=-1", "evaluation.device=cuda:99"]
    with pytest.raises(ConfigError) as error:
        recommend.main(words)
    said = ["absent.txt", "no folder mine", "no folder other", "budget is '5x'", "'fast'"]
    said += ["evaluation.n is 3", "'evaluation.foo'", "search.budget is -1", "evaluation.device=cuda:99"]
    told = [str(reason) for reason in error.value.reasons]
    assert len(told) == len(said)
    assert [text for text in said if not any(text in reason for reason in told)] == []
    assert not any(tmp_path.iterdir()), "nothing was written"


def test_too_few_prompts_are_no_matter_of_time(tmp_path):
    folder, prompts = hub_tiny.save("sd", tmp_path / "model"), tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    with pytest.raises(ConfigError, match="has 2 prompts, and 60 samples are wanted") as error:
        recommend.main([f"model={folder}", f"prompts={prompts}", "evaluation.device=cpu"])
    assert "budget" not in str(error.value)


def test_a_plan_for_another_machine_says_evaluations_images_and_minutes(tmp_path, capsys, monkeypatch):
    """Stable Diffusion's pipeline with its own defaults, at the rate of a GPU that is not here."""
    monkeypatch.setattr(study_of, "seconds_per_row", lambda runner: pytest.fail("it is given"))
    folder, prompts = hub_tiny.save("sd", tmp_path / "model"), tmp_path / "prompts.txt"
    prompts.write_text("".join(f"picture {i}\n" for i in range(300)))
    words = [f"model={folder}", f"prompts={prompts}", f"results={tmp_path / 'out'}", "evaluation.device=cpu"]
    assert recommend.main([*words, "plan=true", "ms=10.8", "search.budget=900"]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().splitlines()[-2] == "In place of what is said above, by the request: search.budget=900."
    assert "Today: pndm-50 + cfg7.5" in said or "Today: ddim-50 + cfg7.5" in said
    assert "image: 10.8 ms (as given)." in said
    searched, validated = (
        int(re.search(rf"{what} ([\d,]+) evaluations", said)[1].replace(",", "")) for what in ("Search:", "about")
    )
    rounds, batch = (int(number) for number in re.search(r"to (\d+) rounds at batch (\d+)", said).groups())
    timed = (rounds + 1) * 2 * batch * 100 * (2 + 12 * 0.4)
    assert 0.8 < (searched + validated + timed) * 10.8e-3 / 3600 <= 1
    assert int(re.search(r"At most about (\d+) minutes", said)[1]) <= 60
    assert not (tmp_path / "out").exists()


def test_the_commands_that_follow_can_be_typed():
    assert recommend.following(Path("fast")).startswith(
        "accel verify fast; accel generate fast; accel export fast --to"
    )
    assert recommend.following(Path("my recipes/fast")).startswith("accel verify 'my recipes/fast'; ")


def test_nothing_that_holds_is_an_exit_code_of_its_own(words, tmp_path, capsys):
    narrow = [f"evaluation.margins.{name}=0.0" for name in ("fid", "fid_least", "recall", "accuracy")]
    code = recommend.main([*words, *narrow])
    study = Comparison.load(Results(tmp_path / "out"), "recommend_digits")
    cheaper = [row for row in study.done if row.role == "cell" and study.macs_ratio(row) < 1]
    held = [row for row in cheaper if holds(study, row)]
    assert (code == 3) == (not held)
    assert (tmp_path / "fast").exists() == bool(held)


def test_a_cast_that_saves_time_is_searched_recommended_and_saved(words, tmp_path, capsys, monkeypatch):
    """Its MACs are those of the recipe without it; what it saves was measured, and is kept for the same request."""
    asked = []
    rates = Rates({"precision=bf16": 0.5}, {"precision=fp16": "it takes 7 of the time."})
    monkeypatch.setattr(study_of, "measured", lambda *given: asked.append(given[1]) or rates)
    monkeypatch.setattr(axes, "unfit", lambda choice, *given: None if choice.endswith(("bf16", "fp16")) else "no.")
    few = ("search.axes.precision", "search.axes.stitch", "search.axes.steps")
    own = [word for word in words if not word.startswith(few)]
    own += ['search.axes.stitch=["stitch=none"]', 'search.axes.steps=["sampler.steps=2"]', "search.halving.doublings=0"]
    own += [f"evaluation.margins.{name}=1000.0" for name in ("fid", "recall", "accuracy")]
    assert recommend.main(own) == 0
    said = capsys.readouterr().out
    assert asked == [["precision=bf16", "precision=fp16"]]
    assert "precision=bf16 0.5. The search counts MACs by it." in said
    assert "not precision=fp16: it takes 7 of the time." in said
    assert ", each in 0.5 of the time; holds in" in said
    results = Results(tmp_path / "out")
    found = results.load("recipe_search", "recommend_digits")
    search = results.load("search", found["search"])
    assert search["rates"] == {"none": 1.0, "bf16": 0.5}
    tried = {h["candidate"]: h for h in search["history"]}
    assert {name.endswith("bf16") for name in tried} == {True, False}
    front = {entry["label"]: entry["cost"] for entry in found["front"]}
    row = next(r for r in Comparison.load(results, "recommend_digits").done if r.label.endswith("bf16"))
    assert front[row.label] == pytest.approx(0.5 * row.cost("macs"))
    assert "bf16 0.5, none 1." in (tmp_path / "out/tables/recommend_digits_front.md").read_text()

    loaded = accel.load_recipe(tmp_path / "fast")
    assert loaded.recipe.precision == Cast("bfloat16")
    assert loaded.recipe.label in said
    assert export.main([str(tmp_path / "fast"), "--to", "code", "--output", str(tmp_path / "generate.py")]) == 0
    assert verify.main([str(tmp_path / "fast"), "--no-quality", "--no-speed"]) == 0

    # The same request again measures nothing.
    elsewhere = [word if not word.startswith("to=") else f"to={tmp_path / 'again'}" for word in own]
    again = recommend._study(read(elsewhere), print)
    assert len(asked) == 1
    assert again.cells[0].search.rates == (1.0, 0.5)


def test_precisions_of_ones_own_are_not_measured(words, monkeypatch, capsys):
    monkeypatch.setattr(study_of, "measured", lambda *given: pytest.fail("measured"))
    monkeypatch.setattr(axes, "unfit", lambda choice, *given: None)
    assert recommend.main([*words, "plan=true"]) == 0
    assert "counts MACs by it" not in capsys.readouterr().out


def test_the_plan_writes_nothing(words, tmp_path, capsys):
    assert recommend.main([*words, "plan=true"]) == 0
    said = capsys.readouterr().out
    assert "Nothing was run or written." in said
    assert "sampler=dpmpp_2m" in said
    assert not (tmp_path / "out").exists()


def test_a_plan_without_any_margin_says_so(tmp_path, monkeypatch, capsys):
    """Nothing judges the mixture's samples but the distance, and its margin can be taken away."""
    words = [
        "suite=mixture",
        "steps=6",
        "budget=10h",
        f"results={tmp_path / 'out'}",
        f"to={tmp_path / 'r'}",
        "plan=true",
    ]
    assert recommend.main([*words, "evaluation.device=cpu"]) == 0
    assert "Margins: distance 0.04." in capsys.readouterr().out
    assert recommend.main([*words, "evaluation.device=cpu", "evaluation.margins.distance=null"]) == 0
    assert "Margins: none." in capsys.readouterr().out


def test_help_and_a_refusal_at_the_door(monkeypatch, capsys):
    assert recommend.main(["--help"]) == 0
    assert "budget=60m" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["accel", "recommend", "prompts=absent.txt"])
    with pytest.raises(SystemExit) as stop:
        program()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "no model is given" in error
    assert "no such file" in error


def test_on_another_device(words, tmp_path, capsys):
    """The pretended one: nothing is left on the CPU, and the file it writes verifies there."""
    there = [word if not word.startswith("evaluation.device") else f"evaluation.device={DEVICE}" for word in words]
    few = [
        "search.budget=300",
        'search.axes.stitch=["stitch=none"]',
        'search.axes.steps=["sampler.steps=2","sampler.steps=1"]',
    ]
    few += ["suite.converged_steps=2", "steps=3"]
    few += [f"evaluation.margins.{name}=1000.0" for name in ("fid", "recall", "accuracy")]
    kept = [word for word in there if not word.startswith(("search.budget", "search.axes.st", "steps="))]
    kept.remove("suite.converged_steps=4")
    with Elsewhere():
        assert recommend.main([*kept, *few]) == 0
        assert verify.main([str(tmp_path / "fast"), "--no-quality", "--no-speed", "--device", DEVICE]) == 0
    assert "verified" in capsys.readouterr().out
