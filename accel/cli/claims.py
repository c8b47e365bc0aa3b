"""Test the claims of the papers again on the records of a results folder:

    accel claims --results results                    the ledger that accel ships, into tables/claims.md and .csv
    accel claims --results results --ledger mine.csv  claims of your own, in the same columns

Each claim is confirmed, refuted, mixed, undecided or untested, with its interval and what is missing. No image is
made for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import parser
from accel.errors import ConfigError
from accel.records import Results
from accel.results.claims import judge, read
from accel.results.claims_table import LEDGER, counted, write_judged
from accel.results.evidence import Evidence


def main(words: Sequence[str]) -> int:
    """`accel claims`."""
    options = parser(__doc__, "claims")
    options.add_argument("--ledger", default=str(LEDGER), help="a CSV file of claims (default: that of accel)")
    args = options.parse_args(words)
    results, ledger = Results(args.results), Path(args.ledger)
    judged = judge(Evidence(results), read(ledger))
    written = write_judged(results, judged)
    if not written:
        raise ConfigError(
            f"no claim of {ledger} can be tested on {args.results}/records: "
            f"{next(finding.needs for one in judged for finding in one.findings)} is not there, for one. "
            "Run a study that the ledger names, e.g. accel experiment=samplers_digits."
        )
    print(counted(judged))
    for path in written:
        print(path)
    return 0
