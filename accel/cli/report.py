"""Write one page of HTML with all that the records say of studies, to look at without a server, network or account:

    accel report demo --results results
    accel report caching_digits stitching_digits --results results --to review.html

Tables that sort, with intervals, verdicts and margins; fronts of any quality against any cost; the same seeds of every
recipe; composition, set-up costs, environment; and what every word and label means. See docs/review.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accel import __version__
from accel.benches.options import parser
from accel.cli.listing import meaning
from accel.errors import ConfigError
from accel.files import write_atomic
from accel.records import Results
from accel.results.report.page import page


def main(words: Sequence[str]) -> int:
    """`accel report <study> ... [--to <file>]`; prints the file written."""
    options = parser(__doc__, "report")
    options.add_argument("studies", nargs="+", metavar="study")
    options.add_argument("--to", help="the file to write (default: <results>/report_<studies>.html)")
    args = options.parse_intermixed_args(words)
    results, path = Results(args.results), _target(args)
    write_atomic(path, page(results, args.studies, meaning, __version__).encode())
    print(path)
    return 0


def _target(args) -> Path:
    if args.to is None:
        name = args.studies[0] if len(set(args.studies)) == 1 else "studies"
        return Path(args.results) / f"report_{name}.html"
    path = Path(args.to)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise ConfigError(f"--to is {args.to!r}; allowed: a file to write that ends in .html.")
    return path
