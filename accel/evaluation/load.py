"""Whether others used the processor while a round was timed: which rounds to throw away.

Two signs, both of the CPU only:

* *drift*: the processor time of an arm falls behind its wall time. r = processor seconds / wall seconds is about the
  number of busy threads; a round in which any arm's r is more than 10 % below that arm's median over the rounds was
  interrupted. 2 ms are forgiven, so that a short arm is not judged by a single tick.
* *foreign load*: processor time that the machine spent (busy jiffies of /proc/stat) beyond this process's own, in
  processors; more than 10 % of all there are. Two ticks a processor are forgiven. Absent where there is no /proc/stat.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

DRIFT = 0.10  # of an arm's processor time per wall time, below its median
FORGIVEN = 0.002  # seconds
FOREIGN = 0.10  # of all processors
STAT = Path("/proc/stat")


class Reading(NamedTuple):
    """Clocks at one moment, in seconds: wall, this process's processor time, all processors' busy time (None: not
    known)."""

    wall: float
    own: float
    busy: float | None


class Round(NamedTuple):
    """One round of all arms: wall seconds of each and, on the CPU, their processor seconds and the processors that
    others kept busy meanwhile."""

    seconds: Mapping[str, float]
    processor: Mapping[str, float] = {}
    foreign: float = 0.0


def read() -> Reading:
    return Reading(time.perf_counter(), time.process_time(), busy_seconds())


def busy_seconds(stat: Path = STAT) -> float | None:
    """Seconds that all processors have been busy since the machine began; None where the system does not say."""
    try:
        head, *fields = stat.read_text().partition("\n")[0].split()
        user, nice, system, _idle, _iowait, *rest = map(int, fields)
    except (OSError, ValueError):
        return None
    # irq, softirq, steal; what guests took is in user already
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK") if head == "cpu" else None


def foreign_load(before: Reading, after: Reading) -> float:
    """Processors that others kept busy between two readings, at least 0."""
    wall = after.wall - before.wall
    if before.busy is None or after.busy is None or wall <= 0:
        return 0.0
    forgiven = 2 * (os.cpu_count() or 1) / os.sysconf("SC_CLK_TCK")
    return max(0.0, after.busy - before.busy - (after.own - before.own) - forgiven) / wall


def calm(rounds: Sequence[Round]) -> tuple[np.ndarray, int]:
    """Which rounds to keep, as bool of shape (rounds,), and how many of those are disturbed.

    At most as many are thrown away as are kept: of more disturbed ones the least disturbed stay.
    """
    badness = np.array([r.foreign / (FOREIGN * (os.cpu_count() or 1)) for r in rounds])
    for name in rounds[0].processor:
        wall = np.array([r.seconds[name] for r in rounds])
        own = np.array([r.processor[name] for r in rounds])
        due = wall * np.median(own / np.maximum(wall, 1e-9))
        badness = np.maximum(badness, (due - own) / np.maximum(DRIFT * due, FORGIVEN))
    worst = np.argsort(-badness, kind="stable")[: min(int((badness > 1).sum()), len(rounds) // 2)]
    kept = np.ones(len(rounds), bool)
    kept[worst] = False
    return kept, int((badness[kept] > 1).sum())
