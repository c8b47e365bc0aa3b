"""Quality of saved recipes by the harness's own runner: what their files learned, in place of a calibration. A method
with another threshold runs on what the file's learned, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from accel.core.recipe import Recipe
from accel.deploy.opened import Opened
from accel.deploy.samples import tensor_digest
from accel.errors import ConfigError
from accel.metrics.verdicts import Margins
from accel.records import Results, digest
from accel.results.comparison import Comparison, Row
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.studies.samples import quiet


class SavedRunner(Runner):
    """A runner on the pipeline of an opened recipe, which needs no calibration for that recipe, and makes none."""

    def __init__(
        self,
        opened: Opened,
        evaluation: Evaluation,
        results: Results,
        say: Callable[[str], None] = quiet,
        on_samples: Callable[[int], None] = lambda count: None,
    ) -> None:
        super().__init__(opened.suite, evaluation, results, say, on_samples)
        self._saved = opened.saved
        self.pipe, self.models = opened.pipe, opened.models
        self._learned = _digest(opened.saved.artefacts or {})

    def artefacts(self, recipe: Recipe) -> tuple[dict[str, dict[str, torch.Tensor]] | None, float]:
        """What the recipe's file holds, made in no time, for each recipe whose calibrated methods are the file's.
        ConfigError for another one that would need a calibration."""
        if not recipe.calibrated:
            return None, 0.0
        if not self._learns(recipe):
            raise ConfigError(f"{recipe.label} needs a calibration, and only the saved recipe brings what it learned.")
        return dict(self._saved.artefacts or {}), 0.0

    def _learns(self, recipe: Recipe) -> bool:
        own = self._saved.recipe
        return bool(recipe.calibrated) and all(_same(getattr(recipe, a), getattr(own, a)) for a in recipe.calibrated)

    def generation_id(self, recipe: Recipe, seed: int | None = None) -> str:
        """That of a study, and for what its file learned another one: two files may have learned different numbers."""
        own = super().generation_id(recipe, seed)
        if not self._learned or not self._learns(recipe):
            return own
        return digest({"samples": own, "artefacts": self._learned})


def compared(base: dict[str, Any], own: dict[str, Any], margins: Margins) -> Comparison:
    """A study of two quality records: the baseline, and one that is held against it."""
    rows = [
        Row(role, record["label"], None, None, record, None) for role, record in (("baseline", base), ("cell", own))
    ]
    return Comparison("two recipes", "two recipes", base["suite"], tuple(rows), margins)


def _same(method: Any, own: Any) -> bool:
    """Whether two methods are the same but for their threshold."""
    rule, theirs = (getattr(one, "threshold_rule", None) for one in (own, method))
    return method == own or bool(rule and theirs and rule.at(theirs.value) == method)


def _digest(artefacts: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, str]]:
    return {name: {key: tensor_digest(tensor) for key, tensor in own.items()} for name, own in artefacts.items()}
