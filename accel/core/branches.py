"""Guidance by two calls of the denoiser: the conditional and the null prediction of one evaluation, one by one.

Qwen-Image, Wan, Flux with true guidance, Lumina 2, Chroma, CogView 4 and many others do not stack both conditions into
one batch, because their prompts differ in length. A guidance method sees them as the halves of one batch all the same
(`Branches`): it is asked when the second call comes, when all is known that the first one knew, and the first call's
prediction is what it gets for its conditional rows. What it does not ask for is not evaluated.

The pipeline then makes its own of what both calls return, u + s (c - u) with whatever follows (norms that are scaled
back, a part of the tokens alone). A method that leaves c as it is speaks through u: c in its place is no guidance. One
that changes the combination, g, has it put in the place of the pipeline's where that meets the scheduler, so that
nothing has to be inverted; where the pipeline scales the length of each token's prediction back to that of c
(Qwen-Image, Lumina 2), g's is, too.

How the two are combined is watched at the first step that tells: u + s (c - u), with c the first call's and with or
without those lengths; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from accel.core.denoiser import Denoise, Inputs, Node
from accel.errors import AccelError

ORDER = ("cond", "uncond")  # of the calls
CLOSE = 0.03  # relative: half precision


@dataclass(frozen=True)
class Branches(Inputs):
    """The calls of one evaluation, by name, in the place of one call with all their rows. `kwargs` are the first's."""

    calls: Mapping[str, Inputs] = field(default_factory=dict)
    joint: ClassVar[bool] = False

    @classmethod
    def of(cls, calls: Mapping[str, Inputs]) -> Branches:
        first = next(iter(calls.values()))
        return cls(first.kwargs, first.sample_name, tuple(calls), None, first.listed, calls=calls)

    @property
    def sample(self) -> torch.Tensor:
        return torch.cat([call.sample for call in self.calls.values()])

    @property
    def rows(self) -> int:
        return sum(call.rows for call in self.calls.values())

    def take(self, part: str) -> Inputs:
        return self.calls[part]


class TwoCalls:
    """What a `guidance` does where the pipeline calls the denoiser of `node` twice; `inner` evaluates one call.

    A callable in the denoiser's place. Its state is of one evaluation. Raises AccelError for a third call of a stage,
    and at the scheduler's step where there was only one, or where the pipeline's combination is another.
    """

    def __init__(self, guidance: Any, inner: Denoise, node: Node) -> None:
        self.guidance, self.inner, self.node = guidance, inner, node
        self._first: tuple[Inputs, torch.Tensor] | None = None
        self._returned: list[torch.Tensor] = []
        self._combined: torch.Tensor | None = None
        self._known = False  # how the pipeline combines them
        self._lengths = False  # and whether it scales them back
        node.clock.on_reset(self._forget)
        node.clock.on_output(self._meets_the_scheduler)

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        at = len(self._returned)
        if at == len(ORDER):
            raise AccelError(
                f"the denoiser was called more than {len(ORDER)} times in one step (with {inputs.rows} rows); allowed "
                "with guidance: the conditional and the null call. Switch the pipeline's further guidance off."
            )
        inputs = inputs.with_parts((ORDER[at],))
        prediction = self._second(inputs) if at else self.inner(inputs)
        if not at:
            self._first = inputs, prediction
        self._returned.append(prediction)
        return prediction

    def _second(self, inputs: Inputs) -> torch.Tensor:
        first, cond = self._first
        if first.rows != inputs.rows:
            raise AccelError(
                f"the denoiser was called with {first.rows} and then with {inputs.rows} rows in one step; allowed with "
                "guidance: as many null as conditional rows."
            )
        null: list[torch.Tensor] = []

        def evaluated(asked: Inputs) -> torch.Tensor:
            if isinstance(asked, Branches):
                return torch.cat([cond, evaluated(asked.calls["uncond"])])
            if asked is first:
                return cond
            prediction = self.inner(asked)
            if asked is inputs:
                null.append(prediction)
            return prediction

        both = Branches.of({"cond": first, "uncond": inputs})
        own_cond, own_uncond = self.guidance.guide(both, evaluated, self.node).chunk(2)
        if self.guidance.keeps_conditional:
            return own_uncond
        self._combined = classifier_free(own_uncond, own_cond, self.guidance.pipeline_scale)
        return null[0] if null else own_uncond

    def _meets_the_scheduler(self, output: torch.Tensor) -> torch.Tensor:
        returned, combined = self._returned, self._combined
        self._forget()
        if len(returned) < len(ORDER):
            raise AccelError(
                "the recipe's guidance expects a conditional and a null call of the denoiser, but there was "
                f"{len(returned)} in this step; call the pipeline with guidance_scale={self.guidance.pipeline_scale:g} "
                "(or true_cfg_scale, where it has one), with a negative prompt where it asks for one, and without "
                "settings of its own that end guidance early."
            )
        if not self._known:
            self._watch(output, *returned)
        if combined is None:
            return output
        combined = fitted(combined, output)
        if self._lengths and self.guidance.scalable:
            combined = as_long_as(combined, fitted(returned[0], output))
        return (self.node.clock.sign * combined).to(output.dtype)

    def _watch(self, output: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor) -> None:
        cond, uncond, output = (fitted(v, output).double() for v in (cond, uncond, self.node.clock.sign * output))
        if torch.equal(cond, uncond):
            return  # tells nothing
        self._known = True
        scale = self.guidance.pipeline_scale
        plain = classifier_free(uncond, cond, scale)
        errors = [off(output, wanted) for wanted in (plain, as_long_as(plain, cond))]
        self._lengths = errors[1] < errors[0]
        if min(errors) > CLOSE:
            swapped = off(output, classifier_free(cond, uncond, scale)) <= CLOSE
            found = "the first call of the denoiser is the null one" if swapped else "they are combined in another way"
            raise AccelError(
                f"with two calls of the denoiser in a step, this pipeline should step with u + {scale:g} (c - u), c "
                f"the first call's prediction, but {found}; call it with its guidance scale at {scale:g} and no other "
                "guidance, or use guidance=none."
            )

    def _forget(self) -> None:
        self._first, self._combined = None, None
        self._returned = []


def classifier_free(u: torch.Tensor, c: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """u + s (c - u) of the unconditional and the conditional prediction, of one shape; s = 1 is c, s = 0 is u. `scale`:
    s, or what goes with that shape, such as one for each row (B, 1, ...).

    Ho & Salimans 2022 (arXiv:2207.12598), eq. 6 with s = 1 + w.
    """
    return u + scale * (c - u)


def fitted(prediction: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """`prediction` (B, ...) without what the pipeline leaves out before it steps with `output`: the tokens of an image
    that it edits (B, n + m, C), the channels of a learned variance. AccelError where the shapes have nothing to do with
    each other."""
    same = prediction.ndim == output.ndim and len(prediction) == len(output)
    for dim in range(1, output.ndim) if same else ():
        if prediction.shape[dim] > output.shape[dim]:
            prediction = prediction.narrow(dim, 0, output.shape[dim])
    if prediction.shape != output.shape:
        raise AccelError(
            f"the denoiser predicts {tuple(prediction.shape)} and the pipeline steps with {tuple(output.shape)}, so "
            "that guidance cannot be put there; use guidance=none."
        )
    return prediction


def as_long_as(g: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """g |c| / |g|, lengths of each vector along the last dimension of g and c (B, ..., C)."""
    return g * (c.norm(dim=-1, keepdim=True) / g.norm(dim=-1, keepdim=True))


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """|found - wanted| / |wanted|. Waits for the device."""
    return float((found - wanted).norm() / wanted.norm())
