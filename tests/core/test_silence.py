"""What libraries say below an error is not said."""

from __future__ import annotations

import logging
import warnings

import pytest

from accel.core.silence import silence_libraries


@pytest.mark.parametrize("name", ["diffusers", "transformers"])
def test_a_library_that_is_loaded_already_is_quiet_too(name, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")  # what is set stays as it was
    logger = logging.getLogger(name)
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            silence_libraries()
        assert not logger.isEnabledFor(logging.WARNING)
    finally:
        logger.setLevel(before)
