"""The command line as its user meets it: wrong requests, resume, extension, kills, two processes, plans."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from composed import GROUPS, composed

from accel import __main__ as cli
from accel import config
from accel.cli import build
from accel.errors import ConfigError

QUICK = [
    "evaluation.n=64", "evaluation.distance_n=64", "evaluation.shard=32", "evaluation.timing=false",
    "evaluation.controls=false", "suite.converged_steps=3", "wandb=disabled",
    'baseline=["sampler=ddim","sampler.steps=2"]',
]  # fmt: skip
CELLS = 'cells=[["sampler=euler","sampler.steps=2,3"],["sampler=unipc","sampler.steps=3","cache=deepcache"]]'


@pytest.fixture
def accel(monkeypatch, capsys, tmp_path):
    """accel(*overrides) -> (exit code, everything printed); results go below tmp_path/results."""

    def accel(*overrides: str) -> tuple[int, str]:
        flags = [o for o in overrides if o.startswith("-")]
        rest = [o for o in overrides if not o.startswith("-")]
        monkeypatch.setattr(sys, "argv", ["accel", *flags, *QUICK, f"results={tmp_path}/results", *rest])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    return accel


@pytest.fixture
def light(accel, light_digits, monkeypatch):
    """As `accel`, on suite `digits` with light networks, without figures and with the cost of fewer samples."""
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])
    monkeypatch.setattr("accel.evaluation.cost.VARYING", 3)
    return lambda *overrides: accel(f"+suite.weights={light_digits}", *overrides)


BAD = {
    "unknown sampler": (["sampler=unipcc"], "unknown sampler 'unipcc'. Did you mean unipc"),
    "unknown cache": (["cache=deepcach"], "unknown cache 'deepcach'. Did you mean deepcache"),
    "unknown suite": (["suite=digit"], "unknown suite 'digit'. Did you mean digits"),
    "unknown in a cell": (['cells=[["sampler=eulr"]]'], "unknown sampler 'eulr'. Did you mean euler"),
    "unknown setting": (["sampler.step=5"], "unknown setting 'sampler.step'. Did you mean sampler.steps"),
    "unknown evaluation setting": (["evaluation.seeed=5"], "Did you mean evaluation.seed"),
    "unknown setting in a multirun": (
        ["-m", "sampler.step=5,6"],
        "unknown setting 'sampler.step'. Did you mean sampler.steps",
    ),
    "steps 0": (["sampler.steps=0"], "sampler.steps is 0; allowed: an integer >= 1"),
    "steps negative": (["sampler.steps=-5"], "sampler.steps is -5"),
    "steps beyond the schedule": (["sampler.steps=1001"], "allowed: 1..1000"),
    "steps not a number": (["sampler.steps=ten"], "sampler.steps is 'ten'"),
    "N = 0": (["evaluation.n=0"], "evaluation.n is 0; allowed: an integer >= 60"),
    "interval 0": (["cache=deepcache", "cache.interval=0"], "cache.interval is 0"),
    "branch out of range": (["cache=deepcache", "cache.branch=10"], "allowed: 1..9"),
    "fraction": (
        ["stitch=tstitch", "stitch.fractions=[1.4]"],
        "stitch.fractions is 1.4; allowed: a number in [0.0, 1.0]",
    ),
    "incompatible pair": (["cache=deepcache", "cache.branch=8", "stitch=tstitch"], "'small' has 6 skip connections"),
    "grid of another sampler": (["sampler=ddim", "grid=karras"], "it takes: trailing, linspace, leading"),
    "stitch model": (["stitch=tstitch", "stitch.models=[smal]"], "unknown stitch model 'smal'. Did you mean small"),
    "wandb mode": (["wandb=offlin"], "unknown wandb mode 'offlin'. Did you mean offline"),
    "missing weights": (["+suite.weights=/nowhere"], "no weights at /nowhere. Restore it"),
    "device": (["evaluation.device=cuda"], "evaluation.device=cpu"),
    "no such device": (["evaluation.device=gpu"], "evaluation.device is 'gpu'; allowed: auto, cpu, cuda or"),
    "device null": (["evaluation.device=null"], "evaluation.device is None; allowed: auto, cpu"),
    "numbered cpu": (["evaluation.device=cpu:3"], "evaluation.device is 'cpu:3'; allowed: auto"),
    "n says why": (["evaluation.n=32"], "(20 jackknife groups of three samples, or 6 of a period of ten classes"),
    "not a switch": (["evaluation.timing=nan"], "evaluation.timing is nan; allowed: true or false"),
    "plan": (["plan=[]"], "plan is []; allowed: true or false"),
    "plan and explain": (["plan=true", "explain=true"], "plan=true and explain=true are both given; choose one"),
    "threads": (["threads=10000000"], "threads is 10000000; allowed: an integer in [1, "),
    "study": (["study=[a]"], "study is ['a']; allowed: 1 to 100 of the letters"),
    "results null": (["results=null"], "results is None; allowed: the path of a folder"),
    "reference to nothing": (["sampler.steps=${foo}"], "sampler.steps: Interpolation key 'foo' not found"),
    "environment": (["study=${oc.env:UNSET_BY_ALL}"], "study: \"Environment variable 'UNSET_BY_ALL' not found"),
    "null suite": (["suite=null"], "suite=null names no choice"),
    "null experiment": (["experiment=null"], "experiment=null names no choice"),
    "deleted axis": (["~sampler"], "~sampler would delete sampler"),
    "deleted in a cell": (['cells=[["~cache","sampler=heun"]]'], "choose `none`: cache=none"),
    "deleted setting": (["~sampler.steps"], "steps"),
    "lost quotes": (["cells=[[sampler=ddim]]"], """Type, with all these quotes: 'cells=[["sampler=ddim"]]'"""),
    "lost quotes, multirun": (["-m", "cells=[[sampler=ddim]]"], """'cells=[["sampler=ddim"]]'"""),
    "no cells": (["cells=abc"], "cells is 'abc'; allowed: a list of cells"),
    "no cells, multirun": (["-m", "cells=[5]"], "cells has the cell 5; allowed: overrides in quotes"),
    "a cell of its own study": (
        ['cells=[["sampler=ddim","study=x"]]'],
        "a cell has study=x; allowed in cells: sampler",
    ),
    "baseline": (["baseline=ddim"], "baseline is 'ddim'; allowed: a list of overrides"),
    "steps of the baseline": (['baseline=["sampler.steps=0"]'], "baseline: sampler.steps is 0"),
    "flag": (["--foo"], "unknown flag '--foo'"),
    "a sweep without -m": (["sampler=ddim,heun"], "add -m for one job each"),
    "bits": (["precision=w8a8", "precision.weight_bits=1"], "precision.weight_bits is 1"),
    "batch": (["evaluation.batch=0"], "evaluation.batch is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_requests_get_one_clear_error_and_leave_nothing(case, accel, tmp_path):
    import torch

    if case == "device" and torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the request asks for")
    overrides, said = BAD[case]
    code, printed = accel(*overrides)
    assert code == 2, printed
    assert said in printed
    assert printed.count("error:") == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "results").exists(), "nothing may be written"


def test_all_that_is_wrong_is_said_at_once(accel, tmp_path):
    wrong = {
        "threads=0": "threads is 0; allowed: an integer in [1, ",
        "wandb=on": "unknown wandb mode 'on'. Did you mean online",
        "evaluation.n=30": "evaluation.n is 30; allowed: an integer >= 60 (20 jackknife groups",
        "evaluation.distance_n=16": "evaluation.distance_n is 16; allowed: an integer >= 60",
        "evaluation.batch=0": "evaluation.batch is 0",
        "evaluation.device=gpu": "evaluation.device is 'gpu'",
        'baseline=["sampler.steps=-2"]': "baseline: sampler.steps is -2",
        "sampler.steps=0": "sampler.steps is 0",
        "cache.interval=0": "cache.interval is 0",
    }
    code, printed = accel("cache=deepcache", *wrong)
    assert code == 2
    lines = printed.splitlines()
    assert lines[0] == f"error: {len(wrong)} things to mend before anything runs:"
    for i, (line, said) in enumerate(zip(lines[1:], wrong.values(), strict=True), 1):
        assert line.startswith(f"  {i}. {said}")
    assert not (tmp_path / "results").exists()


def test_what_the_model_cannot_run_is_said_beside_what_is_wrong_anyway(accel):
    """Checks that need the pipeline are asked too; among several cells an incompatible one is a row of the table."""
    pair = ["cache=deepcache", "cache.branch=8", "stitch=tstitch"]
    code, printed = accel(*pair, "evaluation.n=30")
    assert code == 2
    assert "2 things to mend" in printed
    assert "'small' has 6 skip connections" in printed
    cells = 'cells=[["sampler=heun","sampler.steps=1001"],["sampler.steps=0"],["sampler=ddim","grid=karras"]]'
    code, printed = accel(cells, "evaluation.n=30")
    assert "3 things to mend" in printed, printed
    assert "1..1000" in printed
    assert "karras" not in printed
    assert "error: 2 things to mend" in accel("sampler.steps=1001", 'baseline=["sampler.steps=1002"]')[1]


def test_a_damaged_suite_and_a_wrong_recipe_are_one_answer(accel, tmp_path, digits):
    weights = Path(shutil.copytree(digits.weights, tmp_path / "weights"))
    (weights / "small/unet/config.json").unlink()
    code, printed = accel(f"+suite.weights={weights}", "sampler.steps=0")
    assert code == 2
    assert "error: 2 things to mend" in printed
    assert "config.json is missing" in printed


def test_results_folder_that_cannot_be_written(accel, tmp_path):
    (tmp_path / "file").write_text("")
    code, printed = accel(f"results={tmp_path}/file/results")
    assert code == 2
    assert "Choose a writable folder with results=<folder>" in printed


@pytest.mark.parametrize("damage", ["weights", "reference"])
def test_damaged_weights_and_another_reference_fail_before_any_work(damage, accel, tmp_path, digits):
    weights = Path(shutil.copytree(digits.weights, tmp_path / "weights"))
    if damage == "weights":
        victim = weights / "small/unet/diffusion_pytorch_model.safetensors"
        victim.write_bytes(victim.read_bytes()[:-1])
        said = f"weights file {victim} is damaged"
    else:
        manifest = json.loads((weights / "MANIFEST.json").read_text())
        manifest["data:train"] = "0" * 64
        (weights / "MANIFEST.json").write_text(json.dumps(manifest))
        said = "the reference images differ"
    code, printed = accel(f"+suite.weights={weights}")
    assert code == 2
    assert said in printed
    assert "make train SUITE=digits" in printed
    assert not (tmp_path / "results").exists()


def shards(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(root.rglob("shards/*/*.safetensors"))}


def test_run_resume_extend_and_damage(light, tmp_path):
    root = tmp_path / "results"
    code, printed = light(CELLS, "study=s")
    assert code == 0, printed
    rows = json.loads((root / "studies/s.json").read_text())["rows"]
    assert [r["role"] for r in rows] == ["floor", "reference", "baseline", "cell", "cell", "cell"]
    table, first = (root / "tables/s.md").read_text(), shards(root)

    code, printed = light(CELLS, "study=s")
    assert code == 0
    assert "0 of 6 rows computed now" in printed
    assert (root / "tables/s.md").read_text() == table
    assert shards(root) == first

    # A larger N computes only the difference.
    code, printed = light(CELLS, "study=s", "evaluation.n=128")
    assert code == 0
    more = shards(root)
    assert {k: more[k] for k in first} == first
    assert len(more) == 2 * len(first)
    # One more value computes only its cell.
    code, printed = light(CELLS.replace("2,3", "2,3,4"), "study=s", "evaluation.n=128")
    assert "1 of 7 rows computed now" in printed

    # A damaged shard and a damaged record are found by their hashes, reported and computed anew.
    victim = next(p for p in sorted(root.glob("shards/*/*.safetensors")) if "000000-000032" in p.name)
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.write_bytes(data)
    run = victim.parent.name
    for path in root.glob("records/quality/*.json"):
        record = json.loads(path.read_text())
        if record.get("samples") == run and record["n"] == 128:
            path.write_text(path.read_text()[:200])
            damaged = path
    code, printed = light(CELLS, "study=s", "evaluation.n=128")
    assert code == 0
    flat = "".join(printed.split())
    assert "".join(f"shard {victim} is damaged".split()) in flat
    assert flat.count("".join(f"{damaged} is damaged".split())) == 1
    assert json.loads(damaged.read_text())["samples"] == run


def test_refused_cells_are_listed_with_the_reason_and_the_others_run(light, tmp_path):
    cells = 'cells=[["sampler=ddim","sampler.steps=3","grid=karras"],["sampler=euler","sampler.steps=3","grid=karras"]]'
    assert light(cells, "study=s")[0] == 0
    assert "DDIMScheduler has no use_karras_sigmas" in (tmp_path / "results/tables/s.md").read_text()
    rows = json.loads((tmp_path / "results/studies/s.json").read_text())["rows"]
    assert [bool(r["refused"]) for r in rows] == [False, False, False, False, True]


@pytest.mark.usefixtures("few_ranges")
def test_damaged_calibration_is_made_anew(light, tmp_path):
    cells = 'cells=[["sampler=euler","sampler.steps=2","precision=w8a8"]]'
    assert light(cells, "study=s")[0] == 0
    (artefact,) = (tmp_path / "results/artefacts").glob("*.safetensors")
    whole = artefact.read_bytes()
    artefact.write_bytes(whole[: len(whole) // 2])
    code, printed = light(cells, "study=s", "evaluation.n=96")
    assert code == 0
    assert f"artefact{artefact}isdamaged" in "".join(printed.split())
    assert len(artefact.read_bytes()) == len(whole)


@pytest.mark.parametrize(
    ("method", "label", "of"),
    [
        ("cache=deepcache", "", "deepcache3b1"),
        # A shortcut of plain guidance: its control is plain guidance of fewer steps.
        ('guidance=ag","guidance.threshold=0.9', " + cfg2", "ag2(x0>=0.9)"),
    ],
)
def test_equal_cost_controls_are_added(light, tmp_path, method, label, of):
    cells = f'cells=[["sampler=euler","sampler.steps=4","{method}"]]'
    assert light(cells, "study=s", "evaluation.controls=true", "plain.conventional=null")[0] == 0
    study = json.loads((tmp_path / "results/studies/s.json").read_text())
    cell, control = study["rows"][-2:]
    assert (control["role"], control["of"]) == ("control", f"euler-4 + {of}")
    assert control["label"].endswith(label)
    macs = [
        json.loads((tmp_path / f"results/records/quality/{r['quality']}.json").read_text())["cost"]["macs"]
        for r in (cell, control)
    ]
    per_step = macs[1] / int(re.search(r"-(\d+)", control["label"])[1])
    assert abs(macs[0] - macs[1]) <= per_step / 2


def test_timing_is_recorded_against_the_baseline(accel, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "QUICK", [o for o in QUICK if not o.startswith("suite.")])
    asked = ["sampler=euler", "sampler.steps=2", "evaluation.timing=true", "evaluation.repetitions=6",
             "evaluation.most_repetitions=6", "evaluation.timing_batch=[2,1]", "threads=1"]  # fmt: skip
    assert accel("suite=mixture", *asked)[0] == 0
    records = [json.loads(p.read_text()) for p in (tmp_path / "results/records/timing").glob("*.json")]
    by_label = {r["label"]: r for r in records if r["batch"] == 2}
    assert set(by_label) == {"ddim-2", "euler-2"}, "all but the reference"
    assert sorted((r["label"], r["batch"]) for r in records if r["batch"] != 2) == [("ddim-2", 1), ("euler-2", 1)]
    timed = by_label["euler-2"]
    assert timed["baseline"] == by_label["ddim-2"]["quality"]
    assert timed["ms_per_image"]["lo"] <= timed["ms_per_image"]["value"] <= timed["ms_per_image"]["hi"]
    assert timed["speedup"]["value"] > 0
    assert {"device_name", "threads", "batch", "aa", "aa_recipe", "rejected", "stopped"} <= set(timed)
    (table,) = (tmp_path / "results/tables").glob("*.md")
    assert "| speed-up, batch 2 [95 %] | ms/image, batch 1 | speed-up, batch 1 [95 %] |" in table.read_text()


def test_plan_runs_and_writes_nothing(accel, tmp_path):
    code, printed = accel(CELLS, "plan=true")
    assert code == 0
    assert "euler-2" in printed
    assert "0/64" in printed
    assert "Nothing was run or written" in printed
    assert not (tmp_path / "results").exists()


def test_explain_shows_the_steps_and_writes_nothing(light, tmp_path):
    code, printed = light("sampler=ddim", "sampler.steps=6", "cache=deepcache", "cache.interval=2", "explain=true")
    assert code == 0
    assert "base FsFsFs" in printed
    assert "rows 111111" in printed
    assert "ddim-6 + deepcache2b1" in printed
    assert not list((tmp_path / "results").rglob("*.json"))


def test_multirun_collects_its_jobs_in_one_study(light, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = light("--multirun", "sampler=ddim,euler", "sampler.steps=2,3")
    assert code == 0, printed
    labels = [r["label"] for r in json.loads((tmp_path / "results/studies/adhoc_digits.json").read_text())["rows"]]
    assert {"ddim-2", "ddim-3", "euler-2", "euler-3"} <= set(labels)
    assert len(labels) == len(set(labels))


def test_every_choice_composes():
    for group, names in config.groups().items():
        for name in (
            names if group not in (*config.AXES, "experiment") else ()
        ):  # those are in test_contract and studies
            more = ["suite.arch=sd15"] if name == "arch" else []  # which must be said
            node = composed(group, name) if group in GROUPS else config.compose([f"{group}={name}", *more])[group]
            config.instantiate(node)


def test_cells_that_a_table_could_not_tell_apart_are_refused():
    cfg = config.compose(["suite=mixture", "sampler=ddim"])
    cfg.cells = [["sampler=dc_solver", "sampler.search.noises=6,8"]]
    with pytest.raises(ConfigError, match=r"two cells of study .* are both called 'dc_solver-\d+', but their settings"):
        build.build_study(cfg)
    cfg.cells = [["sampler=ddim", "sampler.steps=5,5"]]
    assert len(build.build_study(cfg).cells) == 2  # the same cell twice is no matter


def test_a_stitch_says_which_models_take_part():
    labels = [
        config.choice_of("stitch", "tstitch", *more).label
        for more in ((), ("stitch.models=[unet]",), ("stitch.models=[a,b]", "stitch.fractions=[0.2,0.3]"))
    ]
    assert labels == ["tstitch40%", "tstitch40%(unet)", "tstitch20%+30%(a,b)"]


def test_cells_expand_commas_as_alternatives():
    assert config.expand_cells([["sampler=ddim,heun", "sampler.steps=5,10"], ["stitch.fractions=[0.2,0.3]"]]) == [
        ["sampler=ddim", "sampler.steps=5"],
        ["sampler=ddim", "sampler.steps=10"],
        ["sampler=heun", "sampler.steps=5"],
        ["sampler=heun", "sampler.steps=10"],
        ["stitch.fractions=[0.2,0.3]"],
    ]


def test_recipes_can_be_spelled_out_without_their_experiment():
    said = config.spelled_out(["experiment=guidance_shapes", "sampler=deis_tab", "sampler.steps=7", "cache.interval=2",
                               "cache=deepcache", "suite.converged_steps=9"])  # fmt: skip
    assert {"suite=shapes", "suite.converged_steps=9", "sampler=deis_tab", "sampler.steps=7", "cache=deepcache"} <= {
        *said
    }
    assert not [o for o in said if o.startswith("experiment")]
    whole = config.compose(["experiment=guidance_shapes", *said])
    assert config.recipe_of(config.compose(said)) == config.recipe_of(whole)
