"""Base of guidance methods.

A guided pipeline calls the denoiser on the doubled batch and then computes u + s (c - u) itself. A guidance method
decides which rows are really evaluated and what the halves return, so that this formula yields what it intends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from accel.denoiser import Denoise, Inputs, Method, Node
from accel.errors import AccelError, IncompatibleError, check_float


@dataclass(frozen=True)
class Guidance(Method):
    """Common part: the pipeline's `guidance_scale`, the order of the halves and the check that they are there."""

    scale: float = 2.0

    def __post_init__(self) -> None:
        check_float("guidance.scale", self.scale, 1.0)

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            config = getattr(net, "config", {})
            if not (
                config.get("num_class_embeds") or config.get("cross_attention_dim") or config.get("caption_channels")
            ):
                raise IncompatibleError(
                    f"guidance needs a conditional denoiser, but {name!r} has neither classes nor cross-attention; "
                    "use guidance=none."
                )

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        if self.scale == 1.0:  # the pipeline does not double the batch: plain conditional sampling
            return inner
        clock = node.clock

        def check_doubled() -> None:
            if clock.rows != 2 * clock.samples:
                raise AccelError(
                    f"the recipe's guidance expects a doubled batch, but the denoiser got {clock.rows} rows for "
                    f"{clock.samples} images; call the pipeline with guidance_scale={self.scale}."
                )

        clock.on_stage(check_doubled)
        # DiTPipeline stacks (conditional, null), every other pipeline (null, conditional).
        parts = ("cond", "uncond") if node.layout == "cond_first" else ("uncond", "cond")
        return lambda inputs: self.guide(inputs.with_parts(parts), inner, node)

    def guide(self, inputs: Inputs, inner: Denoise, node: Node) -> torch.Tensor:
        """Prediction of both halves; the default evaluates both (plain classifier-free guidance)."""
        return inner(inputs)
