"""Find the threshold of a recipe's method on its own model: adaptive guidance (ag), diffusers' FirstBlockCache and
MagCache, TeaCache, EasyCache, SeaCache, learned routers (l2c, harmonica), and any other method that has one.

    accel threshold fast                     quantiles of the residual, what each value saves and costs, the knee
    accel threshold fast --quality --n 500   and the most saving value that stays inside the margins
    accel threshold fast --axis cache        of a recipe with several: which

The recipe file says the method; its own threshold is only shown. Nothing is learned again. See docs/deploy.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from accel.benches.options import Parser
from accel.core.silence import silence_libraries
from accel.deploy.gate import PASS, margins_of
from accel.deploy.opened import Opened, open_recipe
from accel.deploy.suite_words import check_words
from accel.deploy.threshold import QUANTILES, Curve, curve, inside_margins
from accel.errors import check_int
from accel.records import Results
from accel.results.text import significant
from accel.studies.evaluation import MIN_N, WHY_N


def main(words: Sequence[str]) -> int:
    """`accel threshold <recipe>`; prints the quantiles, a table of thresholds, and what to choose."""
    options = Parser(__doc__, "threshold")
    options.add_argument("recipe", help="the folder of a recipe, or its .yaml file")
    options.add_argument("suite", nargs="*", help="suite=... suite.<setting>=..., in the place of what the file says")
    options.add_argument("--axis", help="guidance, cache ...: whose threshold, where the recipe has several")
    options.add_argument("--samples", type=int, default=16, help="samples for the curve (default: 16)")
    options.add_argument("--batch", type=int, default=8, help="images in one call of the pipeline (default: 8)")
    options.add_argument("--seed", type=int, default=0, help="base seed (default: 0)")
    options.add_argument("--quality", action="store_true", help="score candidates, the most saving first")
    options.add_argument("--n", type=int, default=500, help="samples of each for the quality (default: 500)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    options.add_argument("--results", help="keep samples and records in this folder, so that a later run is sooner")
    args = options.parse_intermixed_args(words)
    check_words(args.suite, "accel threshold")
    check_int("--samples", args.samples, 1)
    check_int("--batch", args.batch, 1)
    check_int("--seed", args.seed, 0)
    check_int("--n", args.n, MIN_N, why=WHY_N)
    silence_libraries()
    opened = open_recipe(args.recipe, args.suite, args.device)
    found = curve(opened, args.samples, args.batch, args.seed, args.axis)
    _tell(found, args.samples)
    if args.quality:
        with tempfile.TemporaryDirectory(prefix="accel-threshold-") as own:
            _tell_quality(opened, found, Results(args.results or own), args.n, args.seed)
    return 0


def _tell(found: Curve, samples: int) -> None:
    own, rule = found.tunable, found.tunable.rule
    seen = f"; the first {samples} samples, while nothing is saved" if rule.of_images else ""
    print(f"{rule.residual}{seen}")
    shares = zip(QUANTILES, found.quantiles, strict=True)
    print("  ".join(f"{share:.0%}: {significant(value, 4)}" for share, value in shares))
    side = "below" if rule.rising else "above"
    print(f"A threshold {side} every residual ({significant(found.easiest, 4)}) never hits: nothing is saved.")
    print(f"\n{own.setting:<26}hits   MACs saved  RMS distance to the recipe without it")
    for point in found.points:
        mark = "  knee" if point is found.knee else ""
        print(f"{point.threshold:<26.6g}{point.hits:<7.0%}{point.saved:<12.1%}{significant(point.distance)}{mark}")
    never = f", which is {side} every residual and never hits" if found.never else ""
    knee = f"; knee: {found.knee.threshold:g}" if found.knee else ""
    print(f"\nthe file has {own.setting}={rule.value:g}{never}{knee}")


def _tell_quality(opened: Opened, found: Curve, results: Results, n: int, seed: int) -> None:
    margins = margins_of(opened.saved, opened.suite.fid_margin, {})
    chosen = None
    for point, gate in inside_margins(opened, found, results, margins, n, seed):
        said = ", ".join(f"{key} {word}" for key, word in gate.words.items())
        print(f"{found.tunable.setting}={point.threshold:g}: {gate.outcome} ({said}; N = {n})", flush=True)
        chosen = point if gate.outcome == PASS else None
    if chosen is None:
        print("no candidate that saves anything stays inside the margins; more samples (--n) may decide.")
    else:
        print(f"inside the margins, and the most saving: {found.tunable.setting}={chosen.threshold:g}")
