"""Processes that tests fork: a spawned one would load torch again."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch


def forked_and_logged(log: Path, root: Path) -> None:
    """To be called first in a forked process: each file that is put into its place below `root` is a line of `log`."""
    forked()
    replace = os.replace

    def logged(source, target):
        replace(source, target)
        with log.open("a") as file:
            file.write(f"{Path(target).relative_to(root)}\n")

    os.replace = logged
    torch.set_num_threads(1)


def forked() -> None:
    """To be called first in a forked process that may be killed, or whose siblings may be: tqdm's lock is one for all
    forks of a process, and who is killed with it would stop the others for ever."""
    import tqdm.auto

    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())
