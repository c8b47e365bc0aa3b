"""Processes that share the cells of a study, each with its share of the threads.

The command hands out cells, one a worker, and watches: what a worker tells is shown, one that died is replaced and its
cell begun again, finished shards are kept. A worker without a cell of its own helps with the shards of another's.
Nothing but samples and scores is made by workers: while the command times they wait, so that the machine is quiet.
"""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from accel.errors import AccelError
from accel.studies.bars import Bars
from accel.studies.worker import BROKEN, BUSY, FAILED, LISTENERS, READY, Task, Work, serve

METHOD = "spawn"  # a fork of a process whose threads have worked may hang
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when a library is loaded
AGAIN = 2  # times that a cell whose worker died is begun again
PATIENCE = 10.0  # seconds in which a worker ends that was told to


@dataclass
class _Worker:
    process: BaseProcess
    link: Connection
    ready: bool = False
    task: Task | None = None


class _End(NamedTuple):
    """How a task ended (MADE, BUSY, FAILED, BROKEN), with the text of an error."""

    task: Task
    how: str
    text: str


class Pool:
    """`count` workers of a study, each started when there is something to do for it. A context: at its end they are
    gone, after an exception too.

    `made`: ids of the scores that were made here; `failed`: of those that cannot be made, and why.
    """

    def __init__(self, count: int, work: Work, bars: Bars) -> None:
        self.count, self.work, self.bars = count, work, bars
        self.made: set[str] = set()
        self.failed: dict[str, AccelError] = {}
        self._workers: dict[int, _Worker] = {}
        self._waiting: deque[Task] = deque()
        self._helped: set[tuple[int, str]] = set()  # so that nobody helps twice
        self._deaths: Counter[str] = Counter()
        self._unready = 0  # workers in a row that died before they could do anything
        self._said: set[str] = set()  # several workers find the same to be said

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        started = [worker for worker in self._workers.values() if worker.process.pid is not None]
        for worker in started:
            if not worker.ready:
                worker.process.kill()  # it has nothing to put in order
            elif kind is not None:
                worker.process.terminate()
            else:
                with suppress(OSError):
                    worker.link.send(None)
        for worker in started:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.link.close()
        self._workers.clear()

    def measure(self, tasks: Iterable[Task], follow: Callable[[Task], Iterable[Task]] = lambda task: ()) -> None:
        """Have the scores of all these cells made, and those of the cells that `follow` from one that is done.

        AccelError for what is no cell's failure (the disk is full, workers do not start): the others would not fare
        better.
        """
        known: set[str] = set()

        def add(more: Iterable[Task]) -> None:
            new = {task.key: task for task in more if task.key not in known | self.made | self.failed.keys()}
            known.update(new)
            self._waiting.extend(new.values())
            self.bars.update(self.bars.cells, total=len(known))

        with self.bars.meanwhile(f"{self.count} workers"):
            add(tasks)
            while self._waiting or self._busy():
                self._hand_out()
                for task, how, text in self._ended():
                    if how == BROKEN:
                        raise AccelError(text)
                    if how == BUSY:  # another command computes this cell: come back to it
                        self._waiting.append(task._replace(job=replace(task.job, deferred=True)))
                        continue
                    self.bars.advance(self.bars.cells)
                    if how == FAILED:
                        self.failed[task.key] = AccelError(text)
                    else:
                        self.made.add(task.key)
                        add(follow(task))

    def _hand_out(self) -> None:
        """Give each idle worker a task, while there is one for it."""
        for place in range(self.count):
            worker = self._workers.get(place)
            if (worker and worker.task) or (task := self._next(place)) is None:
                continue
            worker = worker or self._start(place)
            worker.task = task
            self.bars.begin(self.work.evaluation.samples, place, task.job.recipe.label)
            with suppress(OSError):  # it has died, which `_ended` finds
                worker.link.send(task)

    def _busy(self) -> bool:
        """Whether a worker has a task. One that is still starting, to help with cells that are done, is not wanted."""
        if not any(worker.task and not worker.task.helps for worker in self._workers.values()):
            for place in [place for place, worker in self._workers.items() if not worker.ready]:
                self._workers[place].process.kill()
                self._forget(place)
        return any(worker.task for worker in self._workers.values())

    def _forget(self, place: int) -> _Worker:
        worker = self._workers.pop(place)
        worker.process.join()
        worker.link.close()
        self.bars.end(place)
        return worker

    def _next(self, place: int) -> Task | None:
        """The first cell that waits, or one of another worker to help with; None where there is neither."""
        if self._waiting:
            return self._waiting.popleft()
        for task in [worker.task for worker in self._workers.values() if worker.task]:
            if not task.helps and (place, task.key) not in self._helped:
                self._helped.add((place, task.key))
                return task._replace(helps=True)
        return None

    def _start(self, place: int) -> _Worker:
        context = get_context(METHOD)
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.work.at(place)))
        self._workers[place] = _Worker(process, ours)  # before it runs, so that an interrupt finds it here
        resource_tracker.ensure_running()  # by itself it comes with the first process, and unblocks signals
        with _inherited(self.work.threads):
            process.start()
        theirs.close()
        return self._workers[place]

    def _ended(self) -> Iterator[_End]:
        """How tasks have ended, after waiting until some worker tells something or dies."""
        sources = {source: place for place, w in self._workers.items() for source in (w.link, w.process.sentinel)}
        for place in {sources[source] for source in wait(list(sources))}:
            worker = self._workers[place]
            alive = worker.process.is_alive()  # asked first: what it has told until then is read in any case
            for kind, *said in _messages(worker):
                if kind in LISTENERS:
                    self._listen(place, kind, said)
                elif kind == READY:
                    worker.ready, self._unready = True, 0
                else:
                    task, worker.task = worker.task, None
                    self.bars.end(place)
                    if kind == BROKEN or not task.helps:
                        yield _End(task, kind, *said)
            if not alive:
                yield from self._died(place)

    def _listen(self, place: int, kind: str, said: list) -> None:
        if kind != "say" or said[0] not in self._said:
            self._said.update(said if kind == "say" else ())
            self.bars.listeners(place)[kind](*said)

    def _died(self, place: int) -> Iterator[_End]:
        """Its cell waits for another worker, at the front; after AGAIN such deaths it has failed."""
        worker = self._forget(place)
        code = worker.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._unready += not worker.ready
        if self._unready > AGAIN:
            raise AccelError(f"workers do not start: each {how}, and what it said stands above. workers=1 needs none.")
        if (task := worker.task) is None or task.helps:
            return
        self._deaths[task.key] += 1
        times = self._deaths[task.key]
        if times > AGAIN:
            why = f"Often that is memory, which {self.count} workers need {self.count} times: try fewer of them, or a "
            yield _End(task, FAILED, f"its worker {how}, {times} times. {why}smaller evaluation.batch.")
            return
        self._waiting.appendleft(task)
        self.bars.listeners(place)["say"](
            f"{task.job.recipe.label}: its worker {how}; another one goes on, finished shards are kept."
        )


def _messages(worker: _Worker) -> Iterator[tuple]:
    """What a worker has told and nobody has read."""
    while True:
        try:
            if not worker.link.poll():
                return
            message = worker.link.recv()
        except (EOFError, OSError):  # it is about to be gone
            worker.process.join(PATIENCE)
            return
        yield message


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What a process takes over that is started meanwhile: its share of threads, before its torch is loaded, and no
    ear for signals. Those of a terminal go to all processes, but who ends workers is the command."""
    before = {name: os.environ.get(name) for name in THREADS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
