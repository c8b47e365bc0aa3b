"""Known noise of the libraries: none of it is about what the user asked for."""

from __future__ import annotations

import logging
import warnings


def silence_libraries() -> None:
    """Say nothing of what diffusers logs below an error, nor of what will change in a library some day."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
