"""Locks of the operating system: freed by it when the process dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accel.errors import StorageError
from accel.files import writing


@contextmanager
def flocked(path: Path, wait: bool, shared: bool, seconds: float = 0.0) -> Iterator[bool]:
    """`accel.locks.locked` by flock; `seconds` means nothing here."""
    import fcntl

    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                with writing(path):
                    fcntl.flock(handle, how)
            except StorageError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                yield False
                return
            if not _is(handle, path):  # deleted meanwhile: what is there now, if anything, is another lock
                continue
            yield True
            return
        finally:
            os.close(handle)


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def excludes(path: Path) -> bool:
    """Whether flock does anything at `path`, a file to be made: some folders of networks refuse it, some say yes to
    everybody. Whether other machines hear of it is not seen from one."""
    import fcntl

    handles: list[int] = []
    try:
        handles += [os.open(path, os.O_CREAT | os.O_RDWR, 0o644) for _ in range(2)]
        try:
            fcntl.flock(handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(handles[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    finally:
        for handle in handles:
            os.close(handle)
        with suppress(OSError):
            os.unlink(path)
