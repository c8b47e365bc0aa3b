"""`make bench`: overhead of the harness, as a record and a table (tables/overhead.md)."""

from __future__ import annotations

import argparse

from accel.evaluation.overhead import measure_overhead
from accel.results.records import Results, digest, write_atomic
from accel.suites.digits import DigitsSuite
from accel.suites.mixture import MixtureSuite

HEAD = """# Overhead of the harness

The bare pipeline against the same pipeline inside `accelerate(pipe, Recipe())`, interleaved in one process: ratio of
times (median over rounds, 95 % bootstrap interval), and the bare pipeline against itself (A/A floor).
`mixture` is a closed form without a network, so that its row shows the absolute cost of the seams.

| suite | steps | batch | rounds | bare ms | ratio | A/A floor | device |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="outputs")
    parser.add_argument("--repetitions", type=int, default=40)
    args = parser.parse_args()
    results, rows = Results(args.results), []
    for suite, batch in ((DigitsSuite(), 1), (DigitsSuite(), 8), (MixtureSuite(), 8)):
        measured = measure_overhead(suite, 20, batch, args.repetitions)
        key = digest({k: measured[k] for k in ("suite", "steps", "batch", "environment")})
        results.save({"kind": "bench", "id": key, **measured})
        rows.append(measured)
    lines = [
        f"| {m['suite']} | {m['steps']} | {m['batch']} | {m['repetitions']} | {m['bare_ms']['value']:.1f} "
        f"| {interval(m['ratio'])} | {interval(m['aa'])} "
        f"| {m['environment']['device_name']}, {m['environment']['threads']} threads |"
        for m in rows
    ]
    text = HEAD + "\n".join(lines) + "\n"
    write_atomic(results.root / "tables" / "overhead.md", text.encode())
    print(text)


def interval(e: dict[str, float]) -> str:
    return f"{e['value']:.3f} [{e['lo']:.3f}, {e['hi']:.3f}]"


if __name__ == "__main__":
    main()
