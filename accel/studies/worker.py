"""A worker: a process that generates and scores the cells which a pool (accel.studies.pool) hands out to it.

It writes shards, artefacts and records, each under the lock that it has anyway, and tells the command the rest: how far
it is, what is to be said, and how each cell has ended. It times nothing and writes no row. It ends when it is told to,
by SIGTERM as after an interrupt (what is finished is kept), and when the command is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from select import select
from threading import Thread
from types import FrameType
from typing import NamedTuple

import torch

from accel.core.devices import assigned, settle
from accel.core.silence import silence_libraries
from accel.errors import StorageError, told
from accel.records import Results
from accel.studies.evaluation import Evaluation
from accel.studies.manifest import Job
from accel.studies.runner import FAILURES, Runner
from accel.suites.base import Suite

READY = "ready"
# How a task ends: done; another command has the cell; the cell failed; no other cell would fare better.
MADE, BUSY, FAILED, BROKEN = "made", "busy", "failed", "broken"
COUNTED, SHOWN = ("say", "on_samples"), ("on_search", "on_converged")  # listeners of a Runner, by their names
LISTENERS = (*COUNTED, *SHOWN)
_told: list[int] = []  # to end, with which exit code


@dataclass(frozen=True)
class Work:
    """What a worker needs to know of a study: pickled once for each. `threads`: of torch, its share; `devices`: one for
    each worker, in place of all of the evaluation's kind."""

    suite: Suite
    evaluation: Evaluation
    results: Results
    threads: int
    devices: Sequence[str] = ()

    def at(self, place: int) -> Work:
        """The same for the worker at a place, 0, 1, ..., on the device that is its own."""
        device = assigned(place, self.evaluation.device, self.devices)
        return replace(self, evaluation=replace(self.evaluation, device=device))


class Task(NamedTuple):
    """A cell, with the id of its scores. `helps`: another worker has it, and shards that nobody has begun are made."""

    key: str
    job: Job
    helps: bool = False


def serve(link: Connection, work: Work) -> None:
    """Do the tasks that come through `link`, one after the other, until None comes."""
    _end_when_told()
    torch.set_num_threads(work.threads)
    settle(work.evaluation.device)
    silence_libraries()

    @cache
    def runner(again: bool) -> Runner:
        evaluation = work.evaluation.elsewhere if again else work.evaluation
        return Runner(work.suite, evaluation, work.results, **listeners(link))

    tell(link, READY)
    while (task := link.recv()) is not None:
        tell(link, *outcome(runner, task))


def tell(link: Connection, *message: object) -> None:
    """Send a message; where nobody is left who listens, or after being told to end, end."""
    if _told:
        sys.exit(_told[0])
    try:
        link.send(message)
    except OSError:
        sys.exit(1)


def listeners(link: Connection) -> dict[str, Callable[..., None]]:
    """Listeners of a Runner that tell the command. How far other work is can be missed: it is dropped while the command
    does not listen, which may be waiting for an artefact that is made here."""

    def show(*message: object) -> None:
        if select([], [link], [], 0)[1]:
            tell(link, *message)

    return {name: partial(partial(tell, link) if name in COUNTED else show, name) for name in LISTENERS}


def outcome(runner: Callable[[bool], Runner], task: Task) -> tuple[str, str]:
    """Do a task by the runner of its samples; how it ended, and an error's text. What fails in a cell that is another
    worker's fails there, too, and is said there."""
    try:
        own, recipe = runner(task.job.role == "aa"), task.job.recipe
        if task.helps:
            own.help(recipe)
            return MADE, ""
        return (MADE if own.quality(recipe, wait=task.job.deferred) else BUSY), ""
    except StorageError as error:
        return BROKEN, str(error)
    except FAILURES as error:
        return (MADE, "") if task.helps else (FAILED, str(error))
    except Exception as error:  # whatever it is: the command tells it as if it were its own
        if os.environ.get("ACCEL_TRACEBACK"):
            traceback.print_exc()
        return BROKEN, told(error)


def _end_when_told() -> None:
    """SIGTERM unwinds, so that no temporary file stays; it also comes when the command dies without a word. Inside a
    finaliser, where Python would print and forget whatever is raised, it waits for the next message."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        _told.append(128 + number)
        if not _finalising(frame):
            sys.exit(128 + number)

    def watch() -> None:
        wait([parent_process().sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    Thread(target=watch, daemon=True).start()


def _finalising(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != weakref.__file__:
        frame = frame.f_back
    return frame is not None
