"""Shards: samples [start, stop) of a run as one file; the unit of resume and of distribution.

A shard is a safetensors file that holds the images, their fp16 features and per-sample scores, and a sha256 of its
tensors. Boundaries are multiples of the shard size, so that a larger N only adds shards. A damaged shard is detected
when it is read, reported and computed again. Processes that want the same shards share the work: each takes those that
nobody else has begun, and waits for the rest.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from accel.files import Tensors, load_tensors, save_tensors
from accel.locks import locked

PAUSE, FEW = 0.01, 3  # seconds between two looks at what others make, at first, and how many shards are looked at


def boundaries(n: int, size: int) -> list[tuple[int, int]]:
    """[0, size), [size, 2 size), ..., the last one cut at n."""
    return [(a, min(a + size, n)) for a in range(0, n, size)]


class ShardStore:
    """The shards of one run (one generation id)."""

    def __init__(self, root: Path, run: str) -> None:
        self.folder = Path(root) / "shards" / run
        self.damaged: list[str] = []

    def path(self, start: int, stop: int) -> Path:
        return self.folder / f"{start:06d}-{stop:06d}.safetensors"

    def save(self, start: int, stop: int, tensors: Tensors) -> None:
        save_tensors(self.path(start, stop), tensors)

    def load(self, start: int, stop: int) -> Tensors | None:
        """The shard's tensors, or None if it is not there or damaged (then its path is added to `damaged`)."""
        path = self.path(start, stop)
        if not path.exists():
            return None
        tensors = load_tensors(path)
        if tensors is None:
            self.damaged.append(str(path))
        return tensors

    def missing(self, n: int, size: int) -> list[tuple[int, int]]:
        """Shards of the first n samples that are still to be computed; damaged ones are among them."""
        return [(a, b) for a, b in boundaries(n, size) if self.load(a, b) is None]

    def absent(self, n: int, size: int) -> list[tuple[int, int]]:
        """Shards of the first n samples whose file is not there; nothing is read, so damaged ones are not found."""
        return [(a, b) for a, b in boundaries(n, size) if not self.path(a, b).exists()]

    def fill(self, todo: list[tuple[int, int]], make: Callable[[int, int], Tensors], wait: bool = True) -> None:
        """`make(a, b)` and save each of these shards that is not there and that no other process makes.

        When it returns they are all there; what another process began and did not finish is made here. Without `wait`
        it returns when there are none left that nobody has begun.
        """
        left, pause = self._begin(todo, make), PAUSE
        while wait and left:  # others have begun them; a few at a time are looked at, for many may be waiting
            some = random.sample(left, min(FEW, len(left)))
            still = self._begin(some, make)
            left = [pair for pair in left if pair not in some or pair in still]
            if len(still) == len(some):
                time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(1.5 * pause, 1.0) if len(still) == len(some) else PAUSE

    def _begin(self, todo: list[tuple[int, int]], make: Callable[[int, int], Tensors]) -> list[tuple[int, int]]:
        """Make those of these shards that are not there and nobody else makes; the others that are not there."""
        left = []
        for a, b in todo:
            path, lock = self.path(a, b), self.folder / f".{a:06d}-{b:06d}.lock"
            if str(path) not in self.damaged and path.exists():  # made meanwhile: a file is whole
                continue
            with locked(lock, wait=False) as held:
                if not held:
                    left.append((a, b))
                    continue
                if self.load(a, b) is None:
                    self.save(a, b, make(a, b))
                with suppress(OSError):
                    lock.unlink()
        return left

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While it lasts no process forgets these shards."""
        with locked(self._in_use, shared=True):
            yield

    def forget(self) -> None:
        """Delete the shards, unless another process uses them."""
        if self.folder.is_dir():
            with locked(self._in_use, wait=False) as alone:
                if alone:
                    shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _in_use(self) -> Path:
        return self.folder / ".in_use.lock"

    def gather(self, n: int, size: int, limits: Mapping[str, int] | None = None) -> Tensors:
        """All tensors of the first n samples, concatenated; every shard must be there.

        `limits`: of these tensors only so many samples are wanted; no more of them than needed is held in memory.
        """
        parts: dict[str, list[torch.Tensor]] = {}
        for a, b in boundaries(n, size):
            for name, tensor in self.load(a, b).items():
                if a < (limits or {}).get(name, n):
                    parts.setdefault(name, []).append(tensor)
        return {name: torch.cat(tensors) for name, tensors in parts.items()}
