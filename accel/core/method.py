"""What every method at the denoiser seam is; guidance, precision and stitches add to it in files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from accel.core.denoiser import Denoise, Node
from accel.core.threshold import ThresholdRule
from accel.core.trajectory import Trajectory

# Metadata of a dataclass field that a method got after records of it were made (see accel.records.describe).
LATER = {"later": True}
# Metadata of one that may name a class to import by its path: no recipe file may, beyond what is registered.
CODE = {"code": True}


class Method:
    """Base of everything that attaches at the denoiser seam; subclasses are frozen dataclasses (their config).

    EPOCH is part of a run's identity: raise it when a change alters the numbers that the method produces. `varies`: how
    much is evaluated differs from sample to sample. `uneven`: it takes calls whose parts hold different samples
    (`Inputs.blocks`), as guidance makes that leaves single samples out; one that looks at no rows may say so, and to
    one that does not say so each part comes in a call of its own.
    """

    EPOCH = 1
    varies: ClassVar[bool] = False
    uneven: ClassVar[bool] = False

    @property
    def drops_parts(self) -> bool:
        """Whether it answers for a part of a batch (a half of a guided one) that is not evaluated."""
        return False

    @property
    def joins_parts(self) -> bool:
        """Whether what it gives for one part of a batch depends on the others, on purpose."""
        return self.drops_parts

    @property
    def label(self) -> str:
        """Short name for tables, with the settings that matter."""
        return type(self).__name__.lower()

    def check(self, nets: dict[str, nn.Module], recipe: Any) -> None:
        """Raise IncompatibleError when this method cannot work on `nets` or within `recipe`."""

    def check_beside(self, nets: dict[str, nn.Module], beside: Mapping[str, nn.Module]) -> None:
        """Raise IncompatibleError if it would lose, or count twice, what the networks `beside` the denoisers (a
        ControlNet) add between their blocks."""

    def check_machine(self, nets: Mapping[str, nn.Module]) -> None:
        """Raise IncompatibleError when this machine lacks a package or device that the method needs for `nets`."""

    def check_around(self, scheduler: Any, models: Mapping[str, nn.Module]) -> None:
        """Raise IncompatibleError if it cannot work with the recipe's `scheduler` or lacks a network in `models`."""

    def follow(self, scheduler: Any, node: Node) -> None:
        """Change `scheduler`, which is the recipe's own and drives the clock already, where the method needs it."""

    @property
    def calibrated(self) -> bool:
        """Whether it needs an artefact that a calibration makes."""
        return False

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        """How `accel threshold` finds the method's threshold; None for a method without one."""
        return None

    def prepared(self, pipe: Any, recipe: Any, artefact: Mapping[str, torch.Tensor] | None = None) -> Method:
        """The method with all its numbers, those of its artefact included."""
        return self

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        """Return the callable that replaces `inner` on `node`; undo work goes on `node.undo`."""
        return inner


class Stitch(Method):
    """A rule that gives each denoiser call to one of several networks: those it names, and the pipeline's own."""

    models: Sequence[str] = ()

    def combine(self, denoisers: Mapping[str, Denoise], clock: Trajectory) -> Denoise:
        """One denoiser out of `denoisers`, by name; `base` is the pipeline's."""
        raise TypeError(f"{type(self).__name__} does not say how to combine its networks")
