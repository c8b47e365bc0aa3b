"""Locks between processes, of one machine or of many on a shared folder.

    with locked(folder / ".lock") as held: ...

How a results folder is locked is agreed on in the folder itself (`accel.locks.kinds`): by the system's flock, or, where
that does not hold between machines, by small files with a lease (`accel.locks.leases`). What lies in no such folder, as
the locks of devices, is locked by flock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel.locks.kinds import KINDS, kind_of


@contextmanager
def locked(path: Path, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold a lock between processes, freed when the process dies; yields whether it is held.

    `shared` locks exclude exclusive ones only, so that many may generate while nobody times. Not to be taken twice by
    one process. The file may be deleted by whoever holds the lock. StorageError where the folder cannot be written.
    """
    kind = kind_of(path)
    with KINDS[kind.name](path, wait, shared, kind.seconds) as held:
        yield held
