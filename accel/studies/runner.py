"""One run: ids, calibration, shards, scores, record, time. Whatever is already there is not computed again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from accel.core.devices import device_lock
from accel.core.environment import environment, instruction_set, provenance
from accel.core.recipe import Recipe, accelerate
from accel.digests import weights_digest
from accel.errors import IntegrityError, Refusals
from accel.evaluation.cost import counted_cost
from accel.evaluation.generate import generate
from accel.evaluation.score import EPOCH, score, score_images
from accel.evaluation.shards import ShardStore
from accel.evaluation.timing import DISTURBED, calmest, disturbed, time_recipe
from accel.files import locked, write_atomic
from accel.records import Results, describe, digest
from accel.studies.calibration import Calibration
from accel.studies.evaluation import Evaluation
from accel.suites.base import Suite

STRIP = 10  # samples in a record's picture
PICTURE = 256  # its height at most


def quiet(message: str) -> None:
    """The default listener for messages: nothing."""


class Runner:
    """Runs recipes of one suite into one results folder; the pipeline is loaded when it is first needed."""

    def __init__(
        self,
        suite: Suite,
        evaluation: Evaluation,
        results: Results,
        say: Callable[[str], None] = quiet,
        on_samples: Callable[[int], None] = lambda count: None,
        on_search: Callable[[int, int], None] = lambda done, total: None,
        on_converged: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.suite, self.evaluation, self.results = suite, evaluation, results
        self.say, self.on_samples, self.on_search, self.on_converged = say, on_samples, on_search, on_converged
        with Refusals() as refusals:
            self.device = refusals.ask(evaluation.resolve_device)
            refusals.ask(suite.check, evaluation.n)
            self._fingerprint = refusals.ask(suite.fingerprint)
        self._reported: set[str] = set()
        provenance()  # now: a clone may move on while its study runs

    @cached_property
    def pipe(self) -> Any:
        return self.suite.pipeline().to(self.device)

    @cached_property
    def models(self) -> dict[str, torch.nn.Module]:
        return {k: m.to(self.device) for k, m in self.suite.networks().items()}

    @cached_property
    def _classifier(self) -> str | None:
        # It need not be among the weights that a suite's fingerprint is of.
        net = self.suite.classifier()
        return None if net is None else bytes(weights_digest(net).tolist()).hex()

    @cached_property
    def _scoring(self) -> dict[str, Any]:
        used = self.suite.scoring()
        return {"scoring": used} if used else {}

    def check(self, recipe: Recipe) -> None:
        """Raise now, before any work, if this suite cannot run `recipe`."""
        recipe.check(self.pipe, self.models)

    # ids ---------------------------------------------------------------------------------------------------------

    def generation_id(self, recipe: Recipe) -> str:
        """Id of the samples: everything that changes them but their number. Device and batch size are not in it."""
        identity = {"suite": self.suite.name, "weights": self._fingerprint, "recipe": describe(recipe),
                    "seed": self.evaluation.seed}  # fmt: skip
        if recipe.guidance and recipe.guidance.uses_classifier:
            identity["classifier"] = self._classifier
        return digest(identity)

    def quality_id(self, recipe: Recipe) -> str:
        """Id of the scores: the samples, their number, the reference and what they are compared with."""
        converged = self.suite.converged(recipe.exact_guidance)
        return digest({"samples": self.generation_id(recipe), "n": self.evaluation.n, "epoch": EPOCH,
                       "reference": self.suite.reference_identity(), "compared": self.evaluation.compared,
                       "converged": self.generation_id(converged)} | self._scoring)  # fmt: skip

    def timing_id(self, recipe: Recipe, baseline: Recipe) -> str:
        """Id of a timing: recipe, baseline, device, threads, versions and batch."""
        e = self.evaluation
        return digest({"samples": self.generation_id(recipe), "baseline": self.generation_id(baseline),
                       "environment": environment(self.device) | self.suite.execution(), "batch": e.timing_batch,
                       "repetitions": e.repetitions})  # fmt: skip

    # quality -----------------------------------------------------------------------------------------------------

    def find(self, kind: str, key: str) -> dict[str, Any] | None:
        """A record, or None; a damaged one is reported and counts as absent."""
        try:
            return self.results.load(kind, key)
        except IntegrityError as error:
            if key not in self._reported:
                self.say(f"{error} Computing it anew.")
            self._reported.add(key)
            return None

    def quality(self, recipe: Recipe, wait: bool = True) -> dict[str, Any] | None:
        """The quality record of `recipe`, computed if it is not there.

        While another process computes it: wait for that, or without `wait` return None.
        """
        key = self.quality_id(recipe)
        if record := self.find("quality", key):
            return record
        with locked(self._store(recipe).folder / ".lock", wait) as held:
            if not held:
                return None
            if record := self.find("quality", key):  # another process was faster
                return record
            return self._compute_quality(recipe, key)

    def _compute_quality(self, recipe: Recipe, key: str) -> dict[str, Any]:
        e = self.evaluation
        artefacts, setup = self.artefacts(recipe)
        cost = counted_cost(self.pipe, self.suite, recipe, self.models, artefacts)
        shards = self.shards(recipe, e.n, artefacts)
        itself = self.generation_id(recipe) == self.generation_id(self.suite.converged(recipe.exact_guidance))
        exact = None if itself and not self.suite.solves(recipe.exact_guidance) else self.converged_images(recipe)
        values = score(self.suite, shards, exact)
        self.picture(key, shards["images"])
        record = {
            "kind": "quality",
            "id": key,
            "label": recipe.label,
            "axes": recipe.axes(),
            "suite": self.suite.name,
            "n": e.n,
            "seed": e.seed,
            "compared": e.compared,
            "simulated": recipe.simulated,
            "recipe": describe(recipe),
            "values": {k: v.to_dict() for k, v in values.items()},
            "cost": {k: v for k, v in cost.items() if k != "strip"} | {"setup_s": round(setup, 3)},
            "strip": cost["strip"],
            "samples": self.generation_id(recipe),
            "converged": self.generation_id(self.suite.converged(recipe.exact_guidance)),
            "weights": self._fingerprint,
            "reference": self.suite.reference_identity(),
            "environment": environment(self.device) | provenance() | self.suite.execution() | {"batch": e.batch},
        }
        if notes := self.suite.notes(self.pipe, e.n):
            record["notes"] = notes
            self._warn(notes.get("warnings", ()))
        self.results.save(record)
        return record

    def shards(
        self, recipe: Recipe, n: int, artefacts: Any = None, on_samples: Callable[[int], None] | None = None
    ) -> dict[str, torch.Tensor]:
        """All tensors of the first n samples of `recipe`; only missing shards are generated.

        on_samples: is told how many more are there, in place of the runner's own listener."""
        store, e, told = self._store(recipe), self.evaluation, on_samples or self.on_samples

        def make(a: int, b: int) -> dict[str, torch.Tensor]:
            with locked(device_lock(self.device), shared=True):
                images = generate(self.pipe, self.suite, recipe, e.seed, a, b, e.batch)
            told(b - a)
            if self._scoring:
                return {"images": self.suite.stored(images)}
            return score_images(self.suite, images, self.suite.conditions(a, b))

        with store.kept():
            missing = store.missing(n, e.shard)
            for path in store.damaged:
                self.say(f"shard {path} is damaged (its hash does not match); computing it anew.")
            told(n - sum(b - a for a, b in missing))
            if missing:
                with accelerate(self.pipe, recipe, models=self.models, artefacts=artefacts):
                    store.fill(missing, make)
            found = store.gather(n, e.shard, {"images": e.compared})
            return found | (self._scores(recipe, store, n) if self._scoring else {})

    def _scores(self, recipe: Recipe, store: ShardStore, n: int) -> dict[str, torch.Tensor]:
        """Features and per-sample scores of the images in `store`: apart, so that other ones need no other images."""
        scored = digest({"samples": self.generation_id(recipe), "scoring": self._scoring})

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
        return sum(b - a for a, b in self._store(recipe).missing(self.evaluation.n, self.evaluation.shard))

    def plain_macs(self, recipe: Recipe) -> float:
        """MACs an image of a plain recipe: from its record, or counted now."""
        if record := self.find("quality", self.quality_id(recipe)):
            return record["cost"]["macs"]
        return counted_cost(self.pipe, self.suite, recipe, self.models, self.artefacts(recipe)[0])["macs"]

    def converged_images(self, recipe: Recipe) -> torch.Tensor:
        """Images of the converged trajectory under the recipe's guidance, for the samples that are compared."""
        converged = self.suite.converged(recipe.exact_guidance)
        n = self.evaluation.compared
        if not self.suite.solves(recipe.exact_guidance):
            counts: list[int] = []  # of samples, which are none of the cell's own

            def on_samples(count: int) -> None:
                counts.append(count)
                self.on_converged(sum(counts), n)

            return self.shards(converged, n, on_samples=on_samples)["images"]
        store = ShardStore(self.results.root, digest({"exact": self.generation_id(converged)}))

        def make(a: int, b: int) -> dict[str, torch.Tensor]:
            return {"images": self.suite.solve(self.pipe, converged, self.evaluation.seed, a, b)}

        return self._filled(store, n, make)["images"]

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

    # time ----------------------------------------------------------------------------------------------------------

    def timing(self, recipe: Recipe, baseline: Recipe) -> dict[str, Any] | None:
        """The timing record of `recipe` against `baseline` on this device; None for a simulated recipe."""
        if recipe.simulated or not self.evaluation.timing:
            return None
        key = self.timing_id(recipe, baseline)
        before = self.find("timing", key)
        if before and not disturbed(before):
            return before
        artefacts, _ = self.artefacts(recipe)
        with locked(self._store(recipe).folder / ".timing.lock"):
            there = self.find("timing", key)
            if there and (there != before or not disturbed(there)):  # another process was faster
                return there
            made = self._time(recipe, baseline, key, artefacts)
            if disturbed(made):
                self.say(
                    f"{recipe.label} was timed on a disturbed machine (by {made['disturbance']:.0%}; at most "
                    f"{DISTURBED:.0%} is kept): the same command times it again."
                )
            if before and before["disturbance"] <= made["disturbance"]:
                return before
            self.results.save(made)
            return made

    def _time(self, recipe: Recipe, baseline: Recipe, key: str, artefacts: Any) -> dict[str, Any]:
        e = self.evaluation
        where = environment(self.device) | self.suite.execution()
        against = self.quality_id(baseline)
        beside = [
            other["baseline_ms"]["value"] for other in self.results.intact("timing")
            if other.get("baseline") == against and other.get("batch") == e.timing_batch and "baseline_ms" in other
            and where.items() <= other.get("environment", {}).items()
        ]  # fmt: skip
        measured = calmest(
            lambda: time_recipe(self.pipe, self.suite, recipe, baseline, models=self.models, artefacts=artefacts,
                                batch=e.timing_batch, repetitions=e.repetitions), beside)  # fmt: skip
        return {
            "kind": "timing",
            "id": key,
            "quality": self.quality_id(recipe),
            "baseline": against,
            "label": recipe.label,
            "suite": self.suite.name,
            "device_name": where["device_name"],
            "threads": where["threads"],
            "isa": instruction_set(self.device),
            "environment": where | provenance(),
            **measured,
        }

    def control(self, recipe: Recipe, cost: dict[str, Any]) -> Recipe:
        """The plain sampler whose MACs an image come nearest to the accelerated recipe's `cost`."""
        plain = recipe.unaccelerated
        steps = max(1, round(recipe.sampler.steps * cost["macs"] / self.plain_macs(plain)))
        return replace(plain, sampler=replace(recipe.sampler, steps=min(steps, recipe.sampler.steps)))

    def _warn(self, messages: Iterable[str]) -> None:
        """Say each message once."""
        for message in messages:
            if message not in self._reported:
                self.say(message)
                self._reported.add(message)

    # helpers -------------------------------------------------------------------------------------------------------

    def _store(self, recipe: Recipe) -> ShardStore:
        return ShardStore(self.results.root, self.generation_id(recipe))

    def picture(self, key: str, images: torch.Tensor) -> None:
        """Write the picture of a record: its first samples side by side."""
        from PIL import Image

        strip = torch.cat(list(self.suite.to_uint8(images[:STRIP])), dim=-1).permute(1, 2, 0).numpy()
        picture = Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip)
        picture.thumbnail((STRIP * PICTURE, PICTURE))
        data = io.BytesIO()
        picture.save(data, "png", optimize=True)
        write_atomic(self.results.root / "records" / "quality" / f"{key}.png", data.getvalue())
