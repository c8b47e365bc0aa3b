"""What tests of all pipeline classes share."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """HiDream scales every image to the area of 128 x 128 cells; here to that of 4 x 4."""
    from diffusers import HiDreamImagePipeline

    own = HiDreamImagePipeline.__init__

    def init(self, *args, **kwargs):
        own(self, *args, **kwargs)
        self.default_sample_size = 4

    init.__signature__ = inspect.signature(own)
    monkeypatch.setattr(HiDreamImagePipeline, "__init__", init)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of sixty images of 20 x 16 pixels."""
    draw, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for i in range(60):
        Image.fromarray(draw.integers(0, 256, (16, 20, 3), np.uint8)).save(root / f"{i:02d}.png")
    return root
