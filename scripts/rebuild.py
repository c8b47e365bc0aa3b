"""Rebuild tables or figures of every study in a results folder from its records; nothing is computed."""

from __future__ import annotations

import argparse
import sys

from accel.errors import AccelError
from accel.results.adherence import write_adherence
from accel.results.architectures import write_architectures
from accel.results.cascade import write_cascade
from accel.results.convergence import write_convergence
from accel.results.figures import write_figures
from accel.results.overhead import write_deepcache, write_overhead, write_schedulers
from accel.results.precision import write_precision
from accel.results.records import Results
from accel.results.search import write_searches
from accel.results.tables import write_tables

STUDY = {"tables": write_tables, "figures": write_figures}  # of one study
TABLES = (
    write_overhead,
    write_schedulers,
    write_cascade,
    write_architectures,
    write_deepcache,
    write_adherence,
    write_searches,
    write_precision,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["tables", "figures"])
    parser.add_argument("--results", default="outputs")
    args = parser.parse_args()
    results = Results(args.results)
    if not results.studies():
        sys.exit(f"error: no study in {args.results}/studies; run one first, e.g. `make demo`.")
    try:
        for study in results.studies():
            for path in STUDY[args.what](results, study):
                print(path)
        for write in TABLES if args.what == "tables" else ():
            for path in write(results):
                print(path)
        for path in write_convergence(results):  # a table and a figure
            print(path)
    except AccelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
