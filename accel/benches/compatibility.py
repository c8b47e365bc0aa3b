"""What composes with what: generated from the methods' own checks, for every pair of config choices of two axes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from torch import nn

from accel.benches.options import parser
from accel.config import AXES, choice_of, groups
from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError
from accel.files import write_atomic
from accel.records import Results
from accel.students import KINDS
from accel.suites.base import Suite
from accel.suites.digits import DigitsSuite
from accel.suites.mixture import MixtureSuite

Method = tuple[str, str]  # axis, choice
# Nothing to try before a search, or a training, has run.
UNTRAINED = ("ect2", "guided2", "reflow", "reflow1")
OTHERS = ("pd4_cfg3", "pd2_cfg3", "dmd4_cfg3", "guided3")  # students of suites that this table is not of
# What no suite of this table has, of pixels all of them: a decoder.
NOT_HERE = (("grid", "searched"), *(("student", name) for name in (*UNTRAINED, *OTHERS)), ("decoder", "tiny"))


def methods() -> list[Method]:
    """Every registered method: the YAML files of the axes' config groups."""
    known = groups()
    return [(axis, choice) for axis in AXES for choice in known[axis] if choice != "none"]


def recipe_with(*chosen: Method, sampler: str = "dpmpp_2m"):
    """Recipe of the chosen methods at their defaults; `sampler` unless one is chosen."""
    if student := dict(chosen).get("student"):
        sampler = KINDS[choice_of("student", student).kind].use[0]
    axes = {"sampler": sampler} | dict(chosen)
    recipe = Recipe(**{axis: choice_of(axis, choice) for axis, choice in axes.items()})
    # Lists say how many steps there are; samplers of one step choose their own.
    steps = len(getattr(recipe.grid, "timesteps", ()) or getattr(recipe.cache, "table", ()))
    if steps and recipe.sampler.steps not in (1, steps):
        recipe = replace(recipe, sampler=replace(recipe.sampler, steps=steps))
    return recipe


def refusal(pipe: Any, models: Mapping[str, nn.Module], *chosen: Method) -> str | None:
    """Why the methods cannot work together on this pipeline, or None if they can (where what they need is there)."""
    try:
        recipe_with(*chosen).check(pipe, models, machine=False)
    except (IncompatibleError, ConfigError) as error:
        return str(error)
    return None


def table(suite: Suite) -> str:
    """Markdown matrix of all pairs: `yes`, or the number of the reason below.

    Rows are all methods; columns are the method alone and every method that is not a sampler, for a recipe has one
    sampler. Blank: two methods of one axis.
    """
    known, reasons = [m for m in methods() if m not in NOT_HERE], []
    partners = [m for m in known if m[0] != "sampler"]
    pipe, models = suite.pipeline(), suite.networks()

    @cache
    def refused(pair: frozenset[Method]) -> str | None:
        return refusal(pipe, models, *sorted(pair))

    def cell(*pair: Method) -> str:
        if len(pair) == 2 and pair[0][0] == pair[1][0]:
            return ""
        reason = refused(frozenset(pair))
        if reason is None:
            return "yes"
        if reason not in reasons:
            reasons.append(reason)
        return f"no ({reasons.index(reason) + 1})"

    columns = ["alone", *(choice for _, choice in partners)]
    lines = [f"| {suite.name} | " + " | ".join(columns) + " |", "|:--" * (len(columns) + 1) + "|"]
    for one in known:
        cells = [cell(one), *(cell(one, other) for other in partners)]
        lines.append(f"| **{one[1]}** | " + " | ".join(cells) + " |")
    notes = [f"{i + 1}. {reason}" for i, reason in enumerate(reasons)]
    return "\n".join([*lines, "", *notes]) + "\n"


HEAD = """# What composes with what

Generated from the methods' own checks at their default settings, and tested: every accepted pair runs on `digits`,
every refused one raises before anything runs (tests/test_contract.py). A sampler does not meet another one, so that
samplers are rows only. Which optional packages or devices a method needs is not asked here.

"""


def main(words: Sequence[str]) -> None:
    """`accel bench compatibility`: tables/compatibility.md."""
    args = parser(__doc__, "bench compatibility").parse_args(words)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    text = HEAD + "\n".join(table(suite) for suite in (DigitsSuite(), MixtureSuite()))
    path = Results(args.results).root / "tables" / "compatibility.md"
    write_atomic(path, text.encode())
    print(path)
