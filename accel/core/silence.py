"""Known noise of the libraries: none of it is about what the user asked for."""

from __future__ import annotations

import logging
import os
import warnings


def silence_libraries() -> None:
    """Say nothing of what diffusers and transformers log below an error, nor of what will change in a library."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    for name in ("diffusers", "transformers"):  # and where that was already
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
