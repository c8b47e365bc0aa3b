"""The method of a recipe that decides by a threshold, and what it holds against it: watched while it saves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch

from accel import registry
from accel.core.recipe import Recipe
from accel.core.threshold import ThresholdRule
from accel.deploy.schema import AXES
from accel.errors import AccelError, ConfigError

Artefacts = Mapping[str, Mapping[str, torch.Tensor]] | None


@dataclass(frozen=True)
class Tunable:
    """The method with a threshold on one `axis` of a recipe, by its own `rule`; `artefacts`: those of the recipe."""

    recipe: Recipe
    axis: str
    rule: ThresholdRule
    artefacts: Artefacts = None

    @property
    def setting(self) -> str:
        """The threshold's name on a command line."""
        return f"{self.axis}.{self.rule.setting}"

    def at(self, value: float) -> Recipe:
        """The recipe with another threshold."""
        return self._with(self.rule.at(value))

    @property
    def off(self) -> Recipe:
        """The recipe without what the method saves."""
        return self._with(self.rule.off)

    def watch(self) -> tuple[Recipe, list[float]]:
        """`off`, with a list that has, or gets while this runs, each residual. ConfigError if the recipe lacks the
        artefact that they are in."""
        method, found = self.rule.watch(self.recipe, (self.artefacts or {}).get(self.axis))
        return self._with(self.rule.off if method is None else method), found

    def _with(self, method: object) -> Recipe:
        return replace(self.recipe, **{self.axis: method})


def tunable(recipe: Recipe, artefacts: Artefacts = None, axis: str | None = None) -> Tunable:
    """The method with a threshold in a recipe, on `axis` where there are several. ConfigError if it has none (there),
    and if it has several and no axis is said."""
    found = {own.axis: own for own in _tunables(recipe, artefacts)}
    if not found:
        raise ConfigError(
            f"the recipe {recipe.label} has no method whose residual is held against a threshold; allowed: "
            f"{', '.join(_allowed())}."
        )
    if axis is None and len(found) > 1:
        raise ConfigError(
            f"the recipe {recipe.label} has several thresholds, {' and '.join(own.setting for own in found.values())}; "
            f"choose one of them: {' or '.join(f'--axis {name}' for name in found)}."
        )
    if axis is not None and axis not in found:
        raise ConfigError(
            f"--axis is {axis!r}, and the recipe {recipe.label} has no threshold there; allowed: {', '.join(found)}."
        )
    return found[axis or next(iter(found))]


def _tunables(recipe: Recipe, artefacts: Artefacts) -> list[Tunable]:
    rules = {f.name: getattr(getattr(recipe, f.name), "threshold_rule", None) for f in fields(recipe)}
    return [Tunable(recipe, axis, rule, artefacts) for axis, rule in rules.items() if rule is not None]


def _allowed() -> list[str]:
    """All registered choices that have a threshold, as overrides."""
    found = []
    for axis in AXES:
        for choice in registry.groups().get(axis, ()):
            try:
                method = registry.method(axis, choice)
                found += [f"{axis}={choice}"] if getattr(method, "threshold_rule", None) is not None else []
            except AccelError:  # what cannot be built here is no remedy
                continue
    return found
