"""Tiny pipelines from disk, made once a session."""

from __future__ import annotations

import pytest
from hub_modern import CONTROLS, EDITS, IMAGES, MODERN, OF_IMAGES, ON_AN_ARC, PACKAGED, VIDEOS
from hub_tiny import PROMPTS, save

from accel.suites.hub import HubSuite
from accel.suites.hub.prompts import Prompts


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    """hub_folder(kind) -> the folder of that tiny pipeline; tests must not change it."""
    root, made = tmp_path_factory.mktemp("hub"), {}

    def folder(kind: str):
        if kind not in made:
            made[kind] = save(kind, root / kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    """Sixty prompts, two of four longer than a text encoder's limit."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("".join(f"{PROMPTS[i % 4]} {i}\n" for i in range(60)))
    return path


@pytest.fixture(scope="session")
def hub_suite(hub_folder, prompt_file):
    """hub_suite(kind, **settings) -> the suite of that tiny pipeline at its smallest."""

    def suite(kind: str, **settings):
        small = {"height": 16, "width": 16} if kind == "flux" else {}
        if kind in ("pixart_alpha", "pixart_sigma", "sd3", "flux"):
            small["max_sequence_length"] = 24
        if own := (MODERN | PACKAGED | IMAGES | EDITS | CONTROLS | VIDEOS | OF_IMAGES | ON_AN_ARC).get(kind):
            side, limit = own.side, own.sequence
            small = {"height": side, "width": side, "max_sequence_length": limit, "frames": own.frames}
        return HubSuite(**{"model": str(hub_folder(kind)), "prompts": Prompts(str(prompt_file))} | small | settings)

    return suite


@pytest.fixture(scope="session")
def hub_pipe(hub_suite):
    """hub_pipe(kind) -> the pipeline; tests must leave it as they found it."""
    made = {}

    def pipe(kind: str):
        if kind not in made:
            made[kind] = hub_suite(kind).pipeline()
        return made[kind]

    return pipe
