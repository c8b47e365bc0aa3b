"""Executed precisions: speed, error, bytes, memory and set-up, a process for each; an hour and more, resumed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from accel.benches.options import parser
from accel.benches.precision_speed import SIZES, measure_apart, pending
from accel.benches.precision_table import write_precision
from accel.core.environment import with_provenance
from accel.errors import unknown
from accel.records import Results


def main(words: Sequence[str]) -> None:
    """`accel bench precision`: each variant is stored when it is done; tables/precision_executed_<device>.*."""
    options = parser(__doc__, "bench precision")
    options.add_argument("--repetitions", type=int, default=40)
    options.add_argument("--sizes", default=",".join(SIZES))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    args = options.parse_args(words)
    results, sizes = Results(args.results), args.sizes.split(",")
    for size in sizes:
        if size not in SIZES:
            raise unknown("size", size, SIZES)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    todo = pending(results, sizes, args.repetitions, args.threads, args.device)
    with Progress(*columns) as progress:
        task = progress.add_task("precision", total=len(todo))
        for size, variant in todo:
            progress.update(task, description=f"{size}: {variant}")
            results.save(with_provenance(measure_apart(size, variant, args.repetitions, args.threads, args.device)))
            progress.advance(task)
    for path in write_precision(results):
        if path.suffix == ".md":
            print(path.read_text())
