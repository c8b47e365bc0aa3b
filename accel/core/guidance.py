"""Base of guidance methods.

A guided pipeline calls the denoiser on the doubled batch and then computes u + s (c - u) itself. A guidance method
decides which rows are really evaluated and what the halves return, so that this formula yields what it intends: the
same prediction in both halves is what the pipeline steps with, whatever s is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from accel.core import pipelines
from accel.core.branches import TwoCalls, classifier_free
from accel.core.denoiser import Denoise, Inputs, Node, signature_of
from accel.core.devices import send
from accel.core.method import Method
from accel.errors import AccelError, IncompatibleError, check_float

# Config entries that a conditional denoiser has: classes (UNet2DModel, DiT), text (UNet2DConditionModel, PixArt, SD3).
CONDITIONAL = (
    "num_class_embeds",
    "num_embeds_ada_norm",
    "cross_attention_dim",
    "caption_channels",
    "joint_attention_dim",
)
TIMES = ("timestep", "timesteps", "t", "sigma")  # what a network is told of the time
CLASSIFIER = "classifier"  # its name among the networks that `accelerate` is given


class Guidance(Method):
    """Common part: what the pipeline is asked for, the order of the halves and the check that they are there.

    `remembers`: the prediction depends on earlier evaluations of the same trajectory, so that it is no function of (x,
    t). `models`: names of further denoisers that it evaluates. `uses_classifier`: it needs the suite's classifier.
    `changes_conditional`: what it gives the pipeline as the conditional prediction is not the network's, where guidance
    is on. `scalable`: a pipeline that scales the length of guided predictions back to that of c may scale its own.
    `branchwise`: what it returns of a sample are the network's own predictions, or the conditional one in the place of
    all, which is right for a pipeline with further branches, too.
    """

    remembers: ClassVar[bool] = False
    uses_classifier: ClassVar[bool] = False
    changes_conditional: ClassVar[bool] = True
    scalable: ClassVar[bool] = True
    branchwise: ClassVar[bool] = False
    models: tuple[str, ...] = ()

    @property
    def pipeline_scale(self) -> float:
        """What the pipeline is called with as `guidance_scale`; above 1 it doubles the batch."""
        raise TypeError(f"{type(self).__name__} does not say what to ask of the pipeline")

    @property
    def neutral(self) -> bool:
        """Whether the setting leaves the pipeline's own prediction alone."""
        return self.pipeline_scale == 1.0

    @property
    def exact(self) -> Guidance | None:
        """The guidance whose converged trajectory is what this one should come to: itself, if it is no shortcut."""
        return self

    @property
    def shortcut(self) -> bool:
        """Whether it is a cheaper way to the images of another guidance, `exact`."""
        return self.exact not in (None, self)

    @property
    def plain(self) -> bool:
        """Whether it is u + s (c - u) and no more, at every noise level alike: nothing here is overridden that could
        look at the level, remember, or change the prediction."""
        parts = ("prepared", "attach", "guide", "follow")
        return all(getattr(type(self), part) is getattr(Guidance, part) for part in parts)

    @property
    def keeps_conditional(self) -> bool:
        """Whether the pipeline may measure the conditional prediction (guidance_rescale): it is the network's own."""
        return self.plain or self.neutral or not self.changes_conditional

    def check(self, nets, recipe) -> None:
        self._check_conditional(nets)
        sampler = recipe.sampler
        if sampler is None:
            return
        if self.remembers and sampler.predicts:
            raise IncompatibleError(
                f"guidance {self.label} depends on earlier evaluations of the trajectory, and sampler {sampler.name} "
                "evaluates the model outside of it; use guidance=cfg, or a sampler such as dpmpp_2m."
            )
        if sampler.calibrated and (self.models or self.uses_classifier):
            raise IncompatibleError(
                f"guidance {self.label} needs networks beside the pipeline's, which the search of sampler "
                f"{sampler.name} does not have; use guidance=cfg, or give the sampler numbers of your own."
            )

    def _check_conditional(self, nets: Mapping[str, nn.Module]) -> None:
        for name, net in nets.items():
            if not conditional(net):
                raise IncompatibleError(
                    f"guidance needs a conditional denoiser, but {name!r} has neither classes nor cross-attention; "
                    "use guidance=none."
                )

    def check_around(self, scheduler: Any, models: Mapping[str, nn.Module]) -> None:
        if self.uses_classifier and CLASSIFIER not in models:
            raise IncompatibleError(
                f"guidance {self.label} needs a classifier of clean images, and there is none; use a suite that has "
                "one, such as digits, pass models={'classifier': net}, or use guidance=cfg."
            )

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock = node.clock
        clock.on_reset(node.memory.clear)
        if self.pipeline_scale == 1.0:  # the pipeline does not double the batch
            return inner if self.neutral else lambda inputs: self.guide(inputs.with_parts(("cond",)), inner, node)

        if node.layout != "unseen":
            return self._laid_out(node.layout, node, inner)
        found: list[Denoise] = []

        def observed(inputs: Inputs) -> torch.Tensor:
            if not found:
                found.append(self._laid_out(pipelines.seen(inputs.sample), node, inner))
            return found[0](inputs)

        return observed

    def _laid_out(self, layout: str, node: Node, inner: Denoise) -> Denoise:
        """Guidance of a pipeline of that layout (see `accel.core.pipelines`)."""
        clock = node.clock
        expected = "a doubled batch" if layout in pipelines.BLOCKS else "a batch of " + layout.replace(",", ", ")

        def refuse(found: str) -> None:
            raise AccelError(
                f"the recipe's guidance expects {expected}, but {found}; "
                f"call the pipeline with guidance_scale={self.pipeline_scale}."
            )

        def check_stacked() -> None:
            if clock.rows != len(parts) * clock.samples:
                refuse(f"the denoiser got {clock.rows} rows for {clock.samples} images")

        if layout == "separate":
            return TwoCalls(self, inner, node)
        parts = pipelines.blocks(layout)
        if layout != "cond_first":
            clock.on_stage(check_stacked)

            def stacked(inputs: Inputs) -> torch.Tensor:
                if inputs.rows % len(parts):
                    refuse(f"the denoiser got {inputs.rows} rows")
                return self.guide(inputs.with_parts(parts), inner, node)

            return stacked

        def guided(inputs: Inputs) -> torch.Tensor:
            # DiTPipeline stacks (conditional, null) and hands both to the scheduler, so that its row count tells
            # nothing; a doubled batch is one whose halves are equal (compared once a trajectory: it waits for the GPU).
            half = inputs.rows // 2
            if clock.stage == 0 and not torch.equal(inputs.sample[:half], inputs.sample[half:]):
                refuse(f"the halves of the denoiser's {inputs.rows} rows differ")
            return self.guide(inputs.with_parts(parts), inner, node)

        return guided

    def guide(self, inputs: Inputs, inner: Denoise, node: Node) -> torch.Tensor:
        """Prediction of both halves (of the conditional rows alone where the batch is not doubled).

        The default evaluates both: plain classifier-free guidance.
        """
        return inner(inputs)


def conditional(net: nn.Module) -> bool:
    """Whether a denoiser is told a class or a text: its config says so, or its forward cannot do without one."""
    config = getattr(net, "config", {})
    if any(config.get(key) for key in CONDITIONAL):
        return True
    told = list(signature_of(net).parameters.values())[2:]
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in TIMES for p in told)


@dataclass(frozen=True)
class Scaled(Guidance):
    """A guidance on top of u + s (c - u): `scale` is s, which the pipeline applies. 1: the conditional prediction."""

    scale: float = 2.0

    def __post_init__(self) -> None:
        check_float("guidance.scale", self.scale, 1.0)

    @property
    def pipeline_scale(self) -> float:
        return self.scale


def guided(prediction: torch.Tensor, inputs: Inputs, scale: float) -> torch.Tensor:
    """What the pipeline will step with: u + scale (c - u), or the prediction itself where the batch is not doubled."""
    return prediction if len(inputs.parts) == 1 else classifier_free(*halves(prediction, inputs), scale)


def by_part(prediction: torch.Tensor, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The rows of each part of a batch's prediction, by name and in order."""
    return {block.part: prediction[block.start : block.stop] for block in inputs.blocks}


def predicted(
    inputs: Inputs, inner: Denoise, node: Node, members: Mapping[str, Sequence[int] | None]
) -> dict[str, torch.Tensor]:
    """Predictions of the samples `members` of each part (None: of all), by part; a part of none is left out.

    One call of the denoiser, as few rows are dear in two, where all beneath takes that; else, and where the pipeline
    itself calls for each part, one a part, the conditional one first.
    """
    wanted = {part: own for part, own in members.items() if own is None or len(own)}
    if node.uneven and inputs.joint:
        asked = inputs.only(wanted)
        return by_part(inner(asked), asked)
    calls = {part: inputs.take(part) for part in sorted(wanted, key=lambda part: part != "cond")}
    return {part: inner(own if wanted[part] is None else own.pick(wanted[part])) for part, own in calls.items()}


def spread(cond: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """The conditional prediction (B, ...) in the place of each part's, for the samples that `inputs` has of that."""
    held = {block.part: block for block in inputs.blocks}["cond"]
    if not inputs.uneven:
        return torch.cat([cond] * len(inputs.parts))
    place = {sample: i for i, sample in enumerate(held.samples)}
    return cond[send([place[sample] for sample in inputs.samples], cond.device)]


def halves(prediction: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(unconditional, conditional) rows of a doubled batch's prediction."""
    named = by_part(prediction, inputs)
    return named["uncond"], named["cond"]


def joined(uncond: torch.Tensor, cond: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """The doubled batch's prediction, in the order of its parts."""
    named = {"uncond": uncond, "cond": cond}
    return torch.cat([named[part] for part in inputs.parts])
