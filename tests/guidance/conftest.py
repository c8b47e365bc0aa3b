"""A pipeline of the small digits network, where nothing depends on which network it is."""

from __future__ import annotations

import pytest
from tiny import pixels, run_pixels


@pytest.fixture
def small(pipe, models):
    return pixels(models["small"], pipe.scheduler)


@pytest.fixture
def run_small(small):
    """run_small(guidance_scale, labels, first, steps) -> images (B, 1, 16, 16)."""
    return lambda *args, **kwargs: run_pixels(small, *args, **kwargs)
