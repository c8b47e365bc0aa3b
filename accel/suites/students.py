"""Students that ship with a suite: folders with a contract, each beside its manifest.

<suite>_students/<name>/model_index.json ...   a pipeline as save_pretrained writes it, weights in float16; or
<suite>_students/<name>/config.json ...        the network alone, where the rest of the pipeline is its teacher's
<suite>_students/<name>/student.json           the contract (accel.core.student)
<suite>_students/<name>/MANIFEST.json          sha256 of every file
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from accel.core.denoiser import denoiser_name
from accel.core.student import FILE, Contract, contracted
from accel.suites.base import Student, check_manifest, load_network, load_pipeline, remedy
from accel.suites.shipped import deciding


def folder_of(denoisers: Path) -> Path:
    """Where the students of the networks in a folder are: beside it."""
    return denoisers.parent / f"{denoisers.name}_students"


def students(folder: Path, cls: type, suite: str) -> dict[str, Student]:
    """The students below `folder`, none where there is no such; pipelines, or networks, are of class `cls`.
    IntegrityError for a damaged contract or manifest."""
    return {path.parent.name: _student(path.parent, cls, suite) for path in sorted(folder.glob(f"*/{FILE}"))}


def _student(folder: Path, cls: type, suite: str) -> Student:
    return Student(partial(load, folder, cls, suite), deciding(folder, suite), Contract.load(folder))


def load(folder: Path, cls: type, suite: str) -> nn.Module:
    """The network of the student in `folder`, under its contract, after checking every file."""
    check_manifest(folder, remedy(suite))
    if issubclass(cls, nn.Module):
        return contracted(load_network(cls, folder), Contract.load(folder))
    pipe = load_pipeline(cls, folder)
    return contracted(getattr(pipe, denoiser_name(pipe)), Contract.load(folder))


def bill_of(contract: Contract) -> dict[str, Any]:
    """What a record keeps of a student's training."""
    return {"kind": contract.kind, **contract.bill}
