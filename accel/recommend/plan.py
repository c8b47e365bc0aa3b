"""How the time of a recommendation is divided: a search, the evaluation of what it found on fresh seeds, and times.

Everything is an upper bound by the seconds that a row of the denoiser takes here and now, so that N and the search's
budget can be said before anything runs. They are kept beside the results: the same request again, after an
interruption, is the same study, however fast the machine is then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accel.errors import ConfigError, IntegrityError
from accel.evaluation.intervals import LEAST
from accel.evaluation.timing import STAGE_CALLS
from accel.locks import locked
from accel.recommend.precisions import Rates
from accel.records import digest, read_json, write_json
from accel.studies.evaluation import MIN_N, Evaluation
from accel.studies.study import TOGETHER

SEARCH, VALIDATE, TIME = 0.42, 0.42, 0.16  # of the budget
FRONT = 4  # recipes that are validated, each with controls of equal cost
SHARE = 0.4  # what one of them costs of today's recipe, and its controls together as much
TIMED = 3 * FRONT  # they, and their controls of equal MACs and of equal time
BATCHES = (8, 4, 2, 1)  # images in one call that is timed, as there is time
MOST_N, COMPARED = 2000, 128
CANDIDATES = 40  # that a search should get to see
RUNGS = (64, 32, 16, 8, 4)  # samples of a candidate at first


@dataclass(frozen=True)
class Division:
    """`n` samples of each validated recipe, `distance_n` of them compared with converged ones; `nfe` evaluations of the
    search, whose candidates begin with `first` samples; `seconds` of all that at most; `precisions`: what each of them
    was found to cost. `row`: seconds of one evaluation for one image, which it rests on; `validation`: evaluations of
    what is validated. Times: `least` to `most` rounds at `timing_batch` images a call, within `timing` seconds."""

    n: int
    distance_n: int
    nfe: int
    first: int
    seconds: float
    precisions: Rates = field(default_factory=Rates)
    row: float = 0.0
    validation: int = 0
    timing_batch: int = BATCHES[-1]
    least: int = Evaluation.repetitions
    most: int = Evaluation.most_repetitions
    timing: float = 0.0


def divide(
    budget: float, row: float, today: int, converged: int, most: int = MOST_N, precisions: Rates | None = None
) -> Division:
    """`budget`: seconds; `row`: seconds of a denoiser row; `today`, `converged`: rows an image of today's recipe and of
    the converged one; `most`: samples that there can be; `precisions`: what was measured of them, whose compilations
    are taken from the budget. ConfigError if N would be too small to say anything."""
    precisions = precisions or Rates()
    budget -= precisions.compiling

    def cost(n: int) -> float:
        return n * today * (1 + 2 * FRONT * SHARE) + min(n, COMPARED) * converged

    rows = VALIDATE * budget / row
    n = min(most, MOST_N, int((rows - COMPARED * converged) / (cost(1) - converged)))
    if n < COMPARED:
        n = min(most, MOST_N, int(rows / cost(1)))
    if n < MIN_N:
        needed = cost(MIN_N) * row / VALIDATE
        raise ConfigError(
            f"budget leaves N = {max(n, 0)} samples for each validated recipe, and less than {MIN_N} say nothing; at "
            f"{row:.3g} s an evaluation of the denoiser give budget={needed / 60 + 1:.0f}m, fewer steps=, or a smaller "
            "image size."
        )
    n -= n % 10 if n > 100 else 0
    nfe = int(SEARCH * budget / row)
    first = next((f for f in RUNGS if nfe >= 4 * f * converged + CANDIDATES * 2 * f * SHARE * today), RUNGS[-1])
    batch, least, rounds, timing = timed(TIME * budget, row * today)
    seconds = (cost(n) + nfe) * row + timing + precisions.compiling
    return Division(
        n, min(n, COMPARED), nfe, first, round(seconds, 1), precisions, row, round(cost(n)), batch, least, rounds,
        round(timing, 1),
    )  # fmt: skip


def timed(seconds: float, image: float) -> tuple[int, int, int, float]:
    """Images in a call that is timed, the least and the most rounds, and the seconds that they take at most: the
    largest batch that has time for the rounds that every study takes at least. `image`: seconds of today's recipe.

    A round visits today's recipe and up to TOGETHER others twice. One warms up; then each recipe's stages are timed."""
    others = TIMED * SHARE
    one = 2 * image * (math.ceil(TIMED / TOGETHER) + others)
    beside = one + STAGE_CALLS * image * others
    for batch in BATCHES:
        most = int((seconds / batch - beside) / one)
        if most >= Evaluation.repetitions:
            break
    most = min(max(most, LEAST), Evaluation.most_repetitions)
    return batch, min(most, Evaluation.repetitions), most, batch * (most * one + beside)


def known(root: Path, request: Mapping[str, Any]) -> Division | None:
    """The division of this request that is kept below a results folder; None if none is."""
    path = _path(root, request)
    if not path.exists():
        return None
    try:
        found = read_json(path)
        own = Division(**{f.name: found[f.name] for f in fields(Division) if f.name in found})
        return replace(own, precisions=Rates(**found["precisions"]))
    except (IntegrityError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it, and the plan is made anew.") from error


def kept(root: Path, request: Mapping[str, Any], made: Division) -> Division:
    """The same; `made`, which is kept now, if there is none."""
    path = _path(root, request)
    with locked(path.with_suffix(".lock")):
        if (found := known(root, request)) is not None:
            return found
        write_json(path, asdict(made))
    return made


def _path(root: Path, request: Mapping[str, Any]) -> Path:
    return root / "artefacts" / "recommend" / f"{digest(dict(request))}.json"
