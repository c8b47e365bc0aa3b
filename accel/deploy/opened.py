"""A saved recipe on the suite that it was measured on: what every command that runs a recipe file begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from accel.core import applied
from accel.core.applied import Applied
from accel.core.devices import resolved
from accel.deploy.recipe_file import SavedRecipe, load_recipe
from accel.deploy.suite_words import combined, suite_of
from accel.suites.base import Suite

NAME_IT = "name it as it was measured: suite=... suite.model=..."


@dataclass
class Opened:
    """A recipe of a file, the suite that it was measured on, and the device to run it on.

    Networks are loaded when they are first needed, and are then what the recipe was measured on, or ConfigError says
    which differs. `words`: those that opened the suite.
    """

    saved: SavedRecipe
    suite: Suite
    device: str
    path: Path
    words: tuple[str, ...] = ()

    @property
    def pipe(self) -> Any:
        """The pipeline, on the device, plain."""
        return self._loaded[0]

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The further networks of the suite, there too."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, Mapping[str, nn.Module]]:
        pipe, models = self.suite.pipeline(), self.suite.networks()
        self.saved.check(pipe, models)
        return self.suite.on(pipe, self.device), models.to(self.device)

    def check(self) -> None:
        """ConfigError or IncompatibleError, with the reason, if this model or machine is not the recipe's."""
        self.saved.check_suite(self.suite)
        self.saved.recipe.check(self.pipe, self.models)

    def beside(self, saved: SavedRecipe, path: Path) -> Opened:
        """Another recipe of the same model, on the same networks. ConfigError if it was measured on another."""
        saved.check(self.pipe, self.models)
        other = replace(self, saved=saved, path=path)
        other._loaded = self._loaded
        return other

    def apply(self, strict: bool = True) -> Applied:
        """The recipe on the pipeline until `.remove()`, as accel.apply puts it there; `.pipe` is the pipeline."""
        self.check()
        return applied.apply(
            self.pipe, self.saved.recipe, models=self.models, artefacts=self.saved.artefacts, strict=strict,
            guidance_scale=self.saved.guidance_scale,
        )  # fmt: skip


def open_recipe(path: Path | str, words: Sequence[str] = (), device: str = "auto") -> Opened:
    """The recipe in folder `path` (or of a .yaml file) on its suite: the one that the file says, with `words` (settings
    of the suite) in the place of its own. `device`: auto, cpu, cuda ...

    ConfigError or IntegrityError for a file that is not what was saved, and for a suite or a device that is not there.
    """
    return opened(load_recipe(path), Path(path), words, device)


def opened(saved: SavedRecipe, path: Path, words: Sequence[str] = (), device: str = "auto") -> Opened:
    """The same of a recipe that is loaded already."""
    found = combined(saved.suite, words)
    suite = suite_of(found, saved.measured.get("suite"), NAME_IT)
    return Opened(saved, suite, resolved(device, "--device"), path, tuple(found))
