"""How far a command has come: bars on a terminal; in a log file, where bars cannot move, a plain line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import rich.progress
from rich.console import Console

EVERY = 30.0  # seconds between two lines while nothing new begins
SPEED = 3600.0  # seconds by which a bar's time left is estimated: rounds and cells take minutes
LOOK = 1.0  # seconds after which a cell that has begun is worth a line


class Progress(rich.progress.Progress):
    """rich's bars, which vanish at the end; plain lines instead where the console is no terminal.

    Tasks go from the finest to the whole. A line begins with the description of the whole, which says what runs now,
    and gives what each has done in its `unit` (a field; default: its description), the time since the whole began and
    an estimate of the rest. Of the field `there` (how many were done before) the estimate knows that they took no time;
    tasks with the field `beside` go on at the same time; the field `best` ends the line. Where somebody knows better,
    the whole says until when, by this clock (`until`), and what will have ended then (`of`).
    """

    def __init__(
        self, *columns: rich.progress.ProgressColumn, console: Console, clock: Callable[[], float] = time.monotonic,
        every: float = EVERY,
    ) -> None:  # fmt: skip
        plain = not (console.is_interactive or console.is_jupyter)
        super().__init__(
            *columns, console=console, transient=True, disable=plain, get_time=clock, speed_estimate_period=SPEED
        )
        self.every, self._said, self._at = every, None, 0.0
        self._over, self._watcher = threading.Event(), threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        super().start()
        if self.disable:
            self._watcher.start()

    def stop(self) -> None:
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        super().stop()

    def look(self) -> None:
        """Print a line if something new has begun, or nothing was said for `every` seconds."""
        tasks = [task for task in self.tasks if task.total and task.visible]
        if not tasks:
            return
        begun, now = tasks[-1].description, self.get_time()
        if begun != self._said or now - self._at >= self.every:
            self._said, self._at = begun, now
            self.console.print(_line(tasks, now), markup=False, highlight=False, soft_wrap=True)

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            self.look()


def _line(tasks: list[rich.progress.Task], now: float) -> str:
    whole, done = tasks[-1], 0.0
    for task in tasks:
        there, beside = task.fields.get("there", 0), task.fields.get("beside", False)
        own = min(1.0, (task.completed - there + (0.0 if beside else done)) / max(1, task.total - there))
        done = done + own if beside else own
    said = [f"{t.completed:,.0f}/{t.total:,.0f} {t.fields.get('unit', t.description)}" for t in reversed(tasks)]
    said.append(f"{_clock(whole.elapsed)} elapsed")
    if whole.fields.get("until") is not None:
        said.append(f"about {_clock(max(0.0, whole.fields['until'] - now))} left of {whole.fields['of']}")
    elif done > 0:
        said.append(f"about {_clock(whole.elapsed * (1 - done) / done)} left")
    said += [whole.fields["best"]] if whole.fields.get("best") else []
    return f"{whole.description}: {', '.join(said)}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
