"""The samples of a run: ids, calibration, shards, the converged trajectory. What is there is not generated again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch

from accel.core.devices import device_lock
from accel.core.environment import environment, provenance
from accel.core.recipe import Recipe, accelerate
from accel.digests import weights_hex
from accel.errors import ConfigError, IncompatibleError, IntegrityError, Refusals
from accel.evaluation.generate import generate
from accel.evaluation.score import EPOCH, score_images
from accel.evaluation.shards import ShardStore
from accel.files import load_tensors
from accel.locks import locked
from accel.records import Results, describe, digest
from accel.studies.calibration import Calibration
from accel.studies.evaluation import Evaluation
from accel.suites.base import Networks, Suite


def quiet(message: str) -> None:
    """The default listener for messages: nothing."""


def _check_pooled(suite: Suite, evaluation: Evaluation) -> None:
    cut = len(evaluation.seeds) > 1 and evaluation.n % suite.period
    if cut and suite.strata(suite.conditions(0, suite.period)) is not None:
        raise ConfigError(
            f"evaluation.n={evaluation.n} of each of {len(evaluation.seeds)} seeds cuts the conditions of suite "
            f"{suite.name}, which repeat after {suite.period} samples; allowed: multiples of {suite.period}."
        )


def _pooled(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The samples of several seeds one after the other."""
    several = list(parts)
    return {name: torch.cat([part[name] for part in several]) for name in several[0]}


class Samples:
    """Samples of recipes of one suite in one results folder; the pipeline is loaded when it is first needed."""

    def __init__(
        self,
        suite: Suite,
        evaluation: Evaluation,
        results: Results,
        say: Callable[[str], None],
        on_samples: Callable[[int], None],
        on_search: Callable[[int, int], None],
        on_converged: Callable[[int, int], None],
    ) -> None:
        self.suite, self.evaluation, self.results = suite, evaluation, results
        self.say, self.on_samples, self.on_search, self.on_converged = say, on_samples, on_search, on_converged
        self._reported: set[str] = set()
        with Refusals() as refusals:
            self.device = refusals.ask(evaluation.resolve_device)
            if self.device is not None:
                refusals.ask(suite.check_device, self.device)
            refusals.ask(suite.check, evaluation.n)
            refusals.ask(_check_pooled, suite, evaluation)
            self._fingerprint = refusals.ask(suite.fingerprint)

    @cached_property
    def pipe(self) -> Any:
        return self.suite.ready(self.device)

    @cached_property
    def models(self) -> Networks:
        return self.suite.networks().to(self.device)

    @cached_property
    def _classifier(self) -> str | None:
        # It need not be among the weights that a suite's fingerprint is of.
        net = self.suite.classifier()
        return None if net is None else weights_hex(net)

    @cached_property
    def _scoring(self) -> dict[str, Any]:
        used = self.suite.scoring()
        return {"scoring": used} if used else {}

    def check(self, recipe: Recipe) -> None:
        """Raise now, before any work, if this suite cannot run `recipe`."""
        recipe.check(self.pipe, self.models)

    def refusal(self, recipe: Recipe) -> str | None:
        """Why this suite cannot run `recipe`, None if it can: a student of others takes no other steps than its own."""
        try:
            self.check(recipe)
        except IncompatibleError as error:
            return str(error)
        return None

    def about(self, recipe: Recipe, key: str, cost: Mapping[str, Any], setup: float) -> dict[str, Any]:
        """What every record `key` of a recipe says beside its scores: what ran, on what, and its cost."""
        return {
            "kind": "quality",
            "id": key,
            "label": recipe.label,
            "axes": recipe.axes(),
            "suite": self.suite.name,
            "seed": self.evaluation.seeds[0],
            "epoch": EPOCH,
            "simulated": recipe.simulated,
            "recipe": describe(recipe),
            "cost": {k: v for k, v in cost.items() if k != "strip"} | {"setup_s": round(setup, 3)},
            "strip": cost["strip"],
            "samples": self.samples_id(recipe),
            "weights": self._fingerprint,
            "environment": environment(self.device) | provenance() | self.suite.execution(),
        }

    def generation_id(self, recipe: Recipe, seed: int | None = None) -> str:
        """Id of the samples of one base seed (None: the first): everything that changes them but their number. Device
        and batch size are not in it."""
        identity = {"suite": self.suite.name, "weights": self._fingerprint, "recipe": describe(recipe),
                    "seed": self.evaluation.seeds[0] if seed is None else seed}  # fmt: skip
        if recipe.guidance and recipe.guidance.uses_classifier:
            identity["classifier"] = self._classifier
        if recipe.student and (student := self.suite.students().get(recipe.student.model)):
            identity["student"] = dict(student.fingerprint)
        if recipe.decoder and (decoder := self.suite.decoders().get(recipe.decoder.model)):
            identity["decoder"] = dict(decoder.fingerprint)
        return digest(identity)

    def samples_id(self, recipe: Recipe) -> str | list[str]:
        """`generation_id`, or those of all seeds whose samples are pooled."""
        found = [self.generation_id(recipe, seed) for seed in self.evaluation.seeds]
        return found if len(found) > 1 else found[0]

    def find(self, kind: str, key: str) -> dict[str, Any] | None:
        """A record, or None; a damaged one is reported and counts as absent."""
        try:
            return self.results.load(kind, key)
        except IntegrityError as error:
            if key not in self._reported:
                self.say(f"{error} Computing it anew.")
            self._reported.add(key)
            return None

    def shards(
        self, recipe: Recipe, n: int, artefacts: Any = None, on_samples: Callable[[int], None] | None = None
    ) -> dict[str, torch.Tensor]:
        """All tensors of the first n samples of each seed of `recipe`; only missing shards are generated.

        on_samples: is told how many more are there, in place of the runner's own listener."""
        told = on_samples or self.on_samples
        return _pooled(self._shards(recipe, seed, n, artefacts, told) for seed in self.evaluation.seeds)

    def _shards(
        self, recipe: Recipe, seed: int, n: int, artefacts: Any, told: Callable[[int], None]
    ) -> dict[str, torch.Tensor]:
        store, e = self._store(recipe, seed), self.evaluation
        with store.kept():
            missing = store.missing(n, e.shard)
            for path in store.damaged:
                self.say(f"shard {path} is damaged (its hash does not match); computing it anew.")
            told(n - sum(b - a for a, b in missing))
            self._fill(store, recipe, seed, missing, artefacts, told)
            found = store.gather(n, e.shard, {"images": e.compared})
            return found | (self._scores(recipe, seed, store, n) if self._scoring else {})

    def _fill(
        self, store: ShardStore, recipe: Recipe, seed: int, missing: list[tuple[int, int]], artefacts: Any,
        told: Callable[[int], None], wait: bool = True,
    ) -> None:  # fmt: skip
        def make(a: int, b: int) -> dict[str, torch.Tensor]:
            images = self._images(recipe, seed, a, b)
            told(b - a)
            if self._scoring:
                return {"images": self.suite.stored(images)}
            return score_images(self.suite, images, self.suite.conditions(a, b))

        if missing:
            with accelerate(self.pipe, recipe, models=self.models, artefacts=artefacts):
                store.fill(missing, make, wait)

    def help(self, recipe: Recipe) -> int:
        """Make those shards of `recipe` that nobody has begun, for a process that computes it, and wait for none; how
        many samples were made."""
        made: list[int] = []

        def told(count: int) -> None:
            made.append(count)
            self.on_samples(count)

        for seed in () if self.suite.unscored else self.evaluation.seeds:
            store = self._store(recipe, seed)
            with store.kept():
                if missing := store.absent(self.evaluation.n, self.evaluation.shard):
                    artefacts, _ = self.artefacts(recipe)
                    first = random.randrange(len(missing))  # its owner begins at the first, and many may help
                    missing = missing[first:] + missing[:first]
                    self._fill(store, recipe, seed, missing, artefacts, told, wait=False)
        return sum(made)

    def _images(self, recipe: Recipe, seed: int, a: int, b: int) -> torch.Tensor:
        """Samples a..b-1: those that ship with the suite, or made now. Under `accelerate` with `recipe`."""
        if b <= self.shipped(recipe, seed):
            return self._shipped[self.generation_id(recipe, seed)][a:b]
        with locked(device_lock(self.device), shared=True):
            return generate(self.pipe, self.suite, recipe, seed, a, b, self.evaluation.batch)

    def shipped(self, recipe: Recipe, seed: int | None = None) -> int:
        """How many first samples of this run ship with the suite; they are read, not made."""
        return len(self._shipped.get(self.generation_id(recipe, seed), ()))

    @cached_property
    def _shipped(self) -> dict[str, torch.Tensor]:
        if (path := self.suite.shipped()) is None:
            return {}
        if (found := load_tensors(path)) is None:
            self.say(f"{path} is damaged or not there; its images are made anew. Restore it from the repository (git "
                     "checkout), or by `accel bench converged`.")  # fmt: skip
        return found or {}

    def _scores(self, recipe: Recipe, seed: int, store: ShardStore, n: int) -> dict[str, torch.Tensor]:
        """Features and per-sample scores of the images in `store`: apart, so that other ones need no other images."""
        scored = digest({"samples": self.generation_id(recipe, seed), "scoring": self._scoring})

        def make(a: int, b: int) -> dict[str, torch.Tensor]:
            made = score_images(self.suite, store.load(a, b)["images"], self.suite.conditions(a, b))
            return {k: v for k, v in made.items() if k != "images"}

        return self._filled(ShardStore(self.results.root, scored), n, make)

    def _filled(self, store: ShardStore, n: int, make: Callable[[int, int], dict]) -> dict[str, torch.Tensor]:
        with store.kept():
            store.fill(store.missing(n, self.evaluation.shard), make)
            return store.gather(n, self.evaluation.shard)

    def missing_samples(self, recipe: Recipe) -> int:
        """How many of the run's samples are still to be generated."""
        e = self.evaluation
        if self.suite.unscored:
            return 0
        left = [(b, b - a, seed) for seed in e.seeds for a, b in self._store(recipe, seed).missing(e.n, e.shard)]
        return sum(count for stop, count, seed in left if stop > self.shipped(recipe, seed))

    def converged_images(self, recipe: Recipe) -> torch.Tensor:
        """Images of the converged trajectory under the recipe's guidance, for the samples that are compared."""
        converged = self.suite.converged(recipe.exact_guidance)
        n = self.evaluation.compared
        if not self.suite.solves(recipe.exact_guidance):
            counts: list[int] = []  # of samples, which are none of the cell's own

            def on_samples(count: int) -> None:
                counts.append(count)
                self.on_converged(sum(counts), n * len(self.evaluation.seeds))

            return self.shards(converged, n, on_samples=on_samples)["images"]

        def solved(seed: int) -> dict[str, torch.Tensor]:
            def make(a: int, b: int) -> dict[str, torch.Tensor]:
                return {"images": self.suite.solve(self.pipe, converged, seed, a, b)}

            store = ShardStore(self.results.root, digest({"exact": self.generation_id(converged, seed)}))
            return self._filled(store, n, make)

        return _pooled(map(solved, self.evaluation.seeds))["images"]

    # calibration ---------------------------------------------------------------------------------------------------

    @cached_property
    def _calibration(self) -> Calibration:
        return Calibration(
            self.suite, self._fingerprint, lambda: self.pipe, lambda: self.models, self.results.root / "artefacts",
            self.evaluation.batch, self.say, self.on_search,
        )  # fmt: skip

    def artefacts(self, recipe: Recipe) -> tuple[dict[str, dict[str, torch.Tensor]] | None, float]:
        """What sampler, guidance, cache and precision need, and the seconds that making it took (0: none)."""
        return self._calibration.artefacts(recipe)

    def artefact_id(self, recipe: Recipe) -> str:
        return self._calibration.artefact_id(recipe)

    def _warn(self, messages: Iterable[str]) -> None:
        """Say each message once."""
        for message in messages:
            if message not in self._reported:
                self.say(message)
                self._reported.add(message)

    def _store(self, recipe: Recipe, seed: int | None = None) -> ShardStore:
        return ShardStore(self.results.root, self.generation_id(recipe, seed))
