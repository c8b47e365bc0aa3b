"""What sharing costs, a crowd on one folder, and the arithmetic of a large study on many GPUs.

    accel bench scaling --results results

1. A lock of each kind, and a shard of `digits` (its claim, file and reading) beside the time of generating it.
2. A crowd (accel.benches.crowd): workers that claim shards of one cell, of which some die.
3. Hours, disk, reading and cost of --recipes recipes of --images images on 8 to 64 GPUs (accel.benches.scaling_plan),
   from the inputs that the options say.

Writes a record of kind `scaling` and tables/scaling.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from accel.benches.crowd import crowd
from accel.benches.options import parser
from accel.benches.scaling_plan import Plan
from accel.benches.scaling_table import write_scaling
from accel.core.environment import environment, with_provenance
from accel.errors import check_int
from accel.evaluation.shards import ShardStore
from accel.locks import KINDS, locked
from accel.locks.kinds import agree
from accel.records import Results, digest

LOCKS = 300  # of which the median is taken
SHARD, STEPS = 64, 20  # of digits, by DPM-Solver++
TOUCHING = ("open", "link", "rename", "replace", "unlink", "utime", "stat", "scandir", "mkdir")  # a folder's server


def lock_costs(root: Path, times: int = LOCKS) -> dict[str, dict[str, float]]:
    """Of each kind of lock: microseconds to take and give up a free one (median), and how often the folder is asked."""
    found = {}
    for kind in KINDS:
        agree(root / kind, kind)
        path = root / kind / "shards" / "run" / ".lock"
        seconds = sorted(_timed(lambda path=path: _once(path)) for _ in range(times))
        with _counted() as tally:
            _once(path)
        found[kind] = {"us": seconds[times // 2] * 1e6, "operations": sum(tally.values())}
    return found


def shard_costs(root: Path) -> dict[str, float]:
    """Seconds of a shard of digits: generating and scoring it, and what sharing adds: claim, file, reading it again."""
    from accel.core.recipe import Recipe, accelerate
    from accel.evaluation.score import score_images
    from accel.registry import method
    from accel.studies.evaluation import Evaluation
    from accel.studies.runner import Runner
    from accel.suites.digits import DigitsSuite

    suite, recipe = DigitsSuite(), Recipe(method("sampler", "dpmpp_2m", steps=STEPS))
    results = Results(root, "lease")
    results.ready()
    runner = Runner(suite, Evaluation(n=SHARD, distance_n=SHARD, device="cpu"), results)

    def made(a: int, b: int) -> dict[str, Any]:
        images = runner._images(recipe, 0, a, b)
        return score_images(suite, images, suite.conditions(a, b))

    store = ShardStore(root, "digits")
    with accelerate(runner.pipe, recipe):
        made(0, SHARD)  # the first call of a process pays for set-up
        began = time.perf_counter()
        tensors = made(0, SHARD)
        generating = time.perf_counter() - began

    def shared() -> None:
        store.path(0, SHARD).unlink(missing_ok=True)
        store.fill([(0, SHARD)], lambda a, b: tensors)
        store.load(0, SHARD)

    seconds = sorted(_timed(shared) for _ in range(9))[4]
    return {"generating_s": generating, "sharing_s": seconds, "bytes": store.path(0, SHARD).stat().st_size}


def _once(path: Path) -> None:
    with locked(path):
        pass


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Counts the system calls of this process that ask a folder."""
    tally: Counter[str] = Counter()

    def counting(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tally[name] += 1
            return plain(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in TOUCHING:
            stack.enter_context(mock.patch.object(os, name, counting(name, getattr(os, name))))
        yield tally


def main(words: Sequence[str]) -> None:
    """`accel bench scaling`: a record and tables/scaling.md."""
    options = parser(__doc__, "bench scaling")
    defaults = asdict(Plan())
    for name, value in defaults.items():
        options.add_argument(f"--{name}", type=type(value), default=value)
    options.add_argument("--workers", type=int, default=1000, help="of the crowd; 0: none")
    args = options.parse_args(words)
    plan = Plan(**{name: getattr(args, name) for name in defaults})
    check_int("--workers", args.workers, 0)
    results = Results(args.results)
    results.ready()
    with tempfile.TemporaryDirectory(dir=results.root) as folder:
        root, many = Path(folder), args.workers
        # First: its processes are forked, and may not find threads that have worked.
        crowds = [crowd(root / "crowd", many, 4 * many, 5.0, 20.0, many // 50)] if many else []
        measured = {"locks": lock_costs(root), "shard": shard_costs(root / "shard"), "crowds": crowds}
    where = environment("cpu")
    record = {"kind": "scaling", "id": digest({"environment": where}), **measured, "plan": asdict(plan),
              "environment": where}  # fmt: skip
    results.save(with_provenance(record))
    for path in write_scaling(results):
        print(path.read_text())
