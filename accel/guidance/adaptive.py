"""Adaptive Guidance (AG): classifier-free guidance until its two predictions agree, then the conditional one alone.

Castillo et al. 2023, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models", AAAI 2025
(arXiv:2312.12487): with gamma_t the cosine similarity of eps(x_t, c) and eps(x_t) over all their elements,

    eps_AG = u + s (c - u)  while gamma_t < threshold,   eps(x_t, c) from the first gamma_t >= threshold on, for good.

The evaluation that finds the switch has paid for both rows; the later ones pay for one. The paper's thresholds, 0.991
to 0.996, are for 20 steps of a text-to-image model, and its decision is one for a prompt.

Deviations: `space` says which predictions are compared. Those of eps nearly agree at high noise already, whatever the
guidance does, because both are nearly x itself; those of x_0 do not, and are the default with a threshold of its own.
`decision=per_sample` switches every sample of the batch by itself, so that an image does not depend on its batch; its
unconditional rows become fewer from step to step, in a call of their own. `batch` compares the batch's mean and
switches all at once: one call an evaluation, but an image then depends on the batch. The first `min_steps` steps are
guided whatever the cosine. A cache finds what it kept of a row by part and member of the batch. Each decision reads
numbers from the device, which waits for it. Shapes: predictions (2 B, C, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from accel.core.devices import send
from accel.core.guidance import Guidance, Scaled, halves, joined
from accel.core.threshold import Learned, ThresholdRule, Watched
from accel.errors import check_float, check_int, unknown
from accel.guidance.cfg import CFG
from accel.guidance.spaces import SPACES, exactly, latents, level, own

# What is held against the threshold, of the samples' similarities (B,).
DECISIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "per_sample": lambda gamma: gamma,
    "batch": lambda gamma: gamma.mean().expand(len(gamma)),
}
OFF = "guidance off"  # the event's name
NEVER = 2.0  # a cosine that is not reached


@dataclass(frozen=True)
class AdaptiveGuidance(Scaled):
    """CFG of `scale` until the cosine of both predictions in `space` (x0, eps or v) reaches `threshold`.

    A threshold above 1 is never reached: plain CFG. The switch is among `Run.events`.
    """

    threshold: float = 0.99
    space: str = "x0"
    decision: str = "per_sample"
    min_steps: int = 1
    remembers: ClassVar[bool] = True
    varies: ClassVar[bool] = True
    changes_conditional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("guidance.threshold", self.threshold, -1.0)
        check_int("guidance.min_steps", self.min_steps, 0)
        if self.space not in SPACES:
            raise unknown("guidance.space", str(self.space), SPACES)
        if self.decision not in DECISIONS:
            raise unknown("guidance.decision", str(self.decision), DECISIONS)

    @property
    def label(self) -> str:
        return f"ag{self.scale:g}({self.space}>={self.threshold:g})"

    @property
    def exact(self) -> Guidance:
        return CFG(self.scale)

    @property
    def threshold_rule(self) -> ThresholdRule:
        words = f"cosine of conditional and unconditional prediction ({self.space}), by step and sample"
        return ThresholdRule(
            "threshold", self.threshold, words, False, -1.0, lambda value: replace(self, threshold=value), self.exact,
            self._watched,
        )  # fmt: skip

    def _watched(self, recipe: Any, artefact: Learned) -> Watched:
        found: list[float] = []

        class Watching(AdaptiveGuidance):
            def agreement(self, *given: Any) -> torch.Tensor:
                gamma = super().agreement(*given)
                found.extend(gamma.tolist())
                return gamma

        return Watching(**{f.name: getattr(self, f.name) for f in fields(self)} | {"threshold": NEVER}), found

    def guide(self, inputs, inner, node):
        guided = node.memory.get("guided", list(range(inputs.rows // 2)))
        uncond, cond = self._evaluate(inputs, inner, guided)
        if guided and node.clock.step >= self.min_steps:
            reached = self.agreement(uncond, cond, guided, inputs, node) >= self.threshold
            if off := [i for i, over in zip(guided, reached.tolist(), strict=True) if over]:
                uncond = unguided(uncond, cond, off)
                node.clock.mark(OFF, off)
                node.memory["guided"] = [i for i in guided if i not in off]
        return joined(uncond, cond, inputs)

    def _evaluate(self, inputs, inner, guided: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves; where there is no guidance any more the conditional prediction stands in both."""
        if len(guided) == inputs.rows // 2:
            return halves(inner(inputs), inputs)
        cond = inner(inputs.take("cond"))
        uncond = cond.clone()
        if guided:
            uncond[send(guided, cond.device)] = inner(inputs.take("uncond").pick(guided))
        return uncond, cond

    def agreement(self, uncond: torch.Tensor, cond: torch.Tensor, guided: list[int], inputs, node) -> torch.Tensor:
        """What is held against the threshold, of each of the samples `guided` (B,): cosine of both predictions."""
        x = latents(inputs.take("cond"), cond)
        rows = [own(uncond, x), own(cond, x), x]
        if len(guided) < len(x):
            which = send(guided, x.device)
            rows = [v[which] for v in rows]
        at = level(node.clock)
        u, c = (at.to(self.space, v.to(exactly(v)), rows[2].to(exactly(v))) for v in rows[:2])
        return DECISIONS[self.decision](similarity(u, c))


def similarity(u: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """gamma = <u, c> / (|u| |c|) (B,), over all elements of each sample of u and c (B, C, ...)."""
    return torch.cosine_similarity(u.flatten(1), c.flatten(1), dim=1)


def unguided(u: torch.Tensor, c: torch.Tensor, off: list[int]) -> torch.Tensor:
    """u with c in the rows `off`, so that u + s (c - u) is c there, whatever s."""
    u, rows = u.clone(), send(off, u.device)
    u[rows] = c[rows]
    return u
