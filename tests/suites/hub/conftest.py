"""What tests of all pipeline classes share."""

from __future__ import annotations

import inspect

import hub_modern
import hub_tiny
import numpy as np
import pytest
import torch
from PIL import Image

from accel.suites.hub.inputs import Inputs


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """HiDream scales every image to the area of 128 x 128 cells; here to that of 4 x 4. HunyuanImage fills every prompt
    up to 1000 tokens, behind a text of its own; here to 32 letters, behind none."""
    import diffusers

    alone = {"tokenizer_max_length": 32, "prompt_template_encode": "{}", "prompt_template_encode_start_idx": 0}
    settings = {diffusers.HiDreamImagePipeline: {"default_sample_size": 4}, diffusers.HunyuanImagePipeline: alone}
    for cls, values in settings.items():
        monkeypatch.setattr(cls, "__init__", _setting(cls.__init__, values))


def _setting(own, values: dict):
    def init(self, *args, **kwargs):
        own(self, *args, **kwargs)
        for name, value in values.items():
            setattr(self, name, value)

    init.__signature__ = inspect.signature(own)
    return init


@pytest.fixture(scope="session")
def pipe_of():
    """pipe_of(kind) -> that tiny pipeline; tests must not change it. Wan's is loaded with accelerate alone."""
    made = {}

    def pipe(kind: str):
        if kind not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[kind] = hub_tiny.builder(kind)()
            made[kind].set_progress_bar_config(disable=True)
            for part in made[kind].components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval().requires_grad_(False)
        return made[kind]

    return pipe


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of sixty images of 20 x 16 pixels."""
    draw, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for i in range(60):
        Image.fromarray(draw.integers(0, 256, (16, 20, 3), np.uint8)).save(root / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def control_folder(tmp_path_factory):
    """control_folder(name) -> the folder of that tiny ControlNet; tests must not change it."""
    root = tmp_path_factory.mktemp("controls")

    def folder(name: str):
        if not (root / name).exists():
            with torch.random.fork_rng():
                torch.manual_seed(1)
                getattr(hub_modern, name)().save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def shown_suite(hub_suite, control_folder, pictures):
    """shown_suite(kind) -> the suite of a tiny pipeline with all that it is shown: `<kind>_controlnet` is one under its
    ControlNet."""

    def suite(kind: str):
        base = kind.removesuffix("_controlnet")
        if base != kind:
            net, union = str(control_folder(hub_modern.CONTROL_NETS[base])), base.endswith("_union")
            inputs = Inputs(control=str(pictures), control_mode=hub_modern.MODE if union else None)
            return hub_suite(base.removesuffix("_union"), controlnet=net, inputs=inputs)
        if kind in hub_modern.CONTROLS:
            return hub_suite(kind, inputs=Inputs(control=str(pictures)))
        shown = kind in hub_modern.EDITS or kind in hub_modern.OF_IMAGES
        return hub_suite(kind, inputs=Inputs(str(pictures))) if shown else hub_suite(kind)

    return suite
