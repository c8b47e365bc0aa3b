"""Check that a recipe file still holds, on the model that it was measured on and on this machine:

    accel verify fast                            files, model, first images, quality at the recorded N, speed-up
    accel verify fast --n 100 --no-speed         sooner: at another N against the baseline of its study
    accel verify fast --no-quality --no-speed    in a moment: files, model, images
    accel verify fast suite.model=<folder>       where the model is, if that is not where the file says

A line a check: ok, failed, or skipped with the reason. Exit codes: 0 verified, 1 failed, 2 the request is wrong. See
docs/deploy.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import Parser
from accel.core.silence import silence_libraries
from accel.deploy.first_images import TOLERANCE
from accel.deploy.suite_words import check_words
from accel.deploy.verify import FAILED, Verification
from accel.errors import check_float, check_int
from accel.records import Results
from accel.studies.evaluation import MIN_N, WHY_N


def main(words: Sequence[str]) -> int:
    """`accel verify <recipe>`; prints a line a check. 1 if one failed."""
    options = Parser(__doc__, "verify")
    options.add_argument("recipe", help="the folder of a recipe, or its .yaml file")
    options.add_argument("suite", nargs="*", help="suite=... suite.<setting>=..., in the place of what the file says")
    options.add_argument("--n", type=int, help="samples of each seed for the quality (default: as recorded)")
    options.add_argument("--no-quality", action="store_true", help="make no samples beyond the first images")
    options.add_argument("--no-speed", action="store_true", help="time nothing")
    options.add_argument(
        "--tolerance", type=float, default=TOLERANCE,
        help=f"RMS difference, on -1..1, of images that were recorded elsewhere (default: {TOLERANCE})",
    )  # fmt: skip
    options.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    options.add_argument("--results", help="keep samples in this folder, so that an interrupted run resumes")
    args = options.parse_intermixed_args(words)
    check_words(args.suite, "accel verify")
    if args.n is not None:
        check_int("--n", args.n, MIN_N, why=WHY_N)
    check_float("--tolerance", args.tolerance, 0.0)
    silence_libraries()
    failed, label = [], args.recipe
    with tempfile.TemporaryDirectory(prefix="accel-verify-") as own:
        n = 0 if args.no_quality else args.n
        request = Verification(
            Path(args.recipe), Results(args.results or own), args.suite, args.device, n, not args.no_speed,
            args.tolerance,
        )  # fmt: skip
        for check in request.checks():
            print(check, flush=True)
            failed += [check.name] if check.outcome == FAILED else []
    print(f"failed: {label} ({', '.join(dict.fromkeys(failed))})" if failed else f"verified: {label}")
    return 1 if failed else 0
