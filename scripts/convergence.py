"""`make convergence`: every sampler on every grid against the exact ODE of `mixture`; records, table, figure."""

from __future__ import annotations

import argparse

import torch
from rich.progress import track

from accel.benches.convergence import EPOCH, SAMPLES, STEPS, jobs, measure
from accel.benches.convergence_table import write_convergence
from accel.records import Results, digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="outputs")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    args = parser.parse_args()
    torch.set_num_threads(1)  # eight dimensions: threads only cost
    results = Results(args.results)
    for place, (contestant, grid) in enumerate(track(list(jobs()), "convergence")):
        asked = {"sampler": contestant.name, "scheduler": contestant.scheduler, "options": dict(contestant.options),
                 "grid": grid, "steps": list(STEPS), "samples": args.samples, "epoch": EPOCH}  # fmt: skip
        key = digest(asked)
        if not results.path("convergence", key).exists():
            measured = measure(contestant, grid, samples=args.samples)
            results.save({"kind": "convergence", "id": key, "place": place, **measured})
    for path in write_convergence(results):
        print(path)


if __name__ == "__main__":
    main()
