"""Make a recipe file of a row of a study, with what was measured, its artefacts and the digests of its model:

    accel recipe demo "dpmpp_2m-10@t_quadratic + tstitch60%" --results results --to fast
    accel recipe my_study "ddim-10 + cfg3" --to fast suite=hub suite.model=<folder> ...   the suite as it was measured

In Python: accel.apply(pipe, accel.load_recipe("fast")). The row is named as the table has it, or by its record's id.
See docs/deploy.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from accel.benches.options import parser
from accel.core.devices import resolved
from accel.core.silence import silence_libraries
from accel.deploy.first_images import COUNT, first_samples
from accel.deploy.measured import Measured, of_row
from accel.deploy.model import file_differences
from accel.deploy.opened import NAME_IT
from accel.deploy.recipe_file import save_recipe
from accel.deploy.suite_words import check_words, suite_of
from accel.errors import ConfigError, IncompatibleError, check_int
from accel.records import Results


def main(words: Sequence[str]) -> int:
    """`accel recipe <study> <row> --to <folder>`; prints the file written."""
    options = parser(__doc__, "recipe")
    options.add_argument("study")
    options.add_argument("row", help="its recipe, as the table has it, or the id of its record")
    options.add_argument("suite", nargs="*", help="suite=... suite.<setting>=..., where they are not the defaults")
    options.add_argument("--to", required=True, help="the folder to write")
    options.add_argument(
        "--without-model", action="store_true", help="keep the sha256 of its files alone; load nothing"
    )
    options.add_argument("--images", type=int, default=COUNT, help=f"first images to keep (default: {COUNT}; 0: none)")
    options.add_argument("--device", default="auto", help="where to make them: auto, cpu, cuda ...")
    args = options.parse_intermixed_args(words)
    check_int("--images", args.images, 0)
    silence_libraries()
    measured = of_row(Results(args.results), args.study, args.row)
    count, device = args.images, resolved(args.device, "--device")
    about: Mapping[str, Any] = {} if args.without_model else _model(measured, args.suite, count, device)
    path = save_recipe(
        measured.recipe,
        args.to,
        artefacts=measured.artefacts,
        measured=measured.said,
        files=measured.weights,
        **about,
    )
    print(path)
    return 0


def _model(measured: Measured, words: Sequence[str], count: int, device: str) -> dict[str, Any]:
    """Pipeline and networks of the suite that the row was measured on, and its first images. ConfigError if it is
    another model."""
    check_words(words, "accel recipe")
    suite = suite_of(words, measured.suite, f"{NAME_IT}, or add --without-model")
    if said := file_differences(measured.weights, suite.model_fingerprint()):
        raise ConfigError(
            f"the row was measured on another model than that of suite {suite.name!r} as it is here: "
            f"{'; '.join(said)}. Name the suite as it was measured: suite=... suite.model=..., or add --without-model."
        )
    pipe, models = suite.ready(device), suite.networks().to(device)
    found = {"pipe": pipe, "models": models, "suite": words}
    if count:
        seed = measured.said["seeds"][0]
        try:
            found["samples"] = first_samples(pipe, suite, measured.recipe, models, measured.artefacts, seed, count)
        except IncompatibleError as error:  # measured on another machine
            print(f"without its first images: {error}", file=sys.stderr)
    return found
