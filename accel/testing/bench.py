"""What a contract is checked on: suites with their networks loaded, and the one of them that a recipe fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import denoiser_name
from accel.core.recipe import Recipe, accelerate
from accel.core.run import Run
from accel.core.seeds import generators
from accel.errors import ConfigError, IncompatibleError
from accel.evaluation.generate import generate
from accel.studies.calibration import Calibration
from accel.suites.base import Networks, Suite
from accel.testing.temporary import temporary_folder

SEED = 5


@dataclass(frozen=True)
class Bench:
    """A suite with its pipeline and further networks; checks must leave them as they found them."""

    suite: Suite
    device: str = "cpu"

    @cached_property
    def pipe(self) -> Any:
        return self.suite.ready(self.device)

    @cached_property
    def models(self) -> Networks:
        return self.suite.networks().to(self.device)

    @cached_property
    def net(self) -> nn.Module:
        return getattr(self.pipe, denoiser_name(self.pipe))

    @cached_property
    def _kept(self) -> list[tuple[Any, Recipe, Any]]:
        return []

    @cached_property
    def _calibration(self) -> Calibration:
        folder = temporary_folder()
        quiet = lambda *said: None  # noqa: E731
        print_of = self.suite.fingerprint()
        return Calibration(self.suite, print_of, lambda: self.pipe, lambda: self.models, folder, 2, quiet, quiet)

    def artefacts(self, recipe: Recipe) -> dict[str, dict[str, torch.Tensor]] | None:
        """What the recipe's methods need, made on first use."""
        return self._calibration.artefacts(recipe)[0]

    def accelerated(self, recipe: Recipe) -> Any:
        """The pipeline running `recipe` with all that it needs, as a context."""
        return accelerate(self.pipe, recipe, models=self.models, artefacts=self.artefacts(recipe))

    def generate(self, recipe: Recipe, start: int = 0, stop: int = 2, batch: int = 2) -> torch.Tensor:
        """Samples of the pipeline, which runs `recipe` already."""
        return generate(self.pipe, self.suite, recipe, SEED, start, stop, batch)

    def images(self, recipe: Recipe, start: int = 0, stop: int = 2, batch: int = 2) -> tuple[torch.Tensor, Run]:
        """Samples of `recipe`, and what happened."""
        with self.accelerated(recipe) as run:
            return self.generate(recipe, start, stop, batch), run

    def once(self, what: str, recipe: Recipe, make: Callable[[], Any]) -> Any:
        """What `make` gave for an equal recipe when it was first asked for; equal methods are of the same class."""
        how = what, torch.get_num_threads(), torch.backends.mkldnn.enabled  # in which order torch sums
        for kept, own, value in self._kept:
            if kept == how and own == recipe:
                return value
        self._kept.append((how, recipe, make()))
        return self._kept[-1][-1]

    def fresh(self, recipe: Recipe, count: int = 2) -> torch.Tensor:
        """The first `count` samples of `recipe`, one batch in a context of its own: what checks hold others against."""
        return self.once(f"{count} samples", recipe, lambda: self.images(recipe, 0, count, count)[0]).clone()

    def untouched(self) -> torch.Tensor:
        """What `plain` gives, as it was before the first check that asks."""
        return self.once("plain", Recipe(), self.plain)

    def plain(self, steps: int = 4) -> torch.Tensor:
        """Two samples of the pipeline as it is now, whatever is attached."""
        call = self.suite.conditions(0, 2) | self.suite.guidance_arguments(Recipe())
        return self.pipe(**call, generator=generators(SEED, 0, 2), num_inference_steps=steps, output_type="pt").images

    def refusal(self, recipe: Recipe, machine: bool = True) -> str | None:
        """Why the pipeline, or with `machine` this machine, cannot run `recipe`; None if it can."""
        try:
            recipe.check(self.pipe, self.models, machine)
        except (ConfigError, IncompatibleError) as error:
            return str(error)
        return None


@lru_cache(maxsize=16)
def bench(suite: Suite) -> Bench:
    """The bench of a suite, loaded once."""
    return Bench(suite)


@dataclass(frozen=True)
class Case:
    """One method under contract: its axis, a recipe that has it there, and where it may be tried.

    `neutral`: the same method at settings that change nothing, None if it has none. `tolerance`: the greatest
    difference of a sample alone and in a batch. `changes`: whether it changes the result at all. `waits`: how often an
    evaluation may make the host wait for a GPU.
    """

    axis: str
    recipe: Recipe
    suites: tuple[Suite, ...]
    neutral: Any = None
    changes: bool = True
    tolerance: float = 2e-3
    waits: int = 0

    @property
    def method(self) -> Any:
        return getattr(self.recipe, self.axis)

    @property
    def label(self) -> str:
        return f"{self.axis} {getattr(self.method, 'label', None) or getattr(self.method, 'name', '')}"

    def with_method(self, method: Any) -> Recipe:
        return replace(self.recipe, **{self.axis: method})

    def all(self) -> list[Bench]:
        return [bench(suite) for suite in self.suites]

    def fitting(self) -> Iterator[Bench]:
        """Where the recipe runs; AssertionError if nowhere, IncompatibleError if this machine lacks what it needs."""
        reasons, lacking, ran = {}, None, False
        for one in self.all():
            refused = one.refusal(self.recipe)
            if refused is None:
                ran = True
                yield one
            elif (reason := one.refusal(self.recipe, machine=False)) is None:
                lacking = lacking or refused
            else:
                reasons[one.suite.name] = reason
        if lacking and not ran:
            raise IncompatibleError(lacking)
        said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        assert ran, f"{self.label} runs on none of the suites that it was tried on; give `suite=`. {said}"

    def first(self) -> Bench:
        return next(self.fitting())


def prepared(made: Recipe, on: Bench) -> Recipe:
    """The recipe with the numbers of what its cache has learned, so that it no longer asks for them."""
    if made.cache is None or not made.cache.calibrated:
        return made
    own = (on.artefacts(made) or {}).get("cache")
    return replace(made, cache=made.cache.prepared(on.pipe, made, own))


def differing(a: torch.Tensor, b: torch.Tensor, scale: Iterable[torch.Tensor] = ()) -> float:
    """Greatest difference of two tensors, relative to the greatest value of `scale` where that exceeds 1."""
    largest = max([1.0, *(float(t.abs().max()) for t in scale)])
    return float((a - b).abs().max()) / largest
