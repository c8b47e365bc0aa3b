"""A rank: one of many workers on a shared folder, on whatever machine. Nobody hands out anything; claims do that.

Each rank knows all cells of the study. It makes those that nobody has begun, then helps with the shards of those that
others have, then waits for them, and takes over what a dead one has left. So all end when all scores are there. As the
workers of a pool (accel.studies.worker) they time nothing and write no row: tables are the command's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from accel.core.devices import settle
from accel.core.silence import silence_libraries
from accel.errors import StorageError, told
from accel.studies.ahead import Ahead
from accel.studies.runner import Runner
from accel.studies.status import BROKEN as GONE
from accel.studies.status import DONE, EVERY, MANY, STOPPED, Status, fail, failures
from accel.studies.status import FAILED as SOME
from accel.studies.worker import BROKEN, BUSY, FAILED, Task, Work, outcome


@dataclass(frozen=True)
class Share:
    """What a rank needs to know: the study, its work, and which of `count` ranks of a session it is."""

    study: Any
    work: Work
    session: str
    place: int
    count: int

    @property
    def status(self) -> Status:
        status = Status(str(self.work.results.root), self.session, self.place, self.study.name)
        status.every = max(EVERY, self.count / MANY)
        return status


def rank(share: Share) -> str:
    """Do a rank's share; why it cannot go on (its disk is full), or "" once no scores are missing that can be made."""
    torch.set_num_threads(share.work.threads)
    settle(share.work.evaluation.device)
    silence_libraries()
    status = share.status
    try:
        broken = Rank(share, status).run()
    except (KeyboardInterrupt, SystemExit):
        status.end(STOPPED)
        raise
    except BaseException as error:
        status.end(GONE, told(error))
        raise
    status.end(GONE if broken else SOME if status.failed else DONE, broken)
    return broken


class Rank:
    """The work of a rank, told to its status."""

    def __init__(self, share: Share, status: Status) -> None:
        self.share, self.status, self.failed = share, status, status.failed
        study, work = share.study, share.work
        told: dict[str, Callable[..., None]] = {
            "say": status.say,
            "on_samples": status.on_samples,
            "on_search": lambda done, total: status.write(),
            "on_converged": lambda done, total: status.write(),
        }
        self.runner = Runner(work.suite, work.evaluation, work.results, **told)
        self.twin = Runner(work.suite, work.evaluation.elsewhere, work.results, **told) if study.aa else self.runner
        self.ahead = Ahead(self.runner, self.twin, study.controls, self.failed)

    def run(self) -> str:
        """Work until all scores are there or cannot be made; why that was not to be, or ""."""
        try:
            self._run()
        except StorageError as error:
            return str(error)
        return ""

    def _run(self) -> None:
        tasks = {task.key: task for task in self.ahead.missing(self.share.study.jobs(self.runner))}
        first = self.share.place * len(tasks) // self.share.count  # so that ranks begin at different cells
        order = [*tasks][first:] + [*tasks][:first]
        tasks = {key: tasks[key] for key in order}
        helped: set[str] = set()
        while tasks:
            self._hear()
            if ended := [task for task in tasks.values() if self._done(task, len(tasks))]:
                for task in ended:
                    del tasks[task.key]
                    tasks |= {new.key: new for new in self.ahead.follow(task)}
                continue
            for task in [task for key, task in tasks.items() if key not in helped]:
                helped.add(task.key)
                self._do(task._replace(helps=True), len(tasks))
            # All are others': wait for the first, whose owner ends it or dies.
            task = next(iter(tasks.values()))
            self._done(task._replace(job=replace(task.job, deferred=True)), len(tasks))

    def _done(self, task: Task, left: int) -> bool:
        """Whether the scores of a cell are there now, or known to be none; False while another process has it."""
        if task.key in self.failed:
            return True
        how, text = self._do(task, left)
        if how == FAILED:
            self.failed[task.key] = text
            fail(self.share.work.results.root, self.share.session, task.key, text)
        elif how != BUSY and task.key not in self.status.ended:
            self.status.ended.append(task.key)
        self.status.write(now=how != BUSY)
        return how != BUSY

    def _do(self, task: Task, left: int) -> tuple[str, str]:
        known = left + len(self.status.ended) + len(self.failed)
        self.status.begin(task.job.recipe.label, task.key, self.share.work.evaluation.samples, known)
        how, text = outcome(lambda again: self.twin if again else self.runner, task)
        if how == BROKEN:
            raise StorageError(text)
        return how, text

    def _hear(self) -> None:
        """What failed with another rank of this session fails here, too; it is not tried again."""
        self.failed |= failures(self.share.work.results.root, self.share.session)
