"""`make cascade`: search DC-Solver's ratios for a grid of (steps, scale) pairs, fit the cascade regression, compare.

Writes artefacts/cascade_<suite>.json (for `sampler.ratios=...`), a record and tables/dc_ratios.{md,csv}. Searches that
were done before are reused; an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import sys

from rich.progress import Progress

from accel.config import compose, instantiate
from accel.errors import AccelError
from accel.evaluation.environment import environment, provenance
from accel.results.cascade import write_cascade
from accel.results.records import Results, describe, digest
from accel.runner import Evaluation, Runner
from accel.search.cascade import Cascade
from accel.search.leave_one_out import leave_one_out, searched_ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="outputs")
    parser.add_argument("--suite", default="digits")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 6, 8, 10])
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=40)
    args = parser.parse_args()
    try:
        run(args)
    except AccelError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    results = Results(args.results)
    suite = instantiate(compose([f"suite={args.suite}"])["suite"])
    sampler = instantiate(compose(["sampler=dc_solver"])["sampler"])
    pairs = len(args.steps) * len(args.scales)
    with Progress() as progress:
        bar, inner = progress.add_task("searches", total=None), progress.add_task("steps of one search", total=None)

        def on_search(done: int, total: int) -> None:
            progress.update(inner, completed=done, total=total)

        runner = Runner(suite, Evaluation(), results, progress.console.print, on_search=on_search)
        searched = searched_ratios(runner, sampler, args.steps, args.scales)
        progress.update(bar, description="pairs left out", total=pairs)
        Cascade.fit(searched, sampler.dc_order).save(results.root / "artefacts" / f"cascade_{suite.name}.json")
        asked = {"suite": suite.name, "weights": suite.fingerprint(), "sampler": describe(sampler),
                 "pairs": sorted(searched), "samples": args.samples}  # fmt: skip
        key = digest(asked)
        if not results.path("cascade", key).exists():
            rows = leave_one_out(runner, sampler, searched, args.samples, lambda: progress.advance(bar))
            results.save({"kind": "cascade", "id": key, "suite": suite.name, "samples": args.samples, "rows": rows,
                          "dc_order": sampler.dc_order,
                          "environment": environment(runner.device) | provenance()})  # fmt: skip
    for path in write_cascade(results):
        print(path)


if __name__ == "__main__":
    main()
