"""`make bench`: overhead of the harness and of the schedulers, as records and tables (tables/*overhead.md).

With --only also DeepCache's speed against the authors' package, and the speed of executed precisions (--sizes,
--threads, --device), which takes an hour and more: it may be stopped, and the same command again continues.
"""

from __future__ import annotations

import argparse

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from accel.errors import unknown
from accel.evaluation.deepcache_speed import NETS, measure_deepcache
from accel.evaluation.environment import with_provenance
from accel.evaluation.overhead import measure_overhead, measure_schedulers
from accel.evaluation.precision_speed import SIZES, measure_apart, pending
from accel.results.overhead import write_deepcache, write_overhead, write_schedulers
from accel.results.precision import write_precision
from accel.results.records import Results, digest
from accel.suites.digits import DigitsSuite
from accel.suites.mixture import MixtureSuite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="outputs")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--only", choices=["harness", "schedulers", "deepcache", "precision"], default=None)
    parser.add_argument("--sizes", default=",".join(SIZES), help="of --only precision")
    parser.add_argument("--threads", type=int, default=1, help="of --only precision")
    parser.add_argument("--device", default="cpu", help="of --only precision")
    args = parser.parse_args()
    results = Results(args.results)
    if args.only in (None, "harness"):
        for suite, batch in ((DigitsSuite(), 1), (DigitsSuite(), 8), (MixtureSuite(), 8)):
            measured = measure_overhead(suite, 20, batch, args.repetitions)
            key = digest({k: measured[k] for k in ("suite", "steps", "batch", "environment")})
            results.save(with_provenance({"kind": "bench", "id": key, **measured}))
    if args.only in (None, "schedulers"):
        for place, measured in enumerate(measure_schedulers(20, args.repetitions)):
            key = digest({k: measured[k] for k in ("scheduler", "steps", "environment")})
            results.save(with_provenance({"kind": "scheduler", "id": key, "place": place, **measured}))
    if args.only == "deepcache":  # needs a package of its own
        settings = [(net, interval, branch) for net in NETS for interval in (2, 4) for branch in (1, 2, 4)]
        for place, (net, interval, branch) in enumerate(settings):
            measured = measure_deepcache(net, interval, branch, args.repetitions)
            key = digest({k: measured[k] for k in ("net", "interval", "branch", "environment")})
            results.save(with_provenance({"kind": "deepcache", "id": key, "place": place, **measured}))
    if args.only == "precision":  # takes long, and gains by optional packages
        measure_precisions(results, args)
    for write in (write_overhead, write_schedulers, write_deepcache, write_precision):
        for path in write(results):
            if path.suffix == ".md":
                print(path.read_text())


def measure_precisions(results: Results, args: argparse.Namespace) -> None:
    """Each variant in a process of its own, stored when it is done."""
    sizes = args.sizes.split(",")
    for size in sizes:
        if size not in SIZES:
            raise SystemExit(f"error: {unknown('size', size, SIZES)}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    todo = pending(results, sizes, args.repetitions, args.threads, args.device)
    with Progress(*columns) as progress:
        task = progress.add_task("precision", total=len(todo))
        for size, variant in todo:
            progress.update(task, description=f"{size}: {variant}")
            results.save(with_provenance(measure_apart(size, variant, args.repetitions, args.threads, args.device)))
            progress.advance(task)


if __name__ == "__main__":
    main()
