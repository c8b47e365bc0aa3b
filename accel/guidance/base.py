"""Base of guidance methods.

A guided pipeline calls the denoiser on the doubled batch and then computes u + s (c - u) itself. A guidance method
decides which rows are really evaluated and what the halves return, so that this formula yields what it intends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from accel.denoiser import Denoise, Inputs, Method, Node
from accel.errors import AccelError, IncompatibleError, check_float

# Config entries that a conditional denoiser has: classes (UNet2DModel, DiT), text (UNet2DConditionModel, PixArt).
CONDITIONAL = ("num_class_embeds", "num_embeds_ada_norm", "cross_attention_dim", "caption_channels")


@dataclass(frozen=True)
class Guidance(Method):
    """Common part: the pipeline's `guidance_scale`, the order of the halves and the check that they are there."""

    scale: float = 2.0

    def __post_init__(self) -> None:
        check_float("guidance.scale", self.scale, 1.0)

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            config = getattr(net, "config", {})
            if not any(config.get(key) for key in CONDITIONAL):
                raise IncompatibleError(
                    f"guidance needs a conditional denoiser, but {name!r} has neither classes nor cross-attention; "
                    "use guidance=none."
                )

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        if self.scale == 1.0:  # the pipeline does not double the batch: plain conditional sampling
            return inner
        clock = node.clock

        def refuse(found: str) -> None:
            raise AccelError(
                f"the recipe's guidance expects a doubled batch, but {found}; "
                f"call the pipeline with guidance_scale={self.scale}."
            )

        def check_doubled() -> None:
            if clock.rows != 2 * clock.samples:
                refuse(f"the denoiser got {clock.rows} rows for {clock.samples} images")

        if node.layout == "uncond_first":
            clock.on_stage(check_doubled)
            return lambda inputs: self.guide(inputs.with_parts(("uncond", "cond")), inner, node)

        def guided(inputs: Inputs) -> torch.Tensor:
            # DiTPipeline stacks (conditional, null) and hands both to the scheduler, so that its row count tells
            # nothing; a doubled batch is one whose halves are equal (compared once a trajectory: it waits for the GPU).
            half = inputs.rows // 2
            if clock.stage == 0 and not torch.equal(inputs.sample[:half], inputs.sample[half:]):
                refuse(f"the halves of the denoiser's {inputs.rows} rows differ")
            return self.guide(inputs.with_parts(("cond", "uncond")), inner, node)

        return guided

    def guide(self, inputs: Inputs, inner: Denoise, node: Node) -> torch.Tensor:
        """Prediction of both halves; the default evaluates both (plain classifier-free guidance)."""
        return inner(inputs)
