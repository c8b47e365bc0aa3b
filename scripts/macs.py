"""MACs of caches on the true shapes of known networks: records and tables/macs_architectures.md. Needs no weights."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rich.progress import track

from accel.benches.architectures import ARCHITECTURES, cached_costs
from accel.benches.architectures_table import write_architectures
from accel.records import Results, digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="outputs")
    args = parser.parse_args()
    results, place = Results(args.results), 0
    for architecture in track(ARCHITECTURES.values(), "architectures"):
        for row in cached_costs(architecture):
            costs = {key: asdict(row[key]) for key in ("full", "measured", "parts")}
            found = {"network": architecture.name, "method": row["method"], "live": row["live"], **costs}
            results.save({"kind": "macs", "id": digest(found), "place": place, **found})
            place += 1
    for path in write_architectures(results):
        print(path.read_text())


if __name__ == "__main__":
    main()
