"""Processes that tests fork: a spawned one would load torch again."""

from __future__ import annotations

import threading


def forked() -> None:
    """To be called first in a forked process that may be killed, or whose siblings may be: tqdm's lock is one for all
    forks of a process, and who is killed with it would stop the others for ever."""
    import tqdm.auto

    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())
