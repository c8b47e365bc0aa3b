"""What methods need to be calibrated with before they run: searched, fitted or learned numbers, made once and kept.

An artefact is a safetensors file, named by a hash of everything that it depends on. It is made on samples of a seed
that no evaluation has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from accel.core.devices import device_lock
from accel.core.job import Job
from accel.core.recipe import Recipe
from accel.core.seeds import generators
from accel.errors import ConfigError
from accel.evaluation.generate import generate
from accel.files import load_tensors, save_tensors
from accel.locks import locked
from accel.records import describe, digest
from accel.samplers.ode import initial_latents
from accel.suites.base import Suite

CALIBRATION_SEED = 1_000_003  # never a seed of an evaluation
CALIBRATION_N = 32

TURN = 1.0  # seconds after which whoever waits to time may do so
PAUSE = 0.005  # seconds in which a process that waits for a lock wakes up


class _Turns:
    """The lock of a device, shared with all who generate there and given up between two steps of long work, so that a
    timing elsewhere waits for a turn and a step, not for a whole calibration."""

    def __init__(self, device: torch.device | str) -> None:
        self.device, self._held, self._begun = torch.device(device), ExitStack(), 0.0

    def __enter__(self) -> _Turns:
        self._take()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def yielded(self) -> float:
        """Give the device up if the turn is over, and wait until it is free again; the seconds that this took."""
        start = time.monotonic()
        if start - self._begun < TURN:
            return 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # nothing of ours runs on while somebody times
        self._held.close()
        time.sleep(PAUSE)
        self._take()
        return self._begun - start

    def _take(self) -> None:
        self._held.enter_context(locked(device_lock(self.device), shared=True))
        self._begun = time.monotonic()


@dataclass
class Calibration:
    """Makes and keeps the artefacts of recipes on one suite; `pipe` and `models` load what they return when asked."""

    suite: Suite
    fingerprint: dict[str, str]
    pipe: Callable[[], Any]
    models: Callable[[], dict[str, torch.nn.Module]]
    folder: Path
    batch: int
    say: Callable[[str], None]
    on_search: Callable[[int, int], None]
    _between: Callable[[], None] = field(default=lambda: None, init=False)

    def artefacts(self, recipe: Recipe) -> tuple[dict[str, dict[str, torch.Tensor]] | None, float]:
        """What sampler, guidance, cache and precision need, and the seconds that making it took (0: none)."""
        makers = {
            "sampler": self._search,
            "guidance": lambda alone, job: self._fit(alone),
            "cache": lambda alone, job: self._learn(alone, made, job),
            "precision": lambda whole, job: self._observe(whole, made, job),
        }
        made: dict[str, dict[str, torch.Tensor]] = {}
        seconds = 0.0
        for axis, alone in calibrated(recipe).items():
            flat = self._artefact(alone, lambda job, axis=axis, alone=alone: makers[axis](alone, job))
            seconds += float(flat.pop("seconds"))
            _sort_in(made, axis, flat)
        return made or None, seconds

    def _artefact(self, recipe: Recipe, make: Callable[[Job], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        path = self.folder / f"{self.artefact_id(recipe)}.safetensors"
        if (kept := load_tensors(path)) is not None:
            return kept
        with locked(path.with_name(f".{path.stem}.lock")):  # its parts have one writer, too
            kept = load_tensors(path)
            return self._made(path, make) if kept is None else kept

    def _made(self, path: Path, make: Callable[[Job], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if path.exists():
            self.say(f"artefact {path} is damaged (its hash does not match); calibrating anew.")
        with _Turns(self.pipe().device) as turns:
            job = Job(path.with_suffix(".parts"), lambda done, total: (self.on_search(done, total), between()))

            def between() -> None:
                job.start += turns.yielded()  # what others took is not its own time

            self._between = between
            flat = make(job)
        flat["seconds"] = torch.tensor(job.seconds)
        save_tensors(path, flat)
        job.finish()
        return flat

    def _search(self, recipe: Recipe, job: Job) -> dict[str, torch.Tensor]:
        n = recipe.sampler.samples_wanted()
        call = self.suite.conditions(0, n) | self.suite.guidance_arguments(recipe)
        noise = initial_latents(self.pipe(), call | {"generator": generators(CALIBRATION_SEED, 0, n)})
        return recipe.sampler.calibrate(self.pipe(), recipe, call, noise, job.on_step)

    def _sample(self, recipe: Recipe, start: int, stop: int) -> torch.Tensor:
        images = generate(self.pipe(), self.suite, recipe, CALIBRATION_SEED, start, stop, self.batch)
        self._between()
        return images

    def _fit(self, recipe: Recipe) -> dict[str, torch.Tensor]:
        return recipe.guidance.calibrate(self.pipe(), recipe, self._sample)

    def _learn(self, recipe: Recipe, artefacts: dict[str, Any], job: Job) -> dict[str, torch.Tensor]:
        return recipe.cache.calibrate(self.pipe(), recipe, self._sample, job.on_step, artefacts)

    def _observe(self, recipe: Recipe, artefacts: dict[str, Any], job: Job) -> dict[str, torch.Tensor]:
        made = recipe.precision.calibrate(self.pipe(), recipe, self._sample, self.models(), artefacts, job)
        return {f"{network}/{name}": tensor for network, own in made.items() for name, tensor in own.items()}

    def artefact_id(self, recipe: Recipe) -> str:
        """A calibration depends on weights, sampler, steps, guidance, cache, stitch and precision."""
        return artefact_id(self.suite.name, self.fingerprint, recipe)


def calibrated(recipe: Recipe) -> dict[str, Recipe]:
    """The axes that need an artefact, in the order in which they are made: for each the recipe that it is made for."""
    # A search knows the sampler and its guidance only: the model is the plain one.
    plain = Recipe(recipe.sampler, recipe.grid, recipe.guidance)
    parts = {"sampler": plain, "guidance": plain, "cache": replace(plain, cache=recipe.cache), "precision": recipe}
    return {axis: parts[axis] for axis in recipe.calibrated}


def artefact_id(suite: str, weights: Mapping[str, str], recipe: Recipe) -> str:
    """A calibration depends on weights, sampler, steps, guidance, cache, stitch and precision."""
    return digest({"calibration": CALIBRATION_N, "seed": CALIBRATION_SEED, "weights": dict(weights),
                   "suite": suite, "recipe": describe(recipe)})  # fmt: skip


def kept_artefacts(folder: Path, suite: str, weights: Mapping[str, str], recipe: Recipe) -> dict[str, Any]:
    """What `Calibration.artefacts` made of a recipe in an earlier command. ConfigError if it is not in the folder."""
    made: dict[str, dict[str, torch.Tensor]] = {}
    for axis, alone in calibrated(recipe).items():
        path = folder / f"{artefact_id(suite, weights, alone)}.safetensors"
        if (flat := load_tensors(path)) is None:
            raise ConfigError(
                f"what was learned for the {axis} of {recipe.label} is not in {path}, or damaged: artefacts are not "
                "among tracked results. Run the study again into a folder of its own (results=<folder>), which makes "
                "it, and name that folder."
            )
        flat.pop("seconds", None)
        _sort_in(made, axis, flat)
    return made


def _sort_in(made: dict[str, dict[str, torch.Tensor]], axis: str, flat: dict[str, torch.Tensor]) -> None:
    # A precision's artefact is of several networks.
    for name, tensor in flat.items():
        network, own = name.split("/", 1) if axis == "precision" else (axis, name)
        made.setdefault(network, {})[own] = tensor
