"""Whether a recipe file still holds: its files, its model, its first images, its quality, its speed.

Each check is one line. What cannot be compared here is *skipped*, with the reason, and is no failure: a file without
images, a machine that differs. Quality at the recorded N is that of the same samples, so each value may be worse by its
margin at most (without a margin: by half its interval). At another N a FID is another number: then the recipe is held
against the baseline of its study on common seeds, and may be *worse* in no value in which it was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accel.core.environment import device_name
from accel.core.recipe import Recipe
from accel.deploy.first_images import TOLERANCE, first_samples, furthest
from accel.deploy.methods import recipe_of
from accel.deploy.opened import Opened, opened
from accel.deploy.recipe_file import OtherModelError, SavedRecipe, load_recipe
from accel.deploy.samples import elsewhere, made_in
from accel.deploy.saved_runner import SavedRunner, compared
from accel.errors import AccelError, ConfigError, DivergedError, IntegrityError
from accel.evaluation.timing import time_recipes
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.results.comparison import HIGHER
from accel.results.text import device_text, interval, significant
from accel.studies.evaluation import MIN_N, Evaluation

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
FAULTS = (IntegrityError, OtherModelError, DivergedError)  # of the recipe; all other errors are of the request
WORSE = "worse"


@dataclass(frozen=True)
class Check:
    """One line of the report: `outcome` is ok, failed or skipped."""

    name: str
    outcome: str
    said: str

    def __str__(self) -> str:
        return f"{self.outcome:<8} {self.name:<8} {self.said}"


@dataclass(frozen=True)
class Verification:
    """What to check: of `path`, on the suite that it names with `words`, on `device`. `n`: samples of each seed for the
    quality (None: as many as were recorded; 0: not at all); `speed`: whether to time it. `tolerance`: of images that
    were made elsewhere. `results`: a folder in which samples are kept.

    ConfigError or IncompatibleError where the request is wrong: no file, another schema, no such device.
    """

    path: Path
    results: Results
    words: Sequence[str] = ()
    device: str = "auto"
    n: int | None = None
    speed: bool = True
    tolerance: float = TOLERANCE

    def checks(self) -> Iterator[Check]:
        """The checks one by one, as each ends; after a file or a model that is not the recipe's there are no more."""
        saved = None
        try:
            saved = load_recipe(self.path)
        except AccelError as error:
            yield _failed("file", error)
        if saved is None:
            return
        held = len(saved.artefacts or {}) + (saved.samples is not None)
        yield Check("file", OK, f"{saved.recipe.label}, saved by accel {saved.accel}, is whole; {held} files beside it")
        found = opened(saved, self.path, self.words, self.device)
        model = _model(found)
        yield model
        if model.outcome == FAILED:
            return
        found.check()
        _check_shown(found)
        yield self._images(found)
        yield self._quality(found)
        yield from self._speed(found)

    def _images(self, found: Opened) -> Check:
        saved = found.saved
        kept = saved.samples
        if kept is None:
            return Check("images", SKIPPED, "the file has none; `accel recipe` writes them")
        given = found.models, saved.artefacts, kept.seed, len(kept.images)
        try:
            made = first_samples(found.pipe, found.suite, saved.recipe, *given)
        except DivergedError as error:
            return _failed("images", error)
        if made.digests == kept.digests:
            return Check("images", OK, f"{len(kept.images)} images are the recorded ones, byte for byte")
        differ, far = elsewhere(kept.environment, made_in(found.device)), furthest(made.images, kept.images)
        where = "; ".join(differ) or f"nothing of the environment differs ({device_name(found.device)})"
        said = f"at most {far:.2g} off (RMS on -1..1; allowed: {self.tolerance:g}), not byte for byte: {where}"
        near = far <= self.tolerance and (bool(differ) or found.device != "cpu")
        return Check("images", OK if near else FAILED, said)

    # quality -----------------------------------------------------------------------------------------------------

    def _quality(self, found: Opened) -> Check:
        said, seeds = found.saved.measured, tuple(found.saved.measured.get("seeds", ()))
        if self.n == 0:
            return Check("quality", SKIPPED, "not asked for")
        if not said.get("values") or not seeds:
            return Check("quality", SKIPPED, "the file has no values")
        recorded = said["n"] // len(seeds)
        n = self.n or recorded
        margins = Margins.from_dict(said.get("margins"))
        distance = said["values"].get("distance", {}).get("n", 0) // len(seeds)
        compared = MIN_N if margins.gates(said["values"]) else max(MIN_N, min(distance, n))
        evaluation = Evaluation(n=n, seed=seeds, distance_n=compared, timing=False, device=found.device)
        runner = SavedRunner(found, evaluation, self.results)
        try:
            if n == recorded:
                return _as_recorded(runner.quality(found.saved.recipe), said["values"], margins)
            base = _baseline(found.saved)
            if base is None:
                raise ConfigError(
                    f"--n {n}: the file does not say what the recipe was held against, so its values compare at "
                    f"N = {recorded} of each seed alone; leave --n out, or use --no-quality."
                )
            own, other = runner.quality(found.saved.recipe), runner.quality(base)
        except DivergedError as error:
            return _failed("quality", error)
        return _as_against(own, other, margins, said["against"].get("differences", {}))

    # speed -------------------------------------------------------------------------------------------------------

    def _speed(self, found: Opened) -> Iterator[Check]:
        timed, base = found.saved.measured.get("speed", []), _baseline(found.saved)
        here = device_name(found.device), torch.get_num_threads()
        if not self.speed:
            yield Check("speed", SKIPPED, "not asked for")
        elif not timed or base is None:
            why = "no speed-up" if not timed else "not the baseline of its speed-up, which newer files have"
            yield Check("speed", SKIPPED, f"the file has {why}")
        elif not (same := [one for one in timed if (one["device"], one["threads"]) == here]):
            then = sorted({device_text((one["device"], one["threads"], one["batch"])) for one in timed})
            said = f"it was timed on {' and '.join(then)}; here are {here[0]}, {here[1]} threads: nothing to compare"
            yield Check("speed", SKIPPED, said)
        else:
            for one in same:
                yield _timed(found, base, one)


def _failed(name: str, error: AccelError) -> Check:
    """A failed check for a fault of the recipe; any other error is raised again."""
    if not any(isinstance(reason, FAULTS) for reason in error.reasons or (error,)):
        raise error
    return Check(name, FAILED, " ".join(str(error).split()))


def _model(found: Opened) -> Check:
    """Whether suite and networks are what the recipe was measured on."""
    about = found.saved.model
    if not about:
        return Check("model", SKIPPED, "the file says nothing of a model")
    try:
        found.saved.check_suite(found.suite)
        pipe = found.pipe
    except AccelError as error:
        return _failed("model", error)
    counts = f"{len(about.get('files', {}))} files and settings, {len(about.get('networks', {}))} networks"
    return Check("model", OK, f"suite {found.suite.name}, {type(pipe).__name__}: {counts} are the recorded ones")


def _check_shown(found: Opened) -> None:
    """ConfigError for a suite that shows, or compares with, other things than when the recipe was measured."""
    then = found.saved.model.get("files", {}).get("prompts"), found.saved.measured.get("reference", {}).get("sha256")
    here = found.suite.fingerprint().get("prompts"), (found.suite.reference_identity() or {}).get("sha256")
    for what, own, other in zip(("prompts", "reference images"), then, here, strict=True):
        if own is not None and own != other:
            raise ConfigError(
                f"suite {found.suite.name!r} has other {what} than the recipe was measured with (sha256 {own[:12]} "
                f"then, {(other or 'nothing')[:12]} here); name the suite as it was measured: suite.<setting>=..."
            )


def _baseline(saved: SavedRecipe) -> Recipe | None:
    """What the recipe was held against, where its file says so."""
    data = saved.measured.get("against", {}).get("recipe")
    return None if data is None else recipe_of(data, {})


def _as_recorded(record: Mapping[str, Any], recorded: Mapping[str, Any], margins: Margins) -> Check:
    """Values of the same samples: none may be worse than the recorded one by more than its margin."""
    keys = [key for key in margins.gates(recorded) or ("distance",) if key in recorded]
    if lacking := [key for key in keys if key not in record["values"]]:
        raise ConfigError(
            f"{', '.join(lacking)} was measured, and suite {record['suite']!r} does not have it as it is here; name "
            "the suite as it was measured, or use --no-quality."
        )
    told, lost = [], []
    for key in keys:
        own, then = record["values"][key]["value"], recorded[key]["value"]
        margin = margins.of(key, then)
        allowed = (recorded[key]["hi"] - recorded[key]["lo"]) / 2 if margin is None else margin
        loss = then - own if key in HIGHER else own - then
        told.append(f"{key} {significant(own, 4)} (was {significant(then, 4)}, may lose {significant(allowed, 2)})")
        lost += [key] if not loss <= allowed else []
    if not keys:
        return Check("quality", SKIPPED, "the file has no value with a margin")
    said = f"N = {record['n']}: {', '.join(told)}"
    return Check("quality", FAILED, f"{said}: lost {', '.join(lost)}") if lost else Check("quality", OK, said)


def _as_against(
    own: dict[str, Any], base: dict[str, Any], margins: Margins, recorded: Mapping[str, Mapping[str, Any]]
) -> Check:
    """Paired verdicts against the baseline at another N: none may be worse that was not."""
    study = compared(base, own, margins)
    row, other = study.rows[1], study.rows[0]
    words = {key: study.verdict(row, other, key) for key in study.gates or ("distance",)}
    lost = [key for key, word in words.items() if word == WORSE and recorded.get(key, {}).get("verdict") != WORSE]
    said = ", ".join(f"{key} {word} (was {recorded.get(key, {}).get('verdict', '?')})" for key, word in words.items())
    return Check("quality", FAILED if lost else OK, f"N = {own['n']}, against {base['label']}: {said}")


def _timed(found: Opened, base: Recipe, then: Mapping[str, Any]) -> Check:
    """Whether the speed-up is as recorded: not wholly below the recorded interval."""
    saved = found.saved
    made = time_recipes(
        found.pipe, found.suite, [saved.recipe], base, models=found.models, artefacts=[saved.artefacts],
        batch=then["batch"],
    )[0]["speedup"]  # fmt: skip
    said = f"batch {then['batch']}: {interval(made)} times as fast as {base.label} (was {interval(then['speedup'])})"
    return Check("speed", FAILED if made["hi"] < then["speedup"]["lo"] else OK, said)
