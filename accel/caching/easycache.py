"""EasyCache: reuse while the output's predicted change, by the network's own rate of change, adds up to little.

Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching"
(arXiv:2507.02860). With x_t the network's input and v_t its output, i and j the last two evaluations that ran, and |.|
the mean absolute value:

    k_i = |v_i - v_j| / |x_i - x_j|                 how much the output changes for a change of the input
    e_t = k_i |x_t - x_(t-1)| / |v_i|               predicted relative change of the output since the evaluation before
    v_t = x_t + (v_i - x_i)                         while the sum of e since the last run is below the threshold

No fit, no model-specific numbers, and nothing of the network is looked into, so that UNets and transformers are alike.
The released code runs the first 5 (HunyuanVideo) or 10 steps (Wan) of 50 and the last one, at thresholds of 0.025 to
0.05. Deviations: each sample is decided by itself (decision=batch: all together); under guidance k and e are of both
halves; of two calls the conditional one decides, as in the released code. `first` counts solver steps; two runs are
needed for a rate. `reuse`: the paper's transformation vector is `residual`; `output` repeats v_i, `blocks` what a
transformer's blocks add.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from accel.caching.step_cache import Mean, StepCache, magnitude
from accel.caching.step_reuse import RESIDUAL
from accel.caching.step_rows import Rows


@dataclass(frozen=True)
class EasyCache(StepCache):
    """`threshold` of the predicted change; the `first` and `last` solver steps run; `decision`: per_sample | batch."""

    threshold: float = 0.05
    first: int = 2
    last: int = 1
    decision: str = "per_sample"
    reuse: str = RESIDUAL

    @property
    def label(self) -> str:
        return f"easycache({self.said()})"

    @property
    def indicator(self) -> str:
        return "predicted relative change of the output"

    def change(self, past: Rows, now: torch.Tensor, mean: Mean) -> torch.Tensor:
        moved = mean(magnitude(now - past["seen"]))
        return predicted_change(past["rate"], moved, mean(magnitude(past["output"])))

    def learned(self, past: Rows | None, now: torch.Tensor, prediction: torch.Tensor, mean: Mean) -> Rows:
        if past is None:
            known = torch.full_like(magnitude(now), torch.nan)
        else:
            changes = mean(magnitude(prediction - past["output"])), mean(magnitude(now - past["input"]))
            known = changes[0] / changes[1]
        return {"output": prediction.clone(), "input": now, "rate": known}


def predicted_change(rate: torch.Tensor, moved: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """e = k |x_t - x_(t-1)| / |v_i|, all (B,)."""
    return rate * moved / size
