"""Processes that tests fork: a spawned one would load torch again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
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


def started(act: Callable[[], object], out: Path, wrong: Path) -> BaseProcess:
    """A forked process that leads a session of its own and does `act`, as a program would: what it prints is in the
    files `out` and `wrong`, which may be the same, and its exit code is that of the SystemExit that `act` raises."""

    def run() -> None:
        os.setsid()
        forked()
        torch.set_num_threads(1)  # threads that have worked do not survive a fork
        for number, path in ((1, out), (2, wrong)):
            with path.open("a") as file:
                os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        act()

    process = get_context("fork").Process(target=run)
    process.start()
    return process
