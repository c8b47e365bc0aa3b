"""What tests of all pipeline classes share."""

from __future__ import annotations

import inspect

import pytest


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
