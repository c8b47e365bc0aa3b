"""How a results folder is locked: agreed on by a file in it, <results>/shards/.kind.lock; the first command writes it.

Processes that lock in different ways do not see each other, so one way holds for all that work in a folder. `auto`
takes flock where it works and the folder is this machine's own; leases where it does not, or where the folder comes
from a network: there each machine may grant flock for itself alone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from accel.errors import ConfigError, IntegrityError, Refusals, check_float, unknown
from accel.files import writing
from accel.locks.flocks import excludes, flocked
from accel.locks.leases import leased, placed

KINDS = {"flock": flocked, "lease": leased}
AUTO = "auto"
SECONDS = 120.0  # of a lease
LEAST = 0.5  # a shorter one may end while its owner waits for the disk
# File systems of other machines, by their names in /proc/self/mounts. Object stores come through FUSE.
NETWORK = re.compile(r"nfs\d?|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|glusterfs|pvfs2|orangefs|afs|9p|virtiofs|fuse\..+")


class Kind(NamedTuple):
    """How a folder is locked; for how long a claim holds without a sign of life; why it is locked like that."""

    name: str
    seconds: float = SECONDS
    why: str = ""


FLOCK = Kind("flock")


def kind_of(path: Path) -> Kind:
    """How the results folder around `path` is locked; flock where it is in none."""
    return _around(str(path.absolute().parent))


def check(wanted: str, seconds: float) -> None:
    """ConfigError for settings that say no way to lock."""
    with Refusals() as refusals:
        if wanted not in (AUTO, *KINDS):
            refusals.add(unknown("way to lock", str(wanted), (AUTO, *KINDS)))
        refusals.ask(check_float, "lease", seconds, LEAST)


def agree(root: Path, wanted: str = AUTO, seconds: float = SECONDS) -> Kind:
    """How the results folder `root` is locked: as is written there, or chosen and written now.

    ConfigError where that is not what is `wanted`, or does not hold on this machine.
    """
    check(wanted, seconds)
    mark = _mark(root)
    own = Kind(wanted, seconds, f"locks={wanted}") if wanted != AUTO else chosen(root, seconds)
    if not mark.exists():
        _write(mark, own)
    _around.cache_clear()
    there = _read(mark)
    if there.name != own.name and (wanted != AUTO or own.name != "flock"):
        raise ConfigError(
            f"{root} is locked by {there.name} ({there.why}), but {own.why} asks for {own.name}, and who locks in "
            f"different ways computes everything twice. Ask for locks={there.name}, or delete {mark} when no process "
            "works there, and run the same command again."
        )
    return there


def chosen(root: Path, seconds: float = SECONDS) -> Kind:
    """The way that holds in the folder `root`, as far as one machine can find out; files are made there to try."""
    probe = _mark(root).with_name(f".try-{secrets.token_hex(8)}.lock")
    with writing(probe):
        probe.parent.mkdir(parents=True, exist_ok=True)
        works = excludes(probe)
    if not works:
        return Kind("lease", seconds, "flock does not work in that folder")
    if NETWORK.fullmatch(system := file_system(root)):
        return Kind("lease", seconds, f"a folder of {system}, where flock may hold on one machine alone,")
    return Kind("flock", seconds, "flock works in that folder")


def file_system(folder: Path) -> str:
    """The type of the file system that `folder` is in, as Linux calls it; "" where nobody says."""
    with suppress(OSError):
        lines = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
        where = os.path.realpath(folder)
        mounted = [(point.replace("\\040", " "), kind) for _, point, kind, *_ in lines]
        around = [(point, kind) for point, kind in mounted if f"{where}/".startswith(f"{point.rstrip('/')}/")]
        return max(around, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return ""


def _mark(root: Path) -> Path:
    return root / "shards" / ".kind.lock"


def _write(mark: Path, kind: Kind) -> None:
    """Write what was chosen, unless another process was faster."""
    own = mark.with_name(f".kind-{secrets.token_hex(8)}.lock")
    with writing(mark):
        mark.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(kind._asdict()) + "\n")
        placed(own, mark)
        own.unlink()


def _read(mark: Path) -> Kind:
    try:
        found = json.loads(mark.read_text())
        kind = Kind(found["name"], found["seconds"], found["why"])
        check(kind.name, kind.seconds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{mark} is damaged ({error}). Delete it when no process works there, and run the same command again."
        ) from error
    return kind


@lru_cache(maxsize=4096)
def _around(folder: str) -> Kind:
    for above in (Path(folder), *Path(folder).parents):
        mark = _mark(above)
        if mark.exists():
            return _read(mark)
    return FLOCK
