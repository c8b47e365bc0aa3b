"""What a step cache keeps of an evaluation, and how the next one is answered with it, without the network's blocks.

    output     the prediction:                  v_t = v_i
    residual   the prediction less its input:   v_t = x_t + (v_i - x_i), over the channels that both have
    blocks     what a transformer's blocks add: h_t(out) = h_t(in) + h_i(out) - h_i(in); what is around them runs

i is the last evaluation that ran. `blocks` is for transformers whose blocks diffusers' own hooks know; `auto` is
`blocks` there, and `output` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from accel.caching.diffusers_blocks import blocks_of, entered, hidden_states, passed
from accel.core.denoiser import Denoise, Inputs, Node, replaced_forward
from accel.errors import IncompatibleError

AUTO, OUTPUT, RESIDUAL, BLOCKS = "auto", "output", "residual", "blocks"
REUSE = (AUTO, OUTPUT, RESIDUAL, BLOCKS)


class Keeper(Protocol):
    """One way of reuse on one network. `noted`: whether a reuse is an evaluation, which notes itself in the trace."""

    noted: ClassVar[bool]

    def run(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction, and what is kept of it, both with the rows of `inputs`."""

    def reuse(self, inputs: Inputs, kept: torch.Tensor) -> torch.Tensor:
        """A prediction from what is kept of these rows."""


class Output:
    """See the module."""

    noted = False

    def __init__(self, node: Node, inner: Denoise) -> None:
        self.inner = inner

    def run(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        prediction = self.inner(inputs)
        return prediction, prediction.clone()

    def reuse(self, inputs: Inputs, kept: torch.Tensor) -> torch.Tensor:
        return kept.clone()


class Residual(Output):
    """See the module."""

    def run(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        prediction = self.inner(inputs)
        return prediction, shifted_by(prediction, inputs.sample, -1)

    def reuse(self, inputs: Inputs, kept: torch.Tensor) -> torch.Tensor:
        return shifted_by(kept, inputs.sample, 1)


def shifted_by(prediction: torch.Tensor, x: torch.Tensor, sign: int) -> torch.Tensor:
    """prediction + sign x (B, C, ...), over the first channels that both have; the others stay."""
    if (prediction.shape[0], *prediction.shape[2:]) != (x.shape[0], *x.shape[2:]):
        raise IncompatibleError(
            f"cache.reuse={RESIDUAL} needs a prediction of its input's shape, and {tuple(x.shape)} is answered with "
            f"{tuple(prediction.shape)}; use cache.reuse={OUTPUT}."
        )
    shared = min(prediction.shape[1], x.shape[1])
    moved = prediction.clone()
    moved[:, :shared] += sign * x[:, :shared]
    return moved


class Blocks:
    """See the module. Only the instance attribute `forward` of the blocks is shadowed, while the recipe is attached."""

    noted = True

    def __init__(self, node: Node, inner: Denoise) -> None:
        self.node, self.inner = node, inner
        self.entry: torch.Tensor | None = None
        self.added: torch.Tensor | None = None  # by all blocks, in a run
        self.given: torch.Tensor | None = None  # in the place of what they would add
        blocks = blocks_of(node.net)
        for place, block in enumerate(blocks):
            forward = self._passing(block, block.forward, place == 0, place == len(blocks) - 1)
            node.undo.enter_context(replaced_forward(block, forward))

    def run(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        prediction = self.inner(inputs)
        added, self.added, self.entry = self.added, None, None
        if added is None or len(added) != inputs.rows:
            found = "nothing" if added is None else f"a tensor of shape {tuple(added.shape)}"
            raise IncompatibleError(
                f"the blocks of {type(self.node.net).__name__} leave {found} for a batch of {inputs.rows} rows, so "
                f"that nothing can be reused there; use cache.reuse={OUTPUT}."
            )
        return prediction, added

    def reuse(self, inputs: Inputs, kept: torch.Tensor) -> torch.Tensor:
        before, self.node.mode, self.given = self.node.mode, "reused", kept
        try:
            return self.inner(inputs)
        finally:
            self.node.mode, self.given, self.entry = before, None, None

    def _passing(self, block: nn.Module, forward: Callable[..., Any], first: bool, last: bool) -> Callable[..., Any]:
        def passing(*args: Any, **kwargs: Any) -> Any:
            if first:
                self.entry = entered(args, kwargs)
            if self.given is not None:
                return passed(block, args, kwargs, self.entry + self.given if last else entered(args, kwargs))
            output = forward(*args, **kwargs)
            if last:
                left = hidden_states(block, output)
                self.added = left - self.entry if left.shape == self.entry.shape else None
            return output

        return passing


KEEPERS: dict[str, Callable[[Node, Denoise], Keeper]] = {OUTPUT: Output, RESIDUAL: Residual, BLOCKS: Blocks}


def check_blocks(net: nn.Module, name: str) -> None:
    """IncompatibleError if `net` is no transformer of blocks that diffusers knows."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        if blocks := blocks_of(net):
            for block in blocks:
                TransformerBlockRegistry.get(type(block))
            return
    except ValueError:  # of a class that is not registered
        pass
    raise IncompatibleError(
        f"cache.reuse={BLOCKS} is for transformers whose blocks diffusers' own caches know, and {name!r} is a "
        f"{type(net).__name__}; use cache.reuse={OUTPUT} or {RESIDUAL}."
    )


def resolved(reuse: str, net: nn.Module) -> str:
    """Which of OUTPUT, RESIDUAL and BLOCKS it is on `net`."""
    if reuse != AUTO:
        return reuse
    try:
        check_blocks(net, "")
    except IncompatibleError:
        return OUTPUT
    return BLOCKS
