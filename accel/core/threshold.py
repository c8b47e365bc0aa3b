"""What a method with a threshold says of itself, so that `accel threshold` finds a value without knowing the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Learned = Mapping[str, torch.Tensor] | None  # an artefact
Watched = tuple[Any, list[float]]


@dataclass(frozen=True)
class ThresholdRule:
    """A method's threshold. It is reached by residuals r <= threshold where `rising` (which saves more at larger
    thresholds), by r >= threshold where not.

    setting: its name below the axis; `value`: what it is now. residual: what is held against it, in words. always: a
    threshold that each residual reaches. at(value): the method with another one. off: the method without what it saves
    (None: no method on this axis).

    watch(recipe, artefact): (what stands in the place of the method while nothing is saved, the list of residuals). The
    list is filled while that runs; or at once (and the former is None) where residuals are not `of_images`; ConfigError
    where the artefact that they are in is missing. fixed: what was reused changes no residual and each of them is
    compared once, so that the share of hits is known without running.
    """

    setting: str
    value: float
    residual: str
    rising: bool
    always: float
    at: Callable[[float], Any]
    off: Any
    watch: Callable[[Any, Learned], Watched]
    of_images: bool = True
    fixed: bool = False

    def reached(self, residual: float, threshold: float) -> bool:
        """Whether the residual reaches the threshold."""
        return residual <= threshold if self.rising else residual >= threshold
