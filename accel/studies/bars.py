"""What a study shows while it runs: a bar for the samples of each cell under way, and one for the cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from accel.results.progress import Progress

OWN = "samples"  # the bar of a cell's own, where one cell at a time is computed
WIDTH = 44


class Bars(Progress):
    """Bars of a study. `places`: how many cells are computed at a time; each place has a bar of its own, which of
    several is called by its cell."""

    def __init__(self, console: Console, places: int = 1) -> None:
        columns = (TextColumn(f"{{task.description:<{WIDTH}}}"), BarColumn(24), MofNCompleteColumn(),
                   TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
        super().__init__(*columns, console=console)
        self.places, self._own, self._begun = places, {}, 0.0

    def __enter__(self) -> Bars:
        super().__enter__()
        several = self.places > 1
        self.samples = [self.add_task(OWN, total=None, beside=several, visible=not several) for _ in range(self.places)]
        return self

    def open(self, description: str, total: int) -> TaskID:
        """Begin the bar of the cells."""
        self.cells = self.add_task(description, total=total, unit="cells", there=0)
        return self.cells

    def begin(self, total: int, place: int = 0, name: str = OWN) -> None:
        """A cell of `total` samples begins at this place."""
        self._own.pop(place, None)
        self.reset(self.samples[place], total=total, description=name[:WIDTH], visible=True)

    def end(self, place: int) -> None:
        """Nothing is under way at this place."""
        self._own.pop(place, None)
        self.update(self.samples[place], description=OWN, visible=False)

    def show(self, place: int, name: str, done: int, total: int) -> None:
        """How far a cell is at this place, as somebody else says; no name: nothing is under way there."""
        task = self._tasks[self.samples[place]]
        if not name:
            self.end(place)
        elif (task.description, task.total) != (name[:WIDTH], total):
            self.begin(total, place, name)
        self.update(self.samples[place], completed=done)

    def aside(self, place: int, what: str, done: int, total: int) -> None:
        """Show on the bar of a place how far other work of its cell is; once it is done, the samples again."""
        task = self._tasks[self.samples[place]]
        own = self._own.setdefault(
            place, {"description": task.description, "completed": task.completed, "total": task.total}
        )
        if done < total:
            name = what if own["description"] == OWN else f"{own['description']}: {what}"
            self.update(self.samples[place], description=name, completed=done, total=total)
        else:
            self.update(self.samples[place], **self._own.pop(place))

    @contextmanager
    def meanwhile(self, description: str) -> Iterator[None]:
        """The bar of the cells counts something else, and afterwards goes on where it was."""
        task = self._tasks[self.cells]
        before = {"description": task.description, "completed": task.completed, "total": task.total, **task.fields}
        self.update(self.cells, description=description, completed=0, there=0)
        yield
        self.update(self.cells, **before)

    @contextmanager
    def timing(self, cells: int) -> Iterator[None]:
        """Meanwhile rounds are timed, `cells` of them together: they are counted in place of samples, and the time left
        is that of these rounds."""
        self.update(self.cells, description="timing", of=f"these {cells} cells" if cells > 1 else "this cell")
        yield
        self.update(self.cells, until=None)
        self.end(0)

    def rounds(self, kept: int, expected: int, least: int, most: int) -> None:
        """So many of about so many rounds are timed; with none of them others begin."""
        now = self.get_time()
        if not kept:
            self._begun = now
            self.reset(self.samples[0], total=expected, description=f"rounds ({least} to {most})", visible=True)
        # The first round comes after one that warms up.
        left = (now - self._begun) / (kept + 1) * (expected - kept)
        self.update(self.samples[0], completed=kept, total=expected)
        self.update(self.cells, until=now + left if kept else None)

    def listeners(self, place: int = 0) -> dict[str, Callable[..., Any]]:
        """What `accel.studies.runner.Runner` tells about the work of a place, by its arguments' names."""
        return {
            "say": partial(self.console.print, markup=False, highlight=False),
            "on_samples": lambda count: self.advance(self.samples[place], count),
            "on_search": partial(self.aside, place, "search"),
            "on_converged": partial(self.aside, place, "of the converged trajectory"),
            "on_round": self.rounds,
        }
