"""One run: scores, record, time, controls. Whatever is already there is not computed again."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch

from accel.core.environment import environment, instruction_set, provenance, threads_wait
from accel.core.recipe import Recipe
from accel.digests import in_hex, tensors_digest
from accel.errors import AccelError, ConfigError, Refusals
from accel.evaluation.cost import counted_cost
from accel.evaluation.score import EPOCH, HELD_OUT, held_out_fid, score, similarities
from accel.evaluation.timing import DISTURBED, PROTOCOL, OnRound, calmest, disturbed, time_recipes
from accel.evaluation.upgrade import upgraded
from accel.files import write_atomic
from accel.locks import locked
from accel.metrics.similarity import PAIRED, Similarity
from accel.metrics.statistics import Estimate
from accel.records import Results, digest
from accel.results.comparison import timed_against
from accel.studies.evaluation import Evaluation
from accel.studies.plain import PlainFront, controls
from accel.studies.samples import Samples, quiet
from accel.studies.unscored import cost_record
from accel.suites.base import Suite
from accel.suites.students import bill_of

FAILURES = (AccelError, RuntimeError, ValueError)  # of a cell, while the others go on; StorageError alone ends all
STRIP = 10  # samples in a record's picture
PICTURE = 256  # its height at most


def _reference_metrics(suite: Suite, similarity: Similarity | None) -> dict[str, Any]:
    """What identifies the reference metrics, nothing without any; ConfigError if they cannot be computed."""
    if similarity and suite.unscored:
        raise ConfigError(f"evaluation.reference_metrics compare pictures, and {suite.unscored}; leave them out.")
    if similarity and not suite.pictures:
        raise ConfigError(
            f"evaluation.reference_metrics compare pictures, and suite {suite.name!r} makes none; leave them out."
        )
    return {"reference_metrics": similarity.identity()} if similarity else {}


def _held_out(suite: Suite, asked: bool) -> dict[str, Any]:
    """What identifies the held-out images that samples are compared with, nothing where that is not asked for;
    ConfigError if there are none."""
    if not asked:
        return {}
    if suite.unscored:
        raise ConfigError(f"evaluation.held_out is the FID to held-out images, and {suite.unscored}; leave it out.")
    if suite.feature_space is None or (found := suite.held_out()) is None:
        raise ConfigError(
            f"evaluation.held_out is the FID to held-out images, and suite {suite.name!r} has none, or no features; "
            "leave it out."
        )
    return {"held_out": {"n": len(found[0]), "digest": in_hex(tensors_digest({"images": found[0]}))}}


class Runner(Samples):
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
        on_round: OnRound = lambda kept, expected, least, most: None,
    ) -> None:
        self.on_round = on_round
        self._similarity = evaluation.similarity
        with Refusals() as refusals:
            refusals.ask(super().__init__, suite, evaluation, results, say, on_samples, on_search, on_converged)
            self._similar = refusals.ask(_reference_metrics, suite, self._similarity)
            self._beyond = refusals.ask(_held_out, suite, evaluation.held_out)
        provenance()  # now: a clone may move on while its study runs

    # ids ---------------------------------------------------------------------------------------------------------

    def quality_id(self, recipe: Recipe, epoch: int = EPOCH) -> str:
        """Id of the scores: the samples, their number, the reference and what they are compared with; `epoch`: of how
        they are computed."""
        if self.suite.unscored:
            return digest({"cost": self.generation_id(recipe, 0), "epoch": epoch})
        converged = self.suite.converged(recipe.exact_guidance)
        own = {"samples": self.samples_id(recipe), "n": self.evaluation.n, "epoch": epoch,
               "reference": self.suite.reference_identity(), "compared": self.evaluation.compared,
               "converged": self.samples_id(converged)}  # fmt: skip
        return digest(own | self._scoring | self._similar | self._beyond)

    def timing_id(self, recipe: Recipe, baseline: Recipe, batch: int | None = None) -> str:
        """Id of a timing: recipe, baseline, device, threads, versions, batch (the study's own), and how it is taken."""
        e, machine = self.evaluation, environment(self.device) | self.suite.execution()
        machine |= {"omp_wait": threads_wait()} if torch.device(self.device).type == "cpu" else {}
        return digest({"samples": self.generation_id(recipe), "baseline": self.generation_id(baseline),
                       "environment": machine,
                       "batch": batch or e.timing_batches[0], "protocol": PROTOCOL, "repetitions": e.repetitions,
                       "most": e.most_repetitions, "precision": e.timing_precision})  # fmt: skip

    # quality -----------------------------------------------------------------------------------------------------

    def quality(self, recipe: Recipe, wait: bool = True) -> dict[str, Any] | None:
        """The quality record of `recipe`, computed if it is not there.

        While another process computes it: help with its shards and wait for the rest, or without `wait` return None.
        """
        key = self.quality_id(recipe)
        if record := self.scored(recipe):
            return record
        with ExitStack() as stack:
            if not self._alone(stack, recipe, wait=False):
                if not wait:
                    return None
                stack.close()
                made = self.help(recipe)
                self._alone(stack, recipe, wait=True)
                self.on_samples(-made)  # those that are there count from here on
            if record := self.find("quality", key):  # another process was faster
                return record
            return self._compute_quality(recipe, key)

    def scored(self, recipe: Recipe, keep: bool = True) -> dict[str, Any] | None:
        """The quality record of `recipe`, None if it is not there; one of the epoch before is brought up to this, and
        with `keep` saved."""
        key, before = self.quality_id(recipe), self.quality_id(recipe, EPOCH - 1)
        if (found := self.find("quality", key)) or (older := self.find("quality", before)) is None:
            return found
        record = upgraded(older, key)
        if not keep:
            return record
        old, new = (self.results.path("quality", one).with_suffix(".png") for one in (before, key))
        if old.exists():
            write_atomic(new, old.read_bytes())
        self.results.save(record)
        return record

    def _alone(self, stack: ExitStack, recipe: Recipe, wait: bool) -> bool:
        """Hold the locks of a cell until `stack` ends; whether they are held."""
        folders = [self._store(recipe, seed).folder for seed in sorted(self.evaluation.seeds)]
        return all(stack.enter_context(locked(folder / ".lock", wait)) for folder in folders)

    def _compute_quality(self, recipe: Recipe, key: str) -> dict[str, Any]:
        e = self.evaluation
        artefacts, setup = self.artefacts(recipe)
        cost = counted_cost(self.pipe, self.suite, recipe, self.models, artefacts)
        if self.suite.unscored:
            record = cost_record(self, recipe, key, cost, setup)
            self._warn(record["notes"].get("warnings", ()))
            self.results.save(record)
            return record
        shards = self.shards(recipe, e.n, artefacts)
        itself = self.generation_id(recipe) == self.generation_id(self.suite.converged(recipe.exact_guidance))
        steps = recipe.sampler.steps if recipe.sampler else 0  # none: what follows no trajectory needs a sampler
        elsewhere = recipe.student is not None and not recipe.student.follows(steps)
        alone = elsewhere or (itself and not self.suite.solves(recipe.exact_guidance))
        exact = None if alone else self.converged_images(recipe)
        more = self._similarities(recipe, shards["images"], exact)
        if self._beyond:
            more |= {HELD_OUT: held_out_fid(shards["features"], self._held_out_features, self.suite.period)}
        values = score(self.suite, shards, exact, more, len(e.seeds))
        self.picture(key, shards["images"])
        record = self.about(recipe, key, cost, setup) | {
            "n": e.samples,
            **({"seeds": list(e.seeds)} if len(e.seeds) > 1 else {}),
            "compared": e.compared * len(e.seeds),
            "values": {k: v.to_dict() for k, v in values.items()},
            "converged": self.samples_id(self.suite.converged(recipe.exact_guidance)),
            "reference": self.suite.reference_identity(),
        }
        record["environment"]["batch"] = e.batch
        record |= self._similar | self._beyond
        if recipe.student:
            record["student"] = bill_of(self.suite.students()[recipe.student.model].contract)
        if recipe.decoder and (bill := self.suite.decoders()[recipe.decoder.model].bill):
            record["decoder"] = dict(bill)
        if shipped := sum(min(e.n, self.shipped(recipe, seed)) for seed in e.seeds):
            record["shipped"] = shipped
        if notes := self.suite.notes(self.pipe, e.n):
            record["notes"] = notes
            self._warn(notes.get("warnings", ()))
        self.results.save(record)
        return record

    @cached_property
    def _held_out_features(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.suite.features(self.suite.held_out()[0]).double()

    def _similarities(self, recipe: Recipe, images: torch.Tensor, exact: torch.Tensor | None) -> dict[str, Estimate]:
        """Reference metrics of the compared samples; nothing where none are asked for."""
        if not self._similarity:
            return {}
        plain, n = recipe.unaccelerated, self.evaluation.compared
        itself = recipe.plain or not set(self._similarity.names) & set(PAIRED)
        unaccelerated = None if itself else self.shards(plain, n, self.artefacts(plain)[0])["images"]
        return similarities(self.suite, self._similarity, images, exact, unaccelerated)

    def plain_macs(self, recipe: Recipe) -> float:
        """MACs an image of a plain recipe: from its record, or counted now."""
        if record := self.scored(recipe):
            return record["cost"]["macs"]
        return counted_cost(self.pipe, self.suite, recipe, self.models, self.artefacts(recipe)[0])["macs"]

    # time ----------------------------------------------------------------------------------------------------------

    def timings(self, recipes: Sequence[Recipe], baseline: Recipe) -> list[list[dict[str, Any]]]:
        """For each recipe its timing records against `baseline` on this device, one a batch of the evaluation, in that
        order; none for a simulated one. What is not there is timed in common rounds. A batch that a sampler's groups do
        not fill is left out, and said."""
        found: list[list[dict[str, Any]]] = [[] for _ in recipes]
        wanted = [i for i, recipe in enumerate(recipes) if self.evaluation.timing and not recipe.simulated]
        for batch in self.evaluation.timing_batches:
            fit = [i for i in wanted if self._fits(recipes[i], baseline, batch)]
            for i, record in zip(fit, self._timings([recipes[i] for i in fit], baseline, batch), strict=True):
                found[i].append(record)
        return found

    def timing(self, recipe: Recipe, baseline: Recipe) -> dict[str, Any] | None:
        """The timing record at the study's own batch; None for a simulated recipe."""
        if recipe.simulated or not self.evaluation.timing:
            return None
        return self._timings([recipe], baseline, self.evaluation.timing_batches[0])[0]

    def _fits(self, recipe: Recipe, baseline: Recipe, batch: int) -> bool:
        """Whether samplers' groups fill this batch of several; one batch alone is tried, which says what is wrong."""
        groups = [r.sampler.group(self.suite.period) if r.sampler else 1 for r in (recipe, baseline)]
        batches = self.evaluation.timing_batches
        left = [str(one) for one in batches if any(one % group for group in groups)] if len(batches) > 1 else []
        if left:
            self._warn([f"{recipe.label} makes samples in groups of {max(groups)}: not timed at batch "
                        f"{' and '.join(left)} of evaluation.timing_batch."])  # fmt: skip
        return str(batch) not in left

    def _timings(self, recipes: Sequence[Recipe], baseline: Recipe, batch: int) -> list[dict[str, Any]]:
        keys = [self.timing_id(recipe, baseline, batch) for recipe in recipes]
        before = {key: self.find("timing", key) for key in keys}
        found = {key: record for key, record in before.items() if record and not disturbed(record)}
        todo = {key: recipe for key, recipe in zip(keys, recipes, strict=True) if key not in found}
        artefacts = {key: self.artefacts(recipe)[0] for key, recipe in todo.items()}
        with ExitStack() as stack:
            for folder in sorted({self._store(recipe).folder for recipe in todo.values()}):  # in one order everywhere
                stack.enter_context(locked(folder / ".timing.lock"))
            for key in list(todo):
                there = self.find("timing", key)
                if there and (there != before[key] or not disturbed(there)):  # another process was faster
                    found[key] = there
                    del todo[key]
            for key, made in self._time(todo, baseline, batch, artefacts).items():
                if disturbed(made):
                    self.say(
                        f"{made['label']} was timed on a disturbed machine (by {made['disturbance']:.0%}; at most "
                        f"{DISTURBED:.0%} is kept): the same command times it again."
                    )
                found[key] = made
                if (old := before[key]) and old["disturbance"] <= made["disturbance"]:
                    found[key] = old
                else:
                    self.results.save(made)
        return [found[key] for key in keys]

    def _time(
        self, recipes: dict[str, Recipe], baseline: Recipe, batch: int, artefacts: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """A new record for each of these recipes, by its id, from common rounds."""
        if not recipes:
            return {}
        e, keys = self.evaluation, list(recipes)
        where = environment(self.device) | self.suite.execution()
        against = {"id": self.quality_id(baseline), "samples": self.generation_id(baseline)}
        beside = [
            other["baseline_ms"]["value"] for other in self.results.intact("timing")
            if timed_against(other, against) and other.get("batch") == batch and "baseline_ms" in other
            and where.items() <= other.get("environment", {}).items()
        ]  # fmt: skip
        rounds = {"repetitions": e.repetitions, "most_repetitions": e.most_repetitions, "precision": e.timing_precision}

        def measure(places: Sequence[int]) -> list[dict[str, Any]]:
            some = [keys[place] for place in places]
            own, given = [recipes[key] for key in some], [artefacts[key] for key in some]
            return time_recipes(
                self.pipe, self.suite, own, baseline, models=self.models, artefacts=given, batch=batch,
                on_round=self.on_round, **rounds,
            )  # fmt: skip

        about = {
            "kind": "timing",
            "baseline": against["id"],
            "baseline_samples": against["samples"],
            "suite": self.suite.name,
            "device_name": where["device_name"],
            "threads": where["threads"],
            "isa": instruction_set(self.device),
            "environment": where | provenance(),
            "timing_precision": e.timing_precision,
        }
        return {
            key: about | {"id": key, "quality": self.quality_id(recipe), "label": recipe.label} | measured
            for (key, recipe), measured in zip(recipes.items(), calmest(measure, len(keys), beside), strict=True)
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

    def picture(self, key: str, images: torch.Tensor) -> None:
        """Write the picture of a record: its first samples side by side."""
        from PIL import Image

        shown = self.suite.to_uint8(images[:STRIP])
        shown = shown[:, shown.shape[1] // 2] if shown.ndim == 5 else shown  # of videos the frame in the middle
        strip = torch.cat(list(shown), dim=-1).permute(1, 2, 0).numpy()
        picture = Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip)
        picture.thumbnail((STRIP * PICTURE, PICTURE))
        data = io.BytesIO()
        picture.save(data, "png", optimize=True)
        write_atomic(self.results.root / "records" / "quality" / f"{key}.png", data.getvalue())
