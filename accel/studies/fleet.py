"""Ranks that a launcher starts, watched: one view of all of them, and those that die are started again.

Whatever there is to agree on, ranks agree on by claims (accel.studies.rank). A rank that cannot go on, such as one
whose disk is full, is told and left out: the others do its work.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from accel.errors import AccelError
from accel.studies.bars import Bars
from accel.studies.launchers import Launcher
from accel.studies.pool import AGAIN
from accel.studies.rank import Share, rank
from accel.studies.status import MANY, Status, fail, statuses
from accel.studies.worker import Task, Work

LOOK = 0.3  # seconds between two looks


class Fleet:
    """`count` ranks of a study, started by a launcher when there is something to do. It has the face of a Pool."""

    def __init__(self, launcher: Launcher, count: int, study: Any, work: Work, bars: Bars) -> None:
        self.launcher, self.count, self.study, self.work, self.bars = launcher, count, study, work, bars
        self.made: set[str] = set()
        self.failed: dict[str, AccelError] = {}
        self.session = ""
        self._stack, self._executor = ExitStack(), None
        self._deaths: Counter[str] = Counter()
        self._said: set[str] = set()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def measure(self, tasks: Iterable[Task], follow: Callable[[Task], Iterable[Task]] = lambda task: ()) -> None:
        """Have the scores of these cells made, and of those that follow from them (ranks know by themselves which).
        AccelError where no rank can go on."""
        known, self.session = {task.key for task in tasks}, secrets.token_hex(4)
        if self._executor is None:
            kind = self.work.evaluation.device.partition(":")[0]
            opened = self.launcher.executor(self.count, self.work.results.root, kind)
            self._executor = self._stack.enter_context(opened)
        ranks, broken = {place: self._start(place) for place in range(self.count)}, {}
        with self.bars.meanwhile(f"{self.count} workers"):
            while ranks:
                time.sleep(max(LOOK, self.count / MANY))
                at = self._show(known)
                for place in [place for place, job in ranks.items() if job.done()]:
                    try:
                        if reason := ranks.pop(place).result():
                            broken[place] = reason
                            self._say(f"worker {place} cannot go on, the others do its work: {reason}")
                    except Exception as error:  # whatever a launcher says of a process that died
                        self._died(place, at.get(place), " ".join(str(error).split())[:200].rstrip("."))
                        ranks[place] = self._start(place)
            self._show(known)
        if len(broken) == self.count:
            raise AccelError(broken[0])

    def _start(self, place: int) -> Any:
        work = self.launcher.placed(self.work, place)
        return self._executor.submit(rank, Share(self.study, work, self.session, place, self.count))

    def _died(self, place: int, at: Status | None, how: str) -> None:
        """Another one goes on. After AGAIN deaths in one cell that has failed, which all ranks hear of."""
        key = at.key if at else ""
        self._deaths[key] += 1
        times = self._deaths[key]
        if not key and times > AGAIN:
            raise AccelError(f"workers do not start: {how}. workers=1 without a launcher needs none.")
        if times <= AGAIN:
            where = f" in {at.cell}" if key else ""
            self._say(f"worker {place} died{where}; another one goes on, finished shards are kept.")
            return
        often = "Often that is memory: try a smaller evaluation.batch."
        why = f"its worker died {times} times, the last time: {how}. {often}"
        self.failed[key] = AccelError(why)
        fail(self.work.results.root, self.session, key, why)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.bars.listeners()["say"](text)

    def _show(self, known: set[str]) -> dict[int, Status]:
        """Show how far all ranks are; the state of each, by its place."""
        cells, found = len(known), {}
        for status, _ in statuses(self.work.results.root, self.session):
            found[status.place] = status
            for text in status.said:
                self._say(text)
            self.made |= set(status.ended)
            self.failed |= {key: AccelError(text) for key, text in status.failed.items()}
            cells = max(cells, status.cells)
            if status.place < self.bars.places:
                self.bars.show(status.place, status.cell, status.samples, status.total)
        done = len(self.made) + len(self.failed)
        self.bars.update(self.bars.cells, total=max(cells, done), completed=done)
        return found
