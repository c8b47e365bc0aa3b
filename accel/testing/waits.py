"""Where the host waits for a CUDA device, counted line by line while something runs.

torch warns of each wait when asked to (`torch.cuda.set_sync_debug_mode`), and the pretended GPU (`Elsewhere`) does the
same. torch calls its own detection incomplete: waits that libraries cause behind its back are not seen.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WAITING = "synchronizing CUDA operation"  # in torch's words
Wait = tuple[
    str, str
]  # kind, "module:line"; a pretended GPU knows the kind (see Elsewhere), of a real one it is `wait`
HELPERS = ("torch", "functools", "contextlib", "warnings")


def line_of_caller(*skipped: str) -> str:
    """module:line of the innermost frame that is neither torch's, nor a helper's, nor of the modules `skipped`."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "?")
        own = module == __name__ or module.startswith(("diffusers.utils.", *skipped))
        if module.partition(".")[0] not in HELPERS and not own:
            return f"{module}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@contextmanager
def counted_waits() -> Iterator[Counter[Wait]]:
    """Within the context a counter fills: how often the host waited, by kind and line. Without CUDA it stays empty."""
    found: Counter[Wait] = Counter()
    if not torch.cuda.is_available():
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f".*{WAITING}")
        warnings.filterwarnings("ignore", message="Synchronization debug mode")  # is a prototype, torch says once
        others = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None) -> None:
            if WAITING in str(message):
                kind = str(message).partition(f"{WAITING}: ")[2] or "wait"
                found[kind, line_of_caller("accel.testing.elsewhere")] += 1
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        try:
            torch.cuda.set_sync_debug_mode("warn")
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
