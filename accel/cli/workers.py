"""`accel workers [--results <folder>]`: the workers of a results folder: where each is, on what, how far, and when it
was last heard of. They are those of `accel work` and of launchers; --forget removes those that have ended."""

from __future__ import annotations

from pathlib import Path

from accel.benches.options import parser

SILENT = 300.0  # seconds: a worker tells at least each shard


def main(words: list[str]) -> int:
    options = parser(__doc__, "workers")
    options.add_argument("--forget", action="store_true", help="remove what ended or silent workers have said")
    args = options.parse_args(words)
    print(text(Path(args.results), args.forget), end="")
    return 0


def text(root: Path, forget: bool = False) -> str:
    """A line for each worker, by the folder's own clock, and one for all of them."""
    from rich.console import Console
    from rich.table import Table

    from accel.records import check_writable
    from accel.studies.status import WORKING, folder_of, statuses

    known = list(statuses(root))
    if not known:
        return f"no worker has said anything in {root}.\n"
    probe = folder_of(root) / ".now"
    check_writable(folder_of(root))
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    table = Table(title=f"workers of {root}")
    for column in ("session", "worker", "host", "study", "state", "cell", "samples", "cells there", "heard"):
        table.add_column(column, overflow="fold")
    at_work, done = 0, set()
    for status, heard in known:
        silent = status.state == WORKING and now - heard > SILENT
        at_work += status.state == WORKING and not silent
        done |= set(status.ended)
        state = "silent" if silent else status.state
        table.add_row(status.session, str(status.place), f"{status.host}:{status.pid}", status.study,
                      state + (f": {status.error}" if status.error else ""), status.cell,
                      f"{status.samples}/{status.total}" if status.cell else "", str(len(status.ended)),
                      f"{max(0.0, now - heard):.0f} s ago")  # fmt: skip
        if forget and (silent or status.state != WORKING):
            status.path.unlink(missing_ok=True)
    console = Console(width=140)
    with console.capture() as shown:
        console.print(table)
        console.print(f"{at_work} at work, {len(known) - at_work} ended or silent; {len(done)} cells there.")
    return shown.get()
