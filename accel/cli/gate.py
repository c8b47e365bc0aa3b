"""May a recipe take the place of another one? For CI: both on common seeds, judged as every table judges.

    accel gate baseline.yaml candidate.yaml                            the verdicts, as Markdown
    accel gate baseline.yaml candidate.yaml --to gate.md               for a comment on a pull request
    accel gate baseline.yaml candidate.yaml --n 2000 --margin fid=0.05 --margin clip_score=0.3

Refuses recipes of different models. Exit codes: 0 pass (non-inferior in every value), 1 fail (worse in one), 3
undecided, 2 the request is wrong. See docs/deploy.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from accel.benches.options import Parser
from accel.core.silence import silence_libraries
from accel.deploy.gate import FAIL, PASS, UNDECIDED, markdown, run_gate
from accel.deploy.suite_words import check_words
from accel.errors import ConfigError, DivergedError, check_int, unknown
from accel.files import write_atomic
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.studies.evaluation import MIN_N, WHY_N

CODES = {PASS: 0, FAIL: 1, UNDECIDED: 3}


def main(words: Sequence[str]) -> int:
    """`accel gate <baseline> <candidate>`; prints or writes a Markdown table. 0 pass, 1 fail, 3 undecided."""
    options = Parser(__doc__, "gate")
    options.add_argument("baseline", help="the folder of a recipe, or its .yaml file")
    options.add_argument("candidate", help="the same of the recipe that is to take its place")
    options.add_argument("suite", nargs="*", help="suite=... suite.<setting>=..., in the place of what the file says")
    options.add_argument("--n", type=int, default=500, help="samples of each (default: 500)")
    options.add_argument("--seed", type=int, help="base seed (default: the first that neither was measured on)")
    options.add_argument(
        "--margin", action="append", default=[], metavar="VALUE=NUMBER",
        help="largest loss that still passes, in the place of the baseline file's; again for further values",
    )  # fmt: skip
    options.add_argument("--to", help="a file for the Markdown (default: print it)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    options.add_argument("--results", help="keep samples and records in this folder, so that a later run is sooner")
    args = options.parse_intermixed_args(words)
    check_words(args.suite, "accel gate")
    check_int("--n", args.n, MIN_N, why=WHY_N)
    if args.seed is not None:
        check_int("--seed", args.seed, 0)
    if args.to and Path(args.to).is_dir():
        raise ConfigError(f"--to is {args.to!r}, a folder; allowed: a file to write, such as gate.md.")
    margins = dict(map(_margin, args.margin))
    silence_libraries()
    paths = Path(args.baseline), Path(args.candidate)
    with tempfile.TemporaryDirectory(prefix="accel-gate-") as own:
        results = Results(args.results or own)
        try:
            gate = run_gate(*paths, results, args.suite, args.device, args.n, args.seed, margins)
            outcome, said = gate.outcome, markdown(gate)
        except DivergedError as error:  # the candidate's
            outcome, said = FAIL, f"**Gate: {FAIL}**: {error}\n"
    if args.to:
        write_atomic(Path(args.to), said.encode())
        print(f"{outcome}: {args.to}")
    else:
        print(said, end="")
    return CODES[outcome]


def _margin(word: str) -> tuple[str, float]:
    name, _, value = word.partition("=")
    known = [field.name for field in fields(Margins)]
    if name not in known:
        raise unknown("value of --margin", name, known)
    try:
        return name, float(value)
    except ValueError:
        raise ConfigError(f"--margin {word}: {value!r} is no number; write --margin {name}=<number>.") from None
