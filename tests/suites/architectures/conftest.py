"""Folders of configs alone, made of the tiny pipelines."""

from __future__ import annotations

import shutil

import pytest
from hub_modern import MODERN, VIDEOS

from accel.suites.architectures import ArchSuite


@pytest.fixture(scope="session")
def configs(hub_folder, tmp_path_factory):
    """configs(kind) -> a folder of that tiny pipeline's configs, without weights and tokenizers."""
    root = tmp_path_factory.mktemp("configs")

    def folder(kind: str):
        if not (root / kind).exists():
            shutil.copytree(hub_folder(kind), root / kind, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
        return root / kind

    return folder


@pytest.fixture(scope="session")
def arch_suite(configs):
    """arch_suite(kind, **settings) -> the suite of that tiny pipeline's configs at its smallest."""

    def suite(kind: str, **settings):
        small = {"height": 16, "width": 16} if kind == "flux" else {}
        if kind in ("pixart_alpha", "sd3", "flux"):
            small["max_sequence_length"] = 24
        if own := (MODERN | VIDEOS).get(kind):
            side, limit = own.side, own.sequence
            small = {"height": side, "width": side, "max_sequence_length": limit, "frames": own.frames}
        return ArchSuite(**{"arch": str(configs(kind))} | small | settings)

    return suite
