"""Save a view of a wandb project that holds runs of accel, with panels for what recipes differ in:

    accel workspace team/accel                     saves it online, and prints where it is
    accel workspace team/accel --dry-run           prints what would be saved, as JSON; no network
    accel workspace team/accel --to view.json      writes that to a file

Parallel coordinates of axes and values, quality against cost, samples, fronts; runs by study. Needs the extra
`workspace`. Every save is a new view. See docs/review.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import Parser
from accel.errors import ConfigError
from accel.files import write_atomic
from accel.results.workspace import described, save, workspace


def main(words: Sequence[str]) -> int:
    """`accel workspace <entity>/<project>`; prints the address of the view, what it would be, or the file."""
    options = Parser(__doc__, "workspace")
    options.add_argument("project", help="<entity>/<project>, as in the address of its page")
    options.add_argument("--name", default="accel", help="what the view is called (default: accel)")
    options.add_argument("--dry-run", action="store_true", help="print the view as JSON; nothing is sent")
    options.add_argument("--to", help="a .json file to write the view to; nothing is sent")
    args = options.parse_intermixed_args(words)
    if args.to is not None and (Path(args.to).suffix.lower() != ".json" or Path(args.to).is_dir()):
        raise ConfigError(f"--to is {args.to!r}; allowed: a file to write that ends in .json.")
    view = workspace(args.project, args.name)
    text = json.dumps(described(view), indent=1)
    if args.to is not None:
        write_atomic(Path(args.to), f"{text}\n".encode())
    if args.to is None and not args.dry_run:
        print(save(view))
    else:
        print(text if args.to is None else args.to)
    return 0
