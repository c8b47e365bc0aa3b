"""A crowd on one folder: workers that claim shards of one cell, each as if on a machine of its own; some die.

Claims, shards and their files are the real ones (accel.locks.leases, accel.evaluation.shards); only the work is a wait.
Workers are threads of a few processes. Who dies leaves its claim behind untouched, as a machine that was switched off.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from accel.evaluation.shards import ShardStore, boundaries
from accel.locks import leases
from accel.locks.kinds import agree

SIZE = 8  # samples of a shard: numbers alone
SPREAD = 0.2  # of the seconds that a shard takes, either way


def crowd(
    root: Path, workers: int, shards: int, seconds: float, lease: float, dead: int, processes: int = 8
) -> dict[str, Any]:
    """`workers` make `shards`, each of about so many seconds, `dead` of them die while they make their first one.

    `made`: shards that are there; `twice`: made more than once; `left`: claims that nobody removed; `wall`: seconds
    until all are there, `living`: all but those that the dead had; `ideal`: shards x seconds / workers left; `claims`:
    files of claims that were written, `waits`: of them in vain.
    """
    agree(root, "lease", lease)
    context = multiprocessing.get_context("fork")  # threads come only afterwards
    told, go = context.SimpleQueue(), context.Event()
    shares = [range(place, workers, processes) for place in range(processes)]
    about = workers, shards, seconds, dead, go, told
    started = [context.Process(target=_some, args=(root, own, *about)) for own in shares]
    for process in started:
        process.start()
    for _ in started:
        told.get()  # all threads are there
    begun = time.monotonic()  # of the machine, not of a process
    go.set()
    said = [told.get() for _ in started]
    for process in started:
        process.join()
    makers = Counter(key for own, _, _ in said for key, _ in own)
    ends = sorted(end - begun for own, _, _ in said for _, end in own)
    store = ShardStore(root, "crowd")
    there = [pair for pair in boundaries(shards * SIZE, SIZE) if store.load(*pair) is not None]
    return {
        "workers": workers, "shards": shards, "seconds": seconds, "lease": lease, "dead": dead, "made": len(there),
        "twice": sum(count > 1 for count in makers.values()), "wall": ends[-1], "living": ends[-1 - dead],
        "ideal": shards * seconds / (workers - dead), "claims": sum(claims for _, claims, _ in said),
        "waits": sum(busy for _, _, busy in said),
        "left": len([path for path in store.folder.iterdir() if path.suffix != ".safetensors"]),
    }  # fmt: skip


def _some(root: Path, own: range, workers: int, shards: int, seconds: float, dead: int, go: Any, told: Any) -> None:
    """The workers of one process."""
    leases._machine = lambda: ""  # nobody sees whether a process of another one lives
    made: list[tuple[tuple[int, int], float]] = []
    tally, taken = Counter(), leases.Claim.taken
    over = threading.Event()

    def counted(claim: leases.Claim, wait: bool) -> bool:
        tally["claims"] += 1
        held = taken(claim, wait)
        tally["busy"] += not held
        return held

    leases.Claim.taken = counted

    def worker(number: int) -> None:
        store, mortal = ShardStore(root, "crowd"), number < dead
        chance = random.Random(number)

        def make(a: int, b: int) -> dict[str, torch.Tensor]:
            if mortal:
                for claim in list(leases._heart._claims):
                    if claim.held and claim.path.name == f".{a:06d}-{b:06d}.lock":
                        leases._heart.drop(claim)
                over.wait()  # for ever: the process ends before
            time.sleep(seconds * chance.uniform(1 - SPREAD, 1 + SPREAD))
            made.append(((a, b), time.monotonic()))
            return {"x": torch.full((b - a,), float(a))}

        todo = boundaries(shards * SIZE, SIZE)
        first = number * shards // workers
        go.wait()
        store.fill(todo[first:] + todo[:first], make)

    threads = [(number < dead, threading.Thread(target=worker, args=(number,), daemon=True)) for number in own]
    for _, thread in threads:
        thread.start()
    told.put(None)
    for mortal, thread in threads:
        if not mortal:
            thread.join()
    told.put((made, tally["claims"], tally["busy"]))
    os._exit(0)
