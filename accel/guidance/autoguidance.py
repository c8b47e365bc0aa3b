"""Autoguidance: a model guided by a worse version of itself, with the same condition on both sides.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", NeurIPS 2024 (arXiv:2406.02507), eq. 3 of
its sec. 3 in the form D = D_0 + w (D_1 - D_0): D_1 is the pipeline's denoiser, D_0 a smaller or less trained network of
the same task, w > 1. Predictions at one x are linear in each other, so that it is done on the outputs as they come.
Both are evaluated every time: two rows of different cost. The pipeline is not asked to guide (guidance_scale = 1), and
a network without classes works as well.

Deviations: none. The paper degrades the guiding network on purpose (its best have a quarter of the capacity and a
sixteenth of the training); here it is any named model of the suite, which was trained as well as it could be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from accel.core.guidance import Guidance
from accel.core.networks import check_shared
from accel.errors import IncompatibleError, check_float


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """`weight` w times the difference to the prediction of `model`, another of the suite's; w = 1: no guidance."""

    weight: float = 2.0
    model: str = "small"

    def __post_init__(self) -> None:
        check_float("guidance.weight", self.weight, 1.0)

    @property
    def label(self) -> str:
        return f"auto{self.weight:g}({self.model})"

    @property
    def pipeline_scale(self) -> float:
        return 1.0

    @property
    def neutral(self) -> bool:
        return self.weight == 1.0

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    def check(self, nets, recipe) -> None:
        super().check(nets, recipe)
        check_shared({name: nets[name] for name in ("base", self.model)}, "autoguidance", "guidance")
        if recipe.stitch and self.model in recipe.stitch.models:
            raise IncompatibleError(
                f"autoguidance by {self.model!r} is nothing where the stitch lets {self.model!r} itself predict; name "
                "another model in one of them, or use stitch=none."
            )

    def _check_conditional(self, nets: Mapping[str, nn.Module]) -> None:
        pass  # the two networks differ, not their conditions

    def guide(self, inputs, inner, node):
        good = inner(inputs)
        bad = node.guides[self.model](inputs)
        return autoguidance(bad, good, self.weight)


def autoguidance(d0: torch.Tensor, d1: torch.Tensor, weight: float) -> torch.Tensor:
    """D_0 + w (D_1 - D_0) of the worse and the better network's predictions, of one shape; w = 1 is D_1 (eq. 3)."""
    return d0 + weight * (d1 - d0)
