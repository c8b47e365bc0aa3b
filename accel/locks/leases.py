"""Locks by small files with a lease, for folders that machines share and where flock does not hold.

A *claim* is a file at the lock's path that says whose it is. It is written under a name of its own and linked to the
path, which fails if there is one. Its owner touches it six times a lease, from a thread. It is *stale*, and may be
taken over, when

* its owner was a process of this machine that is gone; or
* it has not been touched for a lease by the folder's own clock, that is, by the time that the folder gives to a file
  touched now, nor while it was watched for half a lease; or
* it has not been touched while it was watched for a whole lease, whatever clocks say.

No clock of a machine is read; compared are time stamps of one folder, and seconds that passed here. So a clock that is
an hour off does no harm. Who takes a claim over, or gives up its own, makes its *marker* first, a file named after that
very claim, which fails for all but one; looks again whether it is still there and untouched; and renames its own claim
onto it. So a claim is taken over once, however many wait. What is asked of the folder: that a new file (or a link) and
a rename are one step each, and seen by whoever looks afterwards.

A process that was stopped for longer than a lease has lost its claim without knowing. What it makes then is made twice:
the same content in the same file, whole.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from accel.files import writing

BEATS = 6  # a lease
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class Seen(NamedTuple):
    """A claim as it was read: a random word of its own, its process, and when it was touched (ns, by the folder)."""

    token: str
    process: tuple[str, int, int]
    touched: int


@contextmanager
def leased(path: Path, wait: bool, shared: bool, seconds: float) -> Iterator[bool]:
    """`accel.locks.locked` by claims that hold for so many seconds without a touch."""
    if not wait and not shared and _busy(path, seconds):  # nothing is written to see that
        yield False
        return
    with writing(path):
        claim = Claim(path, shared, seconds)
    try:
        with writing(path):
            held = claim.taken(wait)
        yield held
    finally:
        claim.release()


class Claim:
    """A claim of this process on `path`: a file under a name of its own until it is taken."""

    def __init__(self, path: Path, shared: bool, seconds: float) -> None:
        self.path, self.shared, self.seconds = path, shared, seconds
        self.token, self.held = secrets.token_hex(8), False
        self.own, self.shown = self._beside("new", self.token), self._beside("shared", self.token)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(self.own, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        os.write(self.handle, _said(self.token))
        _heart.add(self)

    def taken(self, wait: bool) -> bool:
        """Take the lock, waiting for it if it may; whether it is held."""
        attempt, pause = self._share if self.shared else self._take, min(0.02, self.seconds / 10)
        while not attempt():
            if not wait:
                return False
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(1.5 * pause, 1.0, self.seconds / 10)
        return True

    def touch(self) -> None:
        """Say that the claim lives."""
        try:
            os.utime(self.handle)
        except OSError:  # folders of object stores: written anew
            with suppress(OSError):
                os.pwrite(self.handle, _said(self.token), 0)
                os.fsync(self.handle)

    def release(self) -> None:
        """Give up the claim, held or not; what somebody else has taken over is left alone."""
        _heart.drop(self)
        try:
            if self.held and not self.shared:
                self._give_up()
        finally:
            for path in (self.own, self.shown):
                with suppress(OSError):
                    path.unlink()
            os.close(self.handle)

    # exclusive and shared ----------------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Nobody shares and nobody else has it. Who waits for sharers has the claim already: no more of them come."""
        if not self.held:
            seen = _read(self.path)
            self.held = placed(self.own, self.path) if seen is None else self._inherit(seen)
        if not self.held:
            return False
        if self.own.exists():
            self._is_at(self.path)
        return not any(self._alive(other) for other in self.path.parent.glob(self._beside("shared", "*").name))

    def _share(self) -> bool:
        """Show up, then look for an exclusive claim, whose owner does it the other way round: one sees the other."""
        os.rename(self.own, self.shown)
        self.held = not self._alive(self.path)
        if not self.held:
            os.rename(self.shown, self.own)
        return self.held

    def _inherit(self, seen: Seen) -> bool:
        """Put this claim into the place of that one, if it is stale; whether that was done."""
        if not self._stale(self.path, seen):
            return False
        with self._marked(seen.token) as marked:
            if inherited := marked and _read(self.path) == seen:
                os.rename(self.own, self.path)
        return inherited

    def _alive(self, path: Path) -> bool:
        """Whether there is a claim at `path` that counts; a stale one is removed."""
        seen = _read(path)
        if seen is None or not self._stale(path, seen):
            return seen is not None
        with self._marked(seen.token) as marked:
            if removed := marked and _read(path) == seen:
                path.unlink(missing_ok=True)
        return not removed

    def _give_up(self) -> None:
        try:
            for _ in range(20):
                with self._marked(self.token) as marked:
                    if marked:
                        self._remove()
                        return
                time.sleep(0.05)  # somebody looks whether it is stale
        except OSError:  # no marker can be made: the disk is full
            with suppress(OSError):
                self._remove()

    def _remove(self) -> None:
        seen = _read(self.path)
        if seen and seen.token == self.token:
            self.path.unlink(missing_ok=True)

    # whose is it, and is it alive --------------------------------------------------------------------------------

    def _stale(self, path: Path, seen: Seen) -> bool:
        """Whether a claim may be taken over; what is not known yet is found out by asking again."""
        if _gone(seen.process):
            return True
        watched = _watch(path, seen)
        if watched <= self.seconds / 2:
            return False
        self.touch()
        age = (os.fstat(self.handle).st_mtime_ns - seen.touched) / 1e9
        return age > self.seconds or watched > self.seconds

    @contextmanager
    def _marked(self, token: str) -> Iterator[bool]:
        """While it lasts nobody else removes or replaces the claim `token`; yields whether that is so. A marker whose
        maker died is passed over by the next one of that claim."""
        markers = [self._beside("of", token, "0")]
        while True:
            try:
                handle = os.open(markers[-1], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                break
            except FileExistsError:
                other = _read(markers[-1])
                if other is None or not self._stale(markers[-1], other):
                    yield False
                    return
                markers.append(self._beside("of", token, str(len(markers))))
        try:
            os.write(handle, _said(self.token))
            os.close(handle)
            yield True
        finally:
            for marker in reversed(markers):
                marker.unlink(missing_ok=True)

    def _is_at(self, path: Path) -> None:
        """The claim's file is now the one at `path`: where links are unknown that is another than it was."""
        handle = os.open(path, os.O_RDWR)
        with _heart.still:
            os.close(self.handle)
            self.handle = handle
        self.own.unlink()

    def _beside(self, *words: str) -> Path:
        return self.path.with_name(".".join((self.path.name.removesuffix(".lock"), *words, "lock")))


def placed(own: Path, path: Path) -> bool:
    """Put what the file `own` holds at `path` if nothing is there, in one step; whether that was done."""
    try:
        os.link(own, path)
        return True
    except FileExistsError:
        return os.stat(own).st_nlink > 1  # the answer of a first attempt was lost on the way
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    os.write(handle, own.read_bytes())
    os.close(handle)
    return True


def owner(path: Path) -> str:
    """Who has the claim at `path`, as text; "" where there is none."""
    try:
        found = json.loads(path.read_bytes())
        return f"process {found['pid']} of {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _read(path: Path) -> Seen | None:
    """The claim at `path`; one that is not written yet has no token."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    try:
        text, touched = os.read(handle, 4096), os.fstat(handle).st_mtime_ns
    finally:
        os.close(handle)
    try:
        found = json.loads(text)
        return Seen(found["token"], (found["machine"], found["pid"], found["started"]), touched)
    except (ValueError, KeyError, TypeError):
        return Seen("", ("", 0, 0), touched)


def _watch(path: Path, seen: Seen) -> float:
    """For how many seconds of this process a claim has been seen untouched."""
    before, since = _watched.get(path, (None, 0.0))
    if before != seen:
        _watched[path] = seen, time.monotonic()
        return 0.0
    return time.monotonic() - since


def _busy(path: Path, seconds: float) -> bool:
    """Whether a claim is there that cannot be stale yet."""
    with suppress(OSError):
        seen = _read(path)
        return seen is not None and not _gone(seen.process) and _watch(path, seen) <= seconds / 2
    return False


def _said(token: str) -> bytes:
    pid = os.getpid()
    owner = {"token": token, "host": platform.node(), "pid": pid, "machine": _machine(), "started": _started(pid)}
    return json.dumps(owner).encode()


def _gone(process: tuple[str, int, int]) -> bool:
    """Whether a process was one of this machine that is no more; of others nothing is known."""
    machine, pid, started = process
    return bool(machine) and machine == _machine() and _started(pid) != started


@cache
def _machine() -> str:
    """This machine since it was started, and whose process numbers are meant (containers have their own); "" where the
    system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int:
    """When a process began, in ticks of this machine; 0 where there is none that runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state in "ZX" else int(fields[18])


class _Heart:
    """Touches the claims of this process, from a thread."""

    def __init__(self) -> None:
        self.still = threading.Lock()  # while it is held no claim is touched
        self._claims: set[Claim] = set()
        self._sooner, self._thread, self._pause = threading.Event(), None, 0.0

    def add(self, claim: Claim) -> None:
        with self.still:
            self._claims.add(claim)
            if claim.seconds / BEATS < self._pause:
                self._sooner.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
                self._thread.start()

    def drop(self, claim: Claim) -> None:
        with self.still:
            self._claims.discard(claim)

    def _beat(self) -> None:
        while True:
            with self.still:
                if not self._claims:
                    self._thread = None
                    return
                for claim in self._claims:
                    claim.touch()
                self._pause = min(claim.seconds for claim in self._claims) / BEATS
                self._sooner.clear()
            self._sooner.wait(self._pause)


_heart = _Heart()
_watched: dict[Path, tuple[Seen, float]] = {}
os.register_at_fork(after_in_child=_heart.__init__)
