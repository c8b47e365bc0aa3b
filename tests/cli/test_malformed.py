"""Whatever is typed and whatever lies in a folder: one `error:` line and exit code 2, before any work; no traceback."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import hub_tiny
import pytest
import torch
from safetensors.torch import load_file, save_file

from accel import __main__ as cli
from accel.config import AXES, groups
from accel.suites.hub import files as hub_files

QUICK = [
    "suite=mixture", "evaluation.n=64", "evaluation.timing=false", "evaluation.controls=false", "wandb=disabled",
    'baseline=["sampler=ddim","sampler.steps=2"]',
]  # fmt: skip


class Accepted(BaseException):
    """Work began."""


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def work(*args, **kwargs):
        raise Accepted

    for name in ("accel.studies.study.Study.ready", "accel.studies.study.Study.plan",
                 "accel.cli.rebuild.write_tables",
                 "accel.studies.study.Study.explain", "accel.search.evaluations.Evaluator.__call__",
                 "accel.search.evaluations.Evaluator.converged"):  # fmt: skip
        monkeypatch.setattr(name, work)
    monkeypatch.setattr("accel.search.study.SearchStudy.ready", lambda self: None)


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """refused(*words) -> the error of the command line, which must be one and ours."""

    def refused(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["accel", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr().err
        assert stop.value.code == 2, said
        lines = said.splitlines()
        assert [line.startswith("error: ") for line in lines] == [True] + [False] * (len(lines) - 1), said
        assert "unexpected" not in said, "an error of a library came through"
        assert "trust_remote_code" not in said
        return said

    monkeypatch.chdir(tmp_path)
    return refused


ODD = ["''", "[]", "[a]", "{a:1}", "nan", "1e400", "0.5"]
VALUES = {
    **{f"evaluation.{name}": [*ODD, "null", "abc", "-1", "true"] for name in ("n", "batch", "seed")},
    "evaluation.device": [*ODD, "null", "gpu", "true", "cpu:3", "meta"],
    **{name: [*ODD, "null", "abc", "-1"] for name in ("plan", "explain", "evaluation.timing")},
    "threads": [*ODD, "abc", "-1", "true", "10000000"],
    "wandb": [*ODD, "null", "abc"],
    "study": ["''", "null", "[]", "[a]", "{a:1}", "true", "../x", "/abs", ".", "..", ".x", "a/b", "a\0b",
              "${oc.env:UNSET_X}",
              "${.x}"],
    "results": ["''", "null", "[]", "[a]", "{a:1}", "true", "a\0b", "1"],
    "title": ["''", "null", "[]", "[a]", "{a:1}", "true"],
    "cells": [*ODD[:6], "abc", "-1", "[[1]]", "[[[a]]]", "{a:1}", "[null]", "[[null]]"],
    "baseline": ["''", "null", "abc", "{a:1}", "-1", "[1]", "[[a]]"],
    "transfer": ["''", "abc", "[a]", "{a:1}", "5", "[[1]]", '[["cache=none"]]'],
    "sampler.steps": [*ODD, "null", "abc", "-1", "true", "1001", "${foo}", "${sampler.steps}", "1,2"],
}  # fmt: skip
GROUPS = ["null", "[a]", "[none,none]", "''", "{a:1}", "nope", "../x", "ddim@x"]
INSIDE = ["suite=digits", "study=x", "results=x", "evaluation.n=99", "cells=[]", "plan=true", "threads=1",
          "wandb=online",
          "hydra.run.dir=x", "+x=1", "~sampler", "sampler=nope", "sampler.steps=x", "sampler", "=", "-m", "baseline=[]",
          "title=x", "sampler.steps=${foo}", "sampler.steps=0", "experiment=demo", "suite.name=x"]  # fmt: skip
WORDS = ["sampler", "=", "==", "a=", "=a", "sampler==ddim", "-x", "--foo", "--cfg=bogus", "--config-name=bogus",
         "--cfg",
         "~", "~x", "++", "+", "@=1", "sampler@x=ddim", "a.b.c=1", "sampler=ddim,euler", "hydra.run.dir=[",
         "hydra=null",
         "hydra/launcher=nope", "hydra.mode=NOPE", "hydra.searchpath=[nope://x]", "\0=1", "--multirun=3", "--help=3",
         "--info=bogus", "--resolve", "--explain"]  # fmt: skip
REQUESTS = [
    *([f"{name}={value}"] for name, values in VALUES.items() for value in values),
    *([f"{group}={value}"] for group in groups() if group != "experiment" for value in GROUPS),
    *([word] for group in groups() for word in (f"~{group}", f"+{group}=nope", f"{group}.nope=1")),
    *([f"cells={json.dumps([[word]])}"] for word in INSIDE),
    *([f"baseline={json.dumps([word])}"] for word in [*INSIDE, "search=timesteps"]),
    *([word] for word in WORDS),
    ["plan=true", "explain=true"],
    *([word] for word in ("optimiser=gits", "optimiser.seed=3", 'cells=[["optimiser=tpe"]]')),
]


@pytest.mark.parametrize("words", REQUESTS, ids=lambda words: repr(" ".join(words))[1:-1])
def test_a_request_that_means_nothing_is_one_error(words, refused):
    refused(*QUICK, *words)


def test_there_are_enough_of_them():
    assert len(REQUESTS) >= 300
    assert set(AXES) < set(groups())


SEARCH = ["search.metric=distance", "sampler=ddim_accel", "sampler.steps=3", "search.halving.first=8",
          "search.halving.doublings=0", "search.rescore_n=8", "search.budget=700", "search.finalists=1"]  # fmt: skip
SEARCHES = {
    "timesteps": [
        "search.grids=[]", "search.grids=[nope]", "search.grids=5", "search.compare=[nope]", "search.compare=null",
        "search.budget=0", "search.metric=nope", "search.metric=fid", "search.start=nope", "search.workers=0",
        "search.workers=100000000", "search.seed=-1", "search.halving=null", "search.halving.first=1",
        "search.halving.keep=nan", "sampler.steps=1001", "sampler.steps=1000", "sampler=dc_solver",
        "evaluation.seed=2000003", "transfer=5", "transfer=[nope]", 'transfer=[["sampler.steps=0"]]',
        'transfer=[["suite=digits"]]', "optimiser=none", "optimiser.seed=x", 'cells=[["search.budget=0"]]',
    ],
    "recipes": [
        "search.axes=5", "search.axes=[a]", "search.axes.sampler=[]", "search.axes.sampler=null",
        "search.axes.sampler=[5]", "search.axes.sampler=['sampler=nope']", "search.axes.sampler=['suite=digits']",
        "search.axes.sampler=['study=x']", "search.limit=-1", "search.limit=abc", "search.limit=nan", "search.front=0",
        "search.front=abc", "search.cost=nope",
    ],
    "autodiffusion": ["search.first_stage=2", "search.max_skipped=1", "search.mode=nope"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "word"), [(kind, word) for kind, words in SEARCHES.items() for word in words])
def test_a_search_of_nothing_is_one_error(kind, word, refused):
    refused(*QUICK, f"search={kind}", *SEARCH, word)


COMMANDS = ["report", "report nope", "report nope --to page.pdf", "report --foo", "table", "table nope",
            "table x --format docx", "rebuild", "rebuild nope", "rebuild tables --results /nope",
            "rebuild tables --foo", "rebuild tables --format svg", "rebuild figures --format gif", "claims",
            "claims --foo", "claims --ledger /nope", "claims x", "reference",
            "reference x",
            "reference /nope --size 8 --out a.safetensors", "reference . --size x --out a",
            "reference . --size 8 --out a.txt",
            "convert", "convert /nope", "convert . --x", "train --suite nope", "train --part nope", "train --foo",
            "train --device nope", "bench nope", "bench overhead --foo", "bench adherence --n x", "list nope",
            "list a b",
            "help nope", "completion", "completion nope"]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_a_subcommand_refuses_in_the_same_words(words, refused):
    refused(*words.split())


# --- what lies in a model's folder

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
DEEP = "[" * 100_000
JUNK = {"list": "[]", "null": "null", "empty": "", "deep": DEEP, "no text": "\udcff"}


def changed(path: str, **values) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / path).read_text()) | values
        (folder / path).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return change


def written(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_bytes(text.encode(errors="surrogateescape"))


def gone(path: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


def weights(part: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        path = folder / part / f"{WEIGHTS[part]}.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return work


def larger(tensors: dict) -> dict:
    name = min(tensors)
    return tensors | {name: torch.zeros([side + 1 for side in tensors[name].shape])}


def spoiled(value: float) -> Callable[[dict], dict]:
    """One number of one tensor is `value`."""

    def change(tensors: dict) -> dict:
        name = max(tensors)
        tensors[name].view(-1)[-1] = value
        return tensors

    return change


DAMAGES = {
    "not a number": spoiled(math.nan),
    "a tensor too many": lambda tensors: tensors | {"another.weight": torch.zeros(2)},
    "lacks a tensor": lambda tensors: {k: v for k, v in tensors.items() if k != min(tensors)},
    "other names": lambda tensors: {f"other.{k}": v for k, v in tensors.items()},
    "another shape": larger,
    "nothing": lambda tensors: {},
}
CONFIGS = {
    "unet": [{"block_out_channels": value} for value in ("x", None, [8, 0], [])]
    + [{"sample_size": value} for value in (10**7, None, "x", 0, -8, 1.5, [8])]
    + [{"in_channels": 5}, {"cross_attention_dim": 16}, {"down_block_types": ["Evil", "x"]}, {"norm_num_groups": 0}],
    "vae": [{"block_out_channels": None}, {"block_out_channels": ...}, {"latent_channels": 8}, {"scaling_factor": "x"},
            {"scaling_factor": None}, {"scaling_factor": 0}, {"shift_factor": "x"}],
    "text_encoder": [{name: value} for name in ("attn_implementation", "_attn_implementation")
                     for value in ("kernels-community/flash-attn", "flash_attention_2", "evil/code")]
    + [{"text_config": {"attn_implementation": "evil/code"}}, {"hidden_size": "x"}, {"num_attention_heads": 3},
       {"vocab_size": 3}, {"hidden_act": "nope"}],
    "scheduler": [{"beta_start": "x"}, {"beta_end": 2.0}, {"beta_schedule": "nope"}, {"num_train_timesteps": 0},
                  {"num_train_timesteps": "x"}, {"prediction_type": "nope"}, {"trained_betas": []},
                  {"trained_betas": [2.0, 2.0]}, {"steps_offset": "x"}, {"timestep_spacing": "nope"},
                  {"beta_start": -1}],
}  # fmt: skip
MODELS = {
    **{f"{part}: {name}": weights(part, change) for part in WEIGHTS for name, change in DAMAGES.items()},
    **{f"{part}: config {name}": written(f"{part}/config.json", text) for part in WEIGHTS for name,
       text in JUNK.items()},
    **{f"{part}: no config": gone(f"{part}/config.json") for part in WEIGHTS},
    **{f"{part}: gone": gone(part) for part in (*WEIGHTS, "tokenizer", "scheduler")},
    **{f"{part}: damaged": written(f"{part}/{name}.safetensors", "\udcff" * 50) for part, name in WEIGHTS.items()},
    **{f"tokenizer: {name}": written("tokenizer/tokenizer.json", text) for name,
       text in JUNK.items() if name != "list"},
    **{f"{part}: {values}": changed(f"{part}/{'scheduler_' * (part == 'scheduler')}config.json", **values)
       for part, own in CONFIGS.items() for values in own},
    "a flow by the index alone": changed("model_index.json", scheduler=["diffusers",
    "FlowMatchEulerDiscreteScheduler"]),
    "unet: infinite": weights("unet", spoiled(-math.inf)),
    "another scheduler by its config": changed("scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
    "another network by its config": changed("unet/config.json", _class_name="UNet2DModel"),
    "another VAE by its config": changed("vae/config.json", _class_name="AutoencoderTiny"),
    "another text encoder": changed("model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
    "another network": changed("model_index.json", unet=["diffusers", "UNet2DModel"]),
}  # fmt: skip
SAID = {  # a part of the case's name: what its error says; other errors would do for none of these
    "not a number": "of 1 tensors are infinite or no numbers in torch.float32",
    "infinite": "of 1 tensors are infinite or no numbers in torch.float32",
    "too many": "hold 1 tensors that a",
    "by its config": "and the config in",
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return hub_tiny.save("sd", tmp_path_factory.mktemp("malformed") / "sd")


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_what_it_says_is_one_error(case, tiny, tmp_path, refused):
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    MODELS[case](folder)
    hub_files.folder_of.cache_clear()
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {i}" for i in range(64)))
    said = refused("suite=hub", f"suite.model={folder}", "suite.prompts.path=prompts.txt", "sampler.steps=1",
                   "suite.converged_steps=1", "evaluation.device=cpu", "evaluation.n=64",
                   "evaluation.timing=false")  # fmt: skip
    assert all(text in said for part, text in SAID.items() if part in case), said


def test_a_model_that_is_whole_is_accepted(tiny, tmp_path, refused):
    """Else the cases above would prove nothing."""
    hub_files.folder_of.cache_clear()
    (tmp_path / "prompts.txt").write_text("\n".join(f"a {i}" for i in range(64)))
    with pytest.raises(Accepted):
        refused("suite=hub", f"suite.model={tiny}", "suite.prompts.path=prompts.txt", "sampler.steps=1",
                "suite.converged_steps=1", "evaluation.device=cpu", "evaluation.n=64")  # fmt: skip


# --- the last net


def test_what_nobody_foresaw_is_one_error_too(monkeypatch, capsys):
    def fails(words):
        raise RecursionError("maximum\nrecursion depth")

    monkeypatch.setattr("accel.cli.application.split", fails)
    monkeypatch.setattr(sys, "argv", ["accel", "list"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert (
        said == "error: unexpected RecursionError: maximum recursion depth. "
        "ACCEL_TRACEBACK=1 in the environment shows where.\n"
    )
    monkeypatch.setenv("ACCEL_TRACEBACK", "1")
    with pytest.raises(RecursionError):
        cli.main()
