"""Rebuild tables or figures of every study in a results folder from its records, or the front of plain samplers that
its studies plain_<suite> find (conf/plain); nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence

from accel.benches.adherence_table import write_adherence
from accel.benches.architectures_table import write_architectures
from accel.benches.cascade_table import write_cascade
from accel.benches.convergence_table import write_convergence
from accel.benches.coverage_table import write_coverage
from accel.benches.device_table import write_device
from accel.benches.options import parser
from accel.benches.overhead_table import write_deepcache, write_overhead, write_schedulers
from accel.benches.precision_table import write_precision
from accel.benches.scaling_table import write_scaling
from accel.cli.plain import PREFIX, write_plain
from accel.errors import ConfigError
from accel.records import Results
from accel.results.canvas import FORMATS
from accel.results.claims_table import write_claims
from accel.results.composition_table import write_composition
from accel.results.figures import write_figures
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
    write_coverage,
    write_searches,
    write_composition,
    write_precision,
    write_device,
    write_scaling,
    write_claims,
)


def main(words: Sequence[str]) -> int:
    """`accel rebuild tables`, `figures` or `plain`."""
    options = parser(__doc__, "rebuild")
    options.add_argument("what", choices=["tables", "figures", "plain"])
    options.add_argument("--format", choices=[*FORMATS], default="png", help="of figures (default: png)")
    args = options.parse_args(words)
    if args.what != "figures" and args.format != "png":
        raise ConfigError(
            f"--format {args.format} is of figures: accel rebuild figures --format {args.format}. A table in another "
            "format: accel table <study> --format latex|csv|md|html."
        )
    results = Results(args.results)
    if not results.studies():
        raise ConfigError(f"no study in {args.results}/studies; run one first, e.g. accel experiment=demo.")
    if args.what == "plain":
        if not any(name.startswith(PREFIX) for name in results.studies()):
            raise ConfigError(
                f"no study {PREFIX}<suite> in {args.results}/studies, from which fronts of plain samplers are made; "
                "run one first, e.g. accel experiment=plain_digits."
            )
        for path in write_plain(results):
            print(path)
        return 0
    for study in results.studies():
        own = (args.format,) if args.what == "figures" else ()
        for path in STUDY[args.what](results, study, *own):
            print(path)
    for write in TABLES if args.what == "tables" else ():
        for path in write(results):
            print(path)
    for path in write_convergence(results, args.format):  # a table and a figure
        print(path)
    return 0
