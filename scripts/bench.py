"""`make bench`: overhead of the harness and of the schedulers, as records and tables (tables/*overhead.md)."""

from __future__ import annotations

import argparse

from accel.evaluation.deepcache_speed import NETS, measure_deepcache
from accel.evaluation.overhead import measure_overhead, measure_schedulers
from accel.results.overhead import write_deepcache, write_overhead, write_schedulers
from accel.results.records import Results, digest
from accel.suites.digits import DigitsSuite
from accel.suites.mixture import MixtureSuite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="outputs")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--only", choices=["harness", "schedulers", "deepcache"], default=None)
    args = parser.parse_args()
    results = Results(args.results)
    if args.only in (None, "harness"):
        for suite, batch in ((DigitsSuite(), 1), (DigitsSuite(), 8), (MixtureSuite(), 8)):
            measured = measure_overhead(suite, 20, batch, args.repetitions)
            key = digest({k: measured[k] for k in ("suite", "steps", "batch", "environment")})
            results.save({"kind": "bench", "id": key, **measured})
    if args.only in (None, "schedulers"):
        for place, measured in enumerate(measure_schedulers(20, args.repetitions)):
            key = digest({k: measured[k] for k in ("scheduler", "steps", "environment")})
            results.save({"kind": "scheduler", "id": key, "place": place, **measured})
    if args.only == "deepcache":  # needs a package of its own
        settings = [(net, interval, branch) for net in NETS for interval in (2, 4) for branch in (1, 2, 4)]
        for place, (net, interval, branch) in enumerate(settings):
            measured = measure_deepcache(net, interval, branch, args.repetitions)
            key = digest({k: measured[k] for k in ("net", "interval", "branch", "environment")})
            results.save({"kind": "deepcache", "id": key, "place": place, **measured})
    for path in [*write_overhead(results), *write_schedulers(results), *write_deepcache(results)]:
        print(path.read_text())


if __name__ == "__main__":
    main()
