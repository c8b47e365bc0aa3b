"""Make a recipe file of a row of a study, with what was measured, its artefacts and the digests of its model:

    accel recipe demo "dpmpp_2m-10@t_quadratic + tstitch60%" --results results --to fast
    accel recipe my_study "ddim-10 + cfg3" --to fast suite=hub suite.model=<folder> ...   the suite as it was measured

In Python: accel.apply(pipe, accel.load_recipe("fast")). The row is named as the table has it, or by its record's id.
See docs/deploy.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accel.benches.options import parser
from accel.config import compose, groups, instantiate
from accel.deploy.measured import Measured, of_row
from accel.deploy.model import file_differences
from accel.deploy.recipe_file import save_recipe
from accel.errors import ConfigError
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
    args = options.parse_intermixed_args(words)
    measured = of_row(Results(args.results), args.study, args.row)
    about: Mapping[str, Any] = {} if args.without_model else _model(measured, args.suite)
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


def _model(measured: Measured, words: Sequence[str]) -> dict[str, Any]:
    """Pipeline and networks of the suite that the row was measured on. ConfigError if it is another model."""
    if strange := [word for word in words if not word.startswith(("suite=", "suite.", "+suite."))]:
        raise ConfigError(f"accel recipe takes settings of the suite, and {strange[0]!r} is none; leave it out.")
    if not words and measured.suite not in groups()["suite"]:
        raise ConfigError(
            f"the row is of suite {measured.suite!r}, which has no file in conf/suite; name the suite as it was "
            "measured: suite=... suite.model=..., or add --without-model."
        )
    suite = instantiate(compose(list(words) or [f"suite={measured.suite}"])["suite"])
    if said := file_differences(measured.weights, suite.fingerprint()):
        raise ConfigError(
            f"the row was measured on another model than that of suite {suite.name!r} as it is here: "
            f"{'; '.join(said)}. Name the suite as it was measured: suite=... suite.model=..., or add --without-model."
        )
    return {"pipe": suite.pipeline(), "models": suite.networks()}
