"""How far each worker of a shared folder is: a small file for each, which whoever wants to know reads.

    <results>/shards/.workers/<session>-<place>.json

It says who works (host, process), on which cell, how many of its samples are there, which cells have ended here, and
how the worker ended. It decides nothing; claims do. One that cannot be written is left out: a disk that is full shows
where results are written.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from accel.errors import StorageError
from accel.files import write_atomic

EVERY = 0.5  # seconds between two files of a worker, where nothing new begins
MANY = 100  # workers that together write so often as one a second
SAID = 50  # messages that a file holds
WORKING, DONE, FAILED, BROKEN, STOPPED = "working", "done", "failed", "broken", "stopped"  # failed: some of its cells


@dataclass
class Status:
    """One worker. `samples` of `total` are there of the cell `cell`, whose scores have the id `key`, one of `cells`.
    `ended`: ids of scores that are there; `failed`: of those that cannot be made, and why; `said`: to the user."""

    folder: str
    session: str
    place: int
    study: str
    cell: str = ""
    key: str = ""
    samples: int = 0
    total: int = 0
    cells: int = 0
    ended: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    state: str = WORKING
    error: str = ""
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self._written, self.every = 0.0, EVERY

    @property
    def path(self) -> Path:
        return folder_of(Path(self.folder)) / f"{self.session}-{self.place:04d}.json"

    def read(self) -> Status:
        """What the file says; this one where there is none."""
        return next((said for said, _ in statuses(Path(self.folder), self.session) if said.place == self.place), self)

    def begin(self, cell: str, key: str, total: int, cells: int) -> None:
        """A cell of `total` samples begins; `cells` are known."""
        self.cell, self.key, self.samples, self.total, self.cells = cell, key, 0, total, cells
        self.write(now=True)  # whoever dies in it is known by it

    def on_samples(self, count: int) -> None:
        self.samples += count
        self.write()

    def say(self, message: str) -> None:
        if message not in self.said:
            self.said = [*self.said, message][-SAID:]
            self.write(now=True)

    def end(self, state: str, error: str = "") -> None:
        """The worker ends."""
        self.cell, self.key, self.state, self.error = "", "", state, error
        self.write(now=True)

    def write(self, now: bool = False) -> None:
        """Write the file, unless that was done a moment ago."""
        if now or time.monotonic() - self._written >= self.every:
            self._written = time.monotonic()
            with suppress(StorageError):
                write_atomic(self.path, (json.dumps(asdict(self)) + "\n").encode())


def fail(root: Path, session: str, key: str, why: str) -> None:
    """Tell the workers of a session that the scores `key` cannot be made."""
    with suppress(StorageError):
        write_atomic(folder_of(root) / f"{session}.failed" / key, why.encode())


def forget_failures(root: Path, session: str) -> None:
    """Where a session has a name that an earlier one had: what failed then may be tried again."""
    shutil.rmtree(folder_of(root) / f"{session}.failed", ignore_errors=True)


def failures(root: Path, session: str) -> dict[str, str]:
    """The scores that cannot be made, as workers of a session have told; where there are none, one look."""
    found = {}
    with suppress(OSError):
        for path in (folder_of(root) / f"{session}.failed").iterdir():
            if not path.name.startswith("."):
                found[path.name] = path.read_text()
    return found


def folder_of(root: Path) -> Path:
    """Where the workers of a results folder say how far they are."""
    return root / "shards" / ".workers"


def statuses(root: Path, session: str = "*") -> Iterator[tuple[Status, float]]:
    """All workers of a session, or of all, by their names, and when each wrote its file; damaged ones are left out."""
    known = {own.name for own in fields(Status)}
    for path in sorted(folder_of(root).glob(f"{session}-*.json")):
        with suppress(OSError, ValueError, TypeError, AttributeError):
            said = json.loads(path.read_text())
            yield Status(**{name: value for name, value in said.items() if name in known}), path.stat().st_mtime
