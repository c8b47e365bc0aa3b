"""The stages of a pipeline's call, and what those beside the denoiser leave of every speed-up."""

from __future__ import annotations

from collections.abc import Mapping

DENOISER = "denoiser"
REST = "rest"  # of the call: preparation, callbacks, what no stage has
STAGES = ("text encoder", DENOISER, "scheduler", "encoder", "decoder", REST)


def bound(stages: Mapping[str, float]) -> float:
    """T / (T - t_denoiser) of the stages of one call, in any unit: the most that a denoiser without cost would speed
    it up by (Amdahl 1967)."""
    whole = sum(stages.values())
    return whole / (whole - stages.get(DENOISER, 0.0))
