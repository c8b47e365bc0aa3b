"""Print the table of a study for a paper, a sheet or a page, rebuilt from its records:

    accel table demo --results results --format latex --columns recipe "FID (digits)" "ΔFID (digits) vs baseline"
    accel table demo --results results --format csv > demo.csv

A column is named by its heading in the Markdown table (the ` [95 %]` may be left out) or by its name in the CSV file.
Without --columns a CSV holds everything that the records say, the other formats what the Markdown table shows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import parser
from accel.files import write_atomic
from accel.records import Results
from accel.results.export import FORMATS, export


def main(words: Sequence[str]) -> int:
    """`accel table <study>`: prints the table, or writes it `--to` a file and prints that."""
    options = parser(__doc__, "table")
    options.add_argument("study")
    options.add_argument("--format", choices=[*FORMATS], default="md", help="(default: md)")
    options.add_argument("--columns", nargs="+", default=[], metavar="column", help="these, in this order")
    options.add_argument("--to", help="a file to write (default: print it)")
    args = options.parse_intermixed_args(words)
    text = export(Results(args.results), args.study, args.format, args.columns)
    if args.to is None:
        sys.stdout.write(text)
    else:
        write_atomic(Path(args.to), text.encode())
        print(args.to)
    return 0
