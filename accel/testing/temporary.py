"""Folders for checks, removed when the process ends."""

from __future__ import annotations

import tempfile
from pathlib import Path

_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # each is removed when its object goes


def temporary_folder() -> Path:
    """A new empty folder."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="accel_contract_", ignore_cleanup_errors=True))
    return Path(_KEPT[-1].name)
