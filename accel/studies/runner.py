"""One run: ids, calibration, shards, scores, record, time. Whatever is already there is not computed again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch

from accel.core.devices import device_lock
from accel.core.environment import environment, instruction_set, provenance
from accel.core.recipe import Recipe, accelerate
from accel.digests import weights_digest
from accel.errors import ConfigError, IntegrityError, Refusals
from accel.evaluation.cost import counted_cost
from accel.evaluation.generate import generate
from accel.evaluation.score import EPOCH, score, score_images, similarities
from accel.evaluation.shards import ShardStore
from accel.evaluation.timing import DISTURBED, PROTOCOL, calmest, disturbed, time_recipe
from accel.files import locked, write_atomic
from accel.metrics.similarity import PAIRED
from accel.metrics.statistics import Estimate
from accel.records import Results, describe, digest
from accel.studies.calibration import Calibration
from accel.studies.evaluation import Evaluation
from accel.studies.plain import PlainFront, controls
from accel.suites.base import Suite

STRIP = 10  # samples in a record's picture
PICTURE = 256  # its height at most


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
            refusals.ask(_check_pooled, suite, evaluation)
            self._fingerprint = refusals.ask(suite.fingerprint)
            self._similarity = evaluation.similarity
            self._similar = refusals.ask(self._reference_metrics)
        self._reported: set[str] = set()
        provenance()  # now: a clone may move on while its study runs

    def _reference_metrics(self) -> dict[str, Any]:
        """What identifies the reference metrics, nothing without any; ConfigError if they cannot be computed."""
        if self._similarity and not self.suite.pictures:
            raise ConfigError(
                f"evaluation.reference_metrics compare pictures, and suite {self.suite.name!r} makes none; leave them "
                "out."
            )
        return {"reference_metrics": self._similarity.identity()} if self._similarity else {}

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

    def generation_id(self, recipe: Recipe, seed: int | None = None) -> str:
        """Id of the samples of one base seed (None: the first): everything that changes them but their number. Device
        and batch size are not in it."""
        identity = {"suite": self.suite.name, "weights": self._fingerprint, "recipe": describe(recipe),
                    "seed": self.evaluation.seeds[0] if seed is None else seed}  # fmt: skip
        if recipe.guidance and recipe.guidance.uses_classifier:
            identity["classifier"] = self._classifier
        return digest(identity)

    def samples_id(self, recipe: Recipe) -> str | list[str]:
        """`generation_id`, or those of all seeds whose samples are pooled."""
        found = [self.generation_id(recipe, seed) for seed in self.evaluation.seeds]
        return found if len(found) > 1 else found[0]

    def quality_id(self, recipe: Recipe) -> str:
        """Id of the scores: the samples, their number, the reference and what they are compared with."""
        converged = self.suite.converged(recipe.exact_guidance)
        return digest({"samples": self.samples_id(recipe), "n": self.evaluation.n, "epoch": EPOCH,
                       "reference": self.suite.reference_identity(), "compared": self.evaluation.compared,
                       "converged": self.samples_id(converged)} | self._scoring | self._similar)  # fmt: skip

    def timing_id(self, recipe: Recipe, baseline: Recipe, batch: int | None = None) -> str:
        """Id of a timing: recipe, baseline, device, threads, versions, batch (the study's own), and how it is taken."""
        e = self.evaluation
        return digest({"samples": self.generation_id(recipe), "baseline": self.generation_id(baseline),
                       "environment": environment(self.device) | self.suite.execution(),
                       "batch": batch or e.timing_batches[0], "protocol": PROTOCOL, "repetitions": e.repetitions,
                       "most": e.most_repetitions, "precision": e.timing_precision})  # fmt: skip

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
        with ExitStack() as stack:
            for seed in sorted(self.evaluation.seeds):
                if not stack.enter_context(locked(self._store(recipe, seed).folder / ".lock", wait)):
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
        similar = self._similarities(recipe, shards["images"], exact)
        values = score(self.suite, shards, exact, similar, len(e.seeds))
        self.picture(key, shards["images"])
        record = {
            "kind": "quality",
            "id": key,
            "label": recipe.label,
            "axes": recipe.axes(),
            "suite": self.suite.name,
            "n": e.samples,
            "seed": e.seeds[0],
            **({"seeds": list(e.seeds)} if len(e.seeds) > 1 else {}),
            "compared": e.compared * len(e.seeds),
            "simulated": recipe.simulated,
            "recipe": describe(recipe),
            "values": {k: v.to_dict() for k, v in values.items()},
            "cost": {k: v for k, v in cost.items() if k != "strip"} | {"setup_s": round(setup, 3)},
            "strip": cost["strip"],
            "samples": self.samples_id(recipe),
            "converged": self.samples_id(self.suite.converged(recipe.exact_guidance)),
            "weights": self._fingerprint,
            "reference": self.suite.reference_identity(),
            "environment": environment(self.device) | provenance() | self.suite.execution() | {"batch": e.batch},
        }
        record |= self._similar
        if notes := self.suite.notes(self.pipe, e.n):
            record["notes"] = notes
            self._warn(notes.get("warnings", ()))
        self.results.save(record)
        return record

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

        def make(a: int, b: int) -> dict[str, torch.Tensor]:
            with locked(device_lock(self.device), shared=True):
                images = generate(self.pipe, self.suite, recipe, seed, a, b, e.batch)
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
            return found | (self._scores(recipe, seed, store, n) if self._scoring else {})

    def _similarities(self, recipe: Recipe, images: torch.Tensor, exact: torch.Tensor | None) -> dict[str, Estimate]:
        """Reference metrics of the compared samples; nothing where none are asked for."""
        if not self._similarity:
            return {}
        plain, n = recipe.unaccelerated, self.evaluation.compared
        itself = recipe.plain or not set(self._similarity.names) & set(PAIRED)
        unaccelerated = None if itself else self.shards(plain, n, self.artefacts(plain)[0])["images"]
        return similarities(self.suite, self._similarity, images, exact, unaccelerated)

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
        stores = [self._store(recipe, seed) for seed in e.seeds]
        return sum(b - a for store in stores for a, b in store.missing(e.n, e.shard))

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

    # time ----------------------------------------------------------------------------------------------------------

    def timings(self, recipe: Recipe, baseline: Recipe) -> list[dict[str, Any]]:
        """The timing records of `recipe` against `baseline` on this device, one a batch of the evaluation, in that
        order; none for a simulated recipe. A batch that a sampler's groups do not fill is left out, and said."""
        if recipe.simulated or not self.evaluation.timing:
            return []
        batches = self.evaluation.timing_batches
        if several := len(batches) > 1:
            groups = [r.sampler.group(self.suite.period) if r.sampler else 1 for r in (recipe, baseline)]
            fit = [batch for batch in batches if not any(batch % group for group in groups)]
            if left := [str(batch) for batch in batches if batch not in fit]:
                self._warn([f"{recipe.label} makes samples in groups of {max(groups)}: not timed at batch "
                            f"{' and '.join(left)} of evaluation.timing_batch."])  # fmt: skip
        return [self._timing(recipe, baseline, batch) for batch in (fit if several else batches)]

    def timing(self, recipe: Recipe, baseline: Recipe) -> dict[str, Any] | None:
        """The timing record at the study's own batch; None for a simulated recipe."""
        if recipe.simulated or not self.evaluation.timing:
            return None
        return self._timing(recipe, baseline, self.evaluation.timing_batches[0])

    def _timing(self, recipe: Recipe, baseline: Recipe, batch: int) -> dict[str, Any]:
        key = self.timing_id(recipe, baseline, batch)
        before = self.find("timing", key)
        if before and not disturbed(before):
            return before
        artefacts, _ = self.artefacts(recipe)
        with locked(self._store(recipe).folder / ".timing.lock"):
            there = self.find("timing", key)
            if there and (there != before or not disturbed(there)):  # another process was faster
                return there
            made = self._time(recipe, baseline, batch, key, artefacts)
            if disturbed(made):
                self.say(
                    f"{recipe.label} was timed on a disturbed machine (by {made['disturbance']:.0%}; at most "
                    f"{DISTURBED:.0%} is kept): the same command times it again."
                )
            if before and before["disturbance"] <= made["disturbance"]:
                return before
            self.results.save(made)
            return made

    def _time(self, recipe: Recipe, baseline: Recipe, batch: int, key: str, artefacts: Any) -> dict[str, Any]:
        e = self.evaluation
        where = environment(self.device) | self.suite.execution()
        against = self.quality_id(baseline)
        beside = [
            other["baseline_ms"]["value"] for other in self.results.intact("timing")
            if other.get("baseline") == against and other.get("batch") == batch and "baseline_ms" in other
            and where.items() <= other.get("environment", {}).items()
        ]  # fmt: skip
        measured = calmest(
            lambda: time_recipe(
                self.pipe, self.suite, recipe, baseline, models=self.models, artefacts=artefacts, batch=batch,
                repetitions=e.repetitions, most_repetitions=e.most_repetitions, precision=e.timing_precision,
            ), beside)  # fmt: skip
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
            "timing_precision": e.timing_precision,
            **measured,
        }

    def controls(
        self, recipe: Recipe, cost: dict[str, Any], timing: dict[str, Any] | None, baseline: Recipe, front: PlainFront
    ) -> list[tuple[Recipe, tuple[str, ...]]]:
        """The plain samplers of `front` at the accelerated recipe's cost: at equal MACs, and where it is timed at equal
        measured time (plain steps take time in proportion to their MACs, so the baseline's MACs over the speed-up)."""
        steps = recipe.sampler.steps
        per_step = self.plain_macs(front.at(recipe, steps)) / steps
        budgets = {"MACs": cost["macs"]}
        if timing is not None:
            budgets["time"] = self.plain_macs(baseline) / timing["speedup"]["value"]
        return controls(front, recipe, budgets, per_step)

    def _warn(self, messages: Iterable[str]) -> None:
        """Say each message once."""
        for message in messages:
            if message not in self._reported:
                self.say(message)
                self._reported.add(message)

    # helpers -------------------------------------------------------------------------------------------------------

    def _store(self, recipe: Recipe, seed: int | None = None) -> ShardStore:
        return ShardStore(self.results.root, self.generation_id(recipe, seed))

    def picture(self, key: str, images: torch.Tensor) -> None:
        """Write the picture of a record: its first samples side by side."""
        from PIL import Image

        strip = torch.cat(list(self.suite.to_uint8(images[:STRIP])), dim=-1).permute(1, 2, 0).numpy()
        picture = Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip)
        picture.thumbnail((STRIP * PICTURE, PICTURE))
        data = io.BytesIO()
        picture.save(data, "png", optimize=True)
        write_atomic(self.results.root / "records" / "quality" / f"{key}.png", data.getvalue())
