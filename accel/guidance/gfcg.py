"""Gradient-free classifier guidance (GFCG): away from the class that the classifier takes the sample for instead.

Shenoy et al. 2024, "Gradient-Free Classifier Guidance for Diffusion Model Sampling", WACV 2026 (arXiv:2411.15393). The
paper's, from its abstract: a pretrained classifier, in inference only, determines at each time step a reference class
and a guidance scale; the prediction is guided with the class-conditional prediction of that reference; it combines with
classifier-free guidance. Its equations were not at hand. Our reading, with p = softmax(f(x_0)) at the conditional
prediction of x_0 and y the wanted class:

    reference r = argmax_{k != y} p_k,   w = strength (1 - p_y),   D = D_c + (scale - 1) (D_c - D_u) + w (D_c - D_r)

so that a sample that is taken for its class is left alone. The reference is evaluated only where p_y < `confident`:
one further row for each such sample, in a call of its own, and none for the others (w = 0). A classifier that was
trained with smoothed labels never comes close to p = 1 (that of `digits` says 0.96 of most real images).

x_0 is clipped to [-1, 1] for the classifier. One classifier pass an evaluation; its MACs are counted, it is no NFE. No
cache: it would reuse the features of another reference class. Shapes: predictions (B or 2 B, C, ...), p (B, K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from accel.core.devices import send
from accel.core.guidance import halves
from accel.errors import IncompatibleError, check_float
from accel.guidance.classifier import ByClassifier, conditional, logits_of
from accel.guidance.spaces import latents, level, own, shifted


@dataclass(frozen=True)
class GradientFreeClassifierGuidance(ByClassifier):
    """CFG of `scale` and `strength` (1 - p_y) times the difference to the reference class's prediction."""

    confident: float = 1.0
    varies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("guidance.confident", self.confident, 0.0, 1.0)

    @property
    def label(self) -> str:
        below = f"cfg{self.scale:g}+" if self.scale > 1 else ""
        return f"{below}gfcg{self.strength:g}"

    def check(self, nets, recipe) -> None:
        super().check(nets, recipe)
        if recipe.cache is not None:
            raise IncompatibleError(
                f"{self.label} guides with a class that changes from step to step, and cache {recipe.cache.label} "
                "would reuse the features of another one; use cache=none."
            )

    def guide(self, inputs, inner, node):
        prediction = inner(inputs)
        if self.neutral:
            return prediction
        rows, at = conditional(inputs), level(node.clock)
        labels, x = rows.kwargs["class_labels"], latents(rows, prediction)
        cond = prediction if len(inputs.parts) == 1 else halves(prediction, inputs)[1]
        weight, reference = self.decide(node, at.to("x0", own(cond, x), x), labels)
        unsure = [i for i, guided in enumerate((weight > 0).tolist()) if guided]
        if not unsure:
            return prediction
        change, which = torch.zeros_like(own(cond, x)), send(unsure, x.device)
        asked = rows.pick(unsure).given(class_labels=reference[which].to(labels.dtype))
        other = inner(asked.with_parts(("reference",)))
        change[which] = gfcg(own(cond, x)[which], own(other, x), weight[which]).to(change.dtype)
        return shifted(prediction, change.repeat(len(inputs.parts), *[1] * (change.ndim - 1)))

    def decide(self, node, x0: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(w, r): weight and reference class of each sample, both (B,)."""
        at = x0.clamp(-1, 1)
        logits = node.aside("classifier", "forward", len(x0), lambda: logits_of(node, at, labels))
        return against(logits, labels, self.strength, self.confident)


def against(
    logits: torch.Tensor, labels: torch.Tensor, strength: float, confident: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(w, r), both (B,), of logits (B, K) and wanted classes y (B,), with p = softmax(logits):

    w = strength (1 - p_y) where p_y < confident, else 0;   r = argmax_{k != y} p_k
    """
    p = logits.softmax(1)
    wanted = p.gather(1, labels[:, None])
    reference = p.scatter(1, labels[:, None], -1.0).argmax(1)
    weight = strength * (1 - wanted[:, 0])
    return torch.where(wanted[:, 0] < confident, weight, torch.zeros_like(weight)), reference


def gfcg(cond: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """w (D_c - D_r): what is added to the prediction; cond and other (B, C, ...), weight (B,)."""
    return weight.reshape(-1, *[1] * (cond.ndim - 1)) * (cond - other)
