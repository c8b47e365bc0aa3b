"""Locks of both kinds: one holder, freed when it dies; and of leases: stale claims, clocks that are off, full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from accel.errors import ConfigError, IntegrityError, StorageError
from accel.locks import kinds, leases, locked
from accel.locks.kinds import agree, chosen, file_system, kind_of
from accel.locks.leases import leased, owner

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FORK = multiprocessing.get_context("fork")
SECONDS = 0.6


@pytest.fixture(params=["flock", "lease"])
def path(request, tmp_path):
    """The path of a lock in a results folder that is locked in one of the ways."""
    agree(tmp_path, request.param, SECONDS)
    return tmp_path / "shards" / "run" / ".lock"


@pytest.fixture
def started():
    """started(function, *arguments) -> a process that runs it; killed at the end."""
    processes = []

    def start(function, *arguments):
        process = FORK.Process(target=function, args=arguments)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def free(path: Path, **how) -> bool:
    with locked(path, wait=False, **how) as held:
        return held


def hold(path: Path, shared: bool, ready, release) -> None:
    with locked(path, shared=shared) as held:
        ready.put(held)
        release.get()


@pytest.fixture
def holder(path, started):
    """holder(shared=False) -> a process that holds the lock, and what asks it to let go."""

    def start(shared=False):
        ready, release = FORK.SimpleQueue(), FORK.SimpleQueue()
        process = started(hold, path, shared, ready, release)
        assert ready.get() is True
        return process, lambda: release.put(None)

    return start


def test_one_has_it_until_it_lets_go(path, holder):
    assert free(path)
    process, let_go = holder()
    assert not free(path)
    assert not free(path, shared=True)
    let_go()
    process.join(10)
    assert free(path)
    assert free(path, shared=True)
    assert free(path), "a shared one is gone, too"


def test_it_is_freed_when_its_holder_is_killed(path, holder):
    for shared in (False, True):
        process, _ = holder(shared)
        assert not free(path)
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
        assert free(path)


def test_shared_ones_exclude_exclusive_ones_only(path, holder):
    holder(shared=True)
    assert free(path, shared=True)
    assert not free(path)
    assert free(path, shared=True), "who did not get it leaves nothing behind"


def test_who_waits_for_sharers_gets_it(path, holder):
    import threading

    _, let_go = holder(shared=True)
    threading.Timer(0.2, let_go).start()
    start = time.monotonic()
    with locked(path) as held:
        assert held
        assert time.monotonic() - start > 0.1
        assert not free(path, shared=True)


def test_it_is_freed_after_an_exception_and_may_be_deleted_by_its_holder(path):
    with pytest.raises(KeyError), locked(path):  # noqa: PT012
        assert not free(path)
        raise KeyError
    with locked(path):
        path.unlink()
    assert free(path)


def count(path: Path, tally: Path, times: int) -> None:
    for _ in range(times):
        with locked(path):
            value = int(tally.read_text())
            time.sleep(0.0005)
            tally.write_text(str(value + 1))


def test_many_count_together(path, tmp_path, started):
    """A counter that is read and written loses nothing: each holder was alone."""
    tally = tmp_path / "tally"
    tally.write_text("0")
    for process in [started(count, path, tally, 12) for _ in range(6)]:
        process.join(60)
        assert process.exitcode == 0
    assert tally.read_text() == "72"
    assert [p.name for p in path.parent.iterdir() if p != path] == [], "no claims, markers or names of one's own stay"


# --- leases


@contextmanager
def elsewhere(machine: str, monkeypatch):
    """As on another machine, whose processes are not seen here."""
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_machine", lambda: machine)
        yield


@pytest.fixture
def lock(tmp_path):
    agree(tmp_path, "lease", SECONDS)
    return tmp_path / "shards" / "run" / ".lock"


def abandoned(path: Path, machine: str = "another") -> None:
    """A claim whose owner was on another machine and died."""

    def die():
        leases._machine = lambda: machine
        claim = leases.Claim(path, False, SECONDS)
        assert claim.taken(False)
        os._exit(0)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_claim_without_a_sign_of_life_is_taken_over_after_a_lease(lock):
    abandoned(lock)
    touched = lock.stat().st_mtime
    assert "process" in owner(lock)
    assert not free(lock)
    with locked(lock) as held:
        assert held
        assert time.time() - touched > SECONDS


def test_an_old_one_after_half_of_it_by_the_folder_s_clock(tmp_path):
    lock, seconds = tmp_path / ".lock", 3.0
    abandoned(lock)
    os.utime(lock, (1.0, 1.0))
    start = time.monotonic()
    with leased(lock, True, False, seconds) as held:
        assert held
        assert seconds / 2 < time.monotonic() - start < seconds


def inherit(lock: Path, go, taken: Path, begun) -> None:
    leases._machine = lambda: f"machine {os.getpid()}"
    begun.put(1)
    while not go.exists():
        time.sleep(0.001)
    with leased(lock, True, False, SECONDS):
        with taken.open("a") as file:
            file.write(f"in {os.getpid()}\n")
        time.sleep(0.01)
        with taken.open("a") as file:
            file.write(f"out {os.getpid()}\n")


def test_a_stale_claim_is_taken_over_once_however_many_wait(lock, tmp_path, started):
    """Eight machines wait for it; whoever has it is alone, each gets it once, and its old owner's file is gone."""
    abandoned(lock)
    os.utime(lock, (1.0, 1.0))
    go, taken, begun = tmp_path / "go", tmp_path / "taken", FORK.SimpleQueue()
    processes = [started(inherit, lock, go, taken, begun) for _ in range(8)]
    for _ in processes:
        begun.get()
    go.touch()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    lines = [line.split() for line in taken.read_text().splitlines()]
    assert [(word, pid) for word, pid in lines[::2]] == [("in", pid) for _, pid in lines[1::2]]
    assert set(Counter(pid for _, pid in lines).values()) == {2}
    assert list(lock.parent.iterdir()) == []


PATIENT = 2.0  # a lease that a busy machine keeps alive


def live(lock: Path, ready, release, offset: float) -> None:
    """Holds the claim on a machine whose clock is off, and whose folder takes times from it."""
    leases._machine = lambda: "another"
    leases.Claim.touch = lambda self: os.utime(self.handle, (time.time() + offset,) * 2)
    with leased(lock, True, False, PATIENT) as held:
        ready.put(held)
        release.get()


@pytest.mark.parametrize("offset", [-3600.0, 3600.0])
def test_a_clock_an_hour_off_does_no_harm(tmp_path, started, offset):
    """A live claim stays its owner's, a dead one is taken over, whatever the time is over there."""
    agree(tmp_path, "lease", PATIENT)
    lock = tmp_path / "shards" / ".lock"
    ready, release = FORK.SimpleQueue(), FORK.SimpleQueue()
    process = started(live, lock, ready, release, offset)
    assert ready.get() is True
    end = time.monotonic() + 1.5 * PATIENT
    while time.monotonic() < end:
        assert not free(lock)
        time.sleep(0.05)
    process.kill()
    start = time.monotonic()
    with locked(lock) as held:
        assert held
        assert time.monotonic() - start > PATIENT / 4


def test_who_lost_its_claim_leaves_the_new_owner_s_alone(lock, monkeypatch):
    """It was stopped for longer than a lease; then it goes on."""
    old = leases.Claim(lock, False, SECONDS)
    assert old.taken(False)
    leases._heart.drop(old)
    with elsewhere("another", monkeypatch), leased(lock, True, False, SECONDS) as held:
        assert held
        new = lock.read_bytes()
        old.release()
        assert lock.read_bytes() == new
        assert not free(lock)
    assert not lock.exists()


def test_a_marker_whose_maker_died_is_passed_over(lock):
    abandoned(lock)
    os.utime(lock, (1.0, 1.0))
    token = leases._read(lock).token
    marker = lock.with_name(f".of.{token}.0.lock")
    marker.write_bytes(b'{"token": "x", "machine": "third", "pid": 1, "started": 1}')
    os.utime(marker, (1.0, 1.0))
    with locked(lock) as held:
        assert held
        assert not marker.exists()


def test_a_folder_without_links(lock, monkeypatch):
    def refused(*paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    with locked(lock) as held:
        assert held
        before = lock.stat().st_mtime_ns
        assert not free(lock)
        time.sleep(SECONDS / 2)
        assert lock.stat().st_mtime_ns > before, "the file that is touched is the one at the path"
    assert list(lock.parent.iterdir()) == []


def test_a_full_disk(lock, monkeypatch):
    """A claim that cannot be written is told; one that is held is given up all the same."""
    plain = os.open

    def full(path, flags, *mode, **how):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(path, flags, *mode, **how)

    with locked(lock):
        monkeypatch.setattr(os, "open", full)
    assert list(lock.parent.iterdir()) == []
    with pytest.raises(StorageError, match=r"No space left on device\. Free some space"), locked(lock):
        pass


# --- which way


def test_what_is_in_no_results_folder_is_locked_by_the_system(tmp_path):
    assert kind_of(tmp_path / "cpu.lock").name == "flock"
    with locked(tmp_path / "cpu.lock"):
        assert owner(tmp_path / "cpu.lock") == ""


def test_the_first_command_decides_for_all(tmp_path):
    assert agree(tmp_path).name == "flock"
    assert agree(tmp_path, "flock").name == "flock"
    with pytest.raises(ConfigError, match=r"by flock .* locks=lease asks for lease.*delete .*\.kind\.lock when"):
        agree(tmp_path, "lease")
    other = tmp_path / "other"
    assert agree(other, "lease", 30.0) == kind_of(other / "shards" / "run" / ".lock") == ("lease", 30.0, "locks=lease")
    assert agree(other).seconds == 30.0
    with pytest.raises(ConfigError, match="locks=flock asks for flock"):
        agree(other, "flock")


def test_where_flock_is_refused_or_granted_to_everybody_leases_are_taken(tmp_path, monkeypatch):
    import fcntl

    def refused(*how):
        raise OSError(errno.ENOLCK, "No locks available")

    for number, flock in enumerate((refused, lambda *how: None)):
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", flock)
            assert agree(tmp_path / str(number))[::2] == ("lease", "flock does not work in that folder")
    assert [p.name for p in (tmp_path / "0" / "shards").iterdir()] == [".kind.lock"]


def test_a_folder_of_a_network_has_leases_and_one_that_flock_was_chosen_for_is_refused(tmp_path, monkeypatch):
    assert agree(tmp_path).name == "flock"
    for kind in ("nfs4", "fuse.s3fs", "lustre", "cifs"):
        monkeypatch.setattr(kinds, "file_system", lambda folder, kind=kind: kind)
        assert chosen(tmp_path).name == "lease"
    with pytest.raises(ConfigError, match="folder of cifs, where flock may hold on one machine alone, asks for"):
        agree(tmp_path)
    assert agree(tmp_path, "flock").name == "flock", "who knows better says so"


def test_the_file_system_of_a_folder():
    assert file_system(Path("/proc/self")) == "proc"


def test_settings_that_say_no_way(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown way to lock 'lease5'\. Did you mean lease\?"):
        agree(tmp_path, "lease5")
    with pytest.raises(ConfigError, match=r"lease is 0\.1; allowed: a number >= 0\.5"):
        agree(tmp_path, "lease", 0.1)
    assert not list(tmp_path.iterdir())
    agree(tmp_path)
    (tmp_path / "shards" / ".kind.lock").write_text("{")
    with pytest.raises(IntegrityError, match=r"\.kind\.lock is damaged .* Delete it when no process works there"):
        agree(tmp_path)
