"""Adaptive Guidance (AG): classifier-free guidance until its two predictions agree, then the conditional one alone.

Castillo et al. 2023, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models", AAAI 2025
(arXiv:2312.12487): with gamma_t the cosine similarity of eps(x_t, c) and eps(x_t) over all their elements,

    eps_AG = u + s (c - u)  while gamma_t < threshold,   eps(x_t, c) from the first gamma_t >= threshold on, for good.

The evaluation that finds the switch has paid for both rows; the later ones pay for one. The paper's thresholds, 0.991
to 0.996, are for 20 steps of a text-to-image model, and its decision is one for a prompt.

Deviations: `space` says which predictions are compared. Those of eps nearly agree at high noise already, whatever the
guidance does, because both are nearly x itself; those of x_0 do not, and are the default with a threshold of its own.
`decision=per_sample` switches every sample of the batch by itself, so that an image does not depend on its batch; the
unconditional rows become fewer from step to step, and are in one call with the conditional ones where pipeline and
cache allow that (`accel.core.guidance.predicted`). Where a pipeline guides by a third branch (InstructPix2Pix) all of
them must agree with the conditional one. `batch` compares the batch's mean and switches all at once, but an image then
depends on the batch. The first `min_steps` steps are guided whatever the cosine. A cache finds what it kept of a row by
part and member of the batch. Each decision reads numbers from the device, which waits for it. Shapes: predictions
(2 B, C, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from accel.core.devices import send
from accel.core.guidance import Guidance, Scaled, by_part, predicted
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
    branchwise: ClassVar[bool] = True

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
        guided = node.memory.get("guided", list(range(inputs.rows // len(inputs.parts))))
        found = self._evaluate(inputs, inner, node, guided)
        if guided and node.clock.step >= self.min_steps:
            reached = self.agreement(found, guided, inputs, node) >= self.threshold
            if off := [i for i, over in zip(guided, reached.tolist(), strict=True) if over]:
                found = {part: unguided(rows, found["cond"], off) for part, rows in found.items()}
                node.clock.mark(OFF, off)
                node.memory["guided"] = [i for i in guided if i not in off]
        return torch.cat([found[part] for part in inputs.parts])

    def _evaluate(self, inputs, inner, node, guided: list[int]) -> dict[str, torch.Tensor]:
        """Predictions by part; where there is no guidance any more the conditional one stands in all."""
        if len(guided) == inputs.rows // len(inputs.parts):
            return by_part(inner(inputs), inputs)
        asked = {part: None if part == "cond" else guided for part in inputs.parts}
        seen = predicted(inputs, inner, node, asked)
        found = {part: seen["cond"].clone() if part != "cond" else seen["cond"] for part in inputs.parts}
        for part in seen.keys() - {"cond"}:
            found[part][send(guided, found[part].device)] = seen[part]
        return found

    def agreement(self, found: Mapping[str, torch.Tensor], guided: list[int], inputs, node) -> torch.Tensor:
        """What is held against the threshold, of each of the samples `guided` (B,): cosine of the conditional and the
        unconditional prediction, the least of those of several branches."""
        x = latents(inputs.take("cond"), found["cond"])
        which = send(guided, x.device) if len(guided) < len(x) else slice(None)
        at, x = level(node.clock), x[which]

        def seen(rows: torch.Tensor) -> torch.Tensor:
            rows = own(rows, x)[which]
            return at.to(self.space, rows.to(exactly(rows)), x.to(exactly(rows)))

        cond = seen(found["cond"])
        others = [similarity(seen(rows), cond) for part, rows in found.items() if part != "cond"]
        return DECISIONS[self.decision](torch.stack(others).amin(0))


def similarity(u: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """gamma = <u, c> / (|u| |c|) (B,), over all elements of each sample of u and c (B, C, ...)."""
    return torch.cosine_similarity(u.flatten(1), c.flatten(1), dim=1)


def unguided(u: torch.Tensor, c: torch.Tensor, off: list[int]) -> torch.Tensor:
    """u with c in the rows `off`, so that u + s (c - u) is c there, whatever s."""
    u, rows = u.clone(), send(off, u.device)
    u[rows] = c[rows]
    return u
