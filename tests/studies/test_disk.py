"""A disk that is full or read-only in the middle: one error that says what mends it, nothing partial, and resume."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from accel import __main__ as cli
from accel.core.seeds import generators
from accel.errors import StorageError
from accel.files import load_tensors, whole
from accel.locks import locked
from accel.samplers.ode import initial_latents
from accel.search.evaluations import Memory
from accel.suites.mixture import MixtureSuite

QUICK = ["suite=mixture", "evaluation.n=64", "evaluation.distance_n=64", "evaluation.shard=16",
         "evaluation.timing=false", "wandb=disabled", "study=s", "threads=1", "sampler=euler", "sampler.steps=3",
         'baseline=["sampler=ddim","sampler.steps=2"]']  # fmt: skip
REMEDIES = {errno.ENOSPC: "Free some space and run the same command again", errno.EROFS: "results=<folder>"}


@pytest.fixture
def accel(monkeypatch, capsys):
    """accel(root) -> (exit code, stderr) of a study on the mixture, whose solution takes no time."""

    def solve(self, pipe, recipe, seed, a, b):
        return initial_latents(pipe, {"batch_size": b - a, "generator": generators(seed, a, b)}).float() / 100

    monkeypatch.setattr(MixtureSuite, "solve", solve)
    monkeypatch.setattr("accel.studies.study.write_figures", lambda results, name: [])  # a second each

    def accel(root: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["accel", *QUICK, f"results={root}"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    return accel


def contents(root: Path) -> dict[str, bytes]:
    """Every file but locks; of records what was measured."""
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != ".lock"):
        data = path.read_bytes()
        if "records" in path.parts and path.suffix == ".json":
            content = json.loads(data)
            data = json.dumps([content["id"], content["values"]]).encode()
        found[path.relative_to(root).as_posix()] = data
    return found


def test_a_disk_that_fails_in_the_middle(accel, tmp_path, monkeypatch):
    """At every twelfth write, shards, records, manifest and tables among them; full and read-only in turns."""
    assert accel(tmp_path / "whole")[0] == 0
    wanted = contents(tmp_path / "whole")
    numbers = itertools.cycle(REMEDIES)
    replace, root, writes = os.replace, tmp_path / "full", 0
    for room in (0, *[11] * 20):
        left, number = room, next(numbers)

        def full(source, target, number=number):
            nonlocal left, writes
            if left == 0:
                raise OSError(number, os.strerror(number))
            left, writes = left - 1, writes + 1
            replace(source, target)

        monkeypatch.setattr(os, "replace", full)
        code, said = accel(root)
        monkeypatch.setattr(os, "replace", replace)
        if code == 0:
            break
        assert code == 2
        assert said.startswith("error: cannot write ")
        assert len(said.splitlines()) == 1, said
        assert REMEDIES[number] in said
        there = contents(root)
        assert set(there) <= set(wanted), "nothing partial and no temporary file"
    assert code == 0
    assert contents(root) == wanted
    assert writes > 20


def test_a_real_disk_that_is_full(accel, tmp_path):
    """On a tmpfs of 80 kB, where the system lets us mount one."""
    import subprocess

    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", root]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        code, said = accel(root / "results")
        assert code == 2
        assert said.startswith("error: cannot write ")
        assert "No space left on device. Free some space" in said
        assert len(said.splitlines()) == 1
        shards = list(root.rglob("*.safetensors"))
        assert shards
        assert all(load_tensors(path) is not None for path in shards), "nothing partial"
        subprocess.run(["mount", "-o", "remount,size=8m", root], check=True)
        before = {path: path.stat().st_mtime_ns for path in shards}
        assert accel(root / "results")[0] == 0
        assert {path: path.stat().st_mtime_ns for path in shards} == before, "what was finished is kept"
    finally:
        subprocess.run(["umount", root], check=True)


def test_scores_and_locks_say_it_too(tmp_path, monkeypatch):
    memory = Memory(tmp_path / "scores.jsonl")
    memory.add("a", {"value": 1})

    def fails(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        with pytest.raises(StorageError, match=r"lock: No space left on device\. Free"), locked(tmp_path / "lock"):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails)
        with pytest.raises(StorageError, match=r"scores\.jsonl: No space left"):
            memory.add("b", {"value": 2})
    assert Memory(tmp_path / "scores.jsonl").known == {"a": {"value": 1}}


def test_what_safetensors_cannot_write_is_told_in_the_same_words(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(StorageError, match="Is a directory"), whole(tmp_path / "x" / "a.safetensors"):
        save_file({"x": torch.ones(1)}, tmp_path)
    assert list((tmp_path / "x").iterdir()) == []
