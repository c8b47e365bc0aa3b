"""Where TeaCache looks: what a network makes of its input and timestep before the dear part of it runs.

By this rule, on the network's own modules:

1. a transformer whose first block has a norm that is told the timestep (DiT, SD3, Flux, Chroma, AuraFlow, CogVideoX,
   HunyuanVideo, Mochi, Lumina2 ...): what that norm gives its attention, the *modulated input*;
2. any other network (UNets; PixArt, Wan, LTX, Sana ..., whose blocks modulate by tables of their own): its *timestep
   embedding*, the first child that is named as one. It knows no sample, so that all are decided alike.

It is taken from the network's own forward, by a hook. To know it before deciding, the forward is begun and left there.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from accel.caching.diffusers_blocks import blocks_of
from accel.caching.step_cache import Signal
from accel.core.denoiser import Denoise, Inputs, Node
from accel.errors import IncompatibleError

MODULATED, EMBEDDING = "modulated input of the first block", "timestep embedding"
_TOLD = re.compile(r"emb|time|cond")  # parameters of a norm that is told the timestep
_EMBEDDING = re.compile(r"time.*emb|adaln_single|condition_embedder|t_embed")


def looked_at(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module whose first output tensor it is, and which of the two; IncompatibleError if there is none."""
    for block in blocks_of(net)[:1]:
        norms = (child for child_name, child in block.named_children() if "norm" in child_name)
        if (norm := next((child for child in norms if _is_told(child)), None)) is not None:
            return norm, MODULATED
    for child_name, child in net.named_children():
        if _EMBEDDING.search(child_name):
            return child, EMBEDDING
    raise IncompatibleError(
        f"TeaCache looks at the modulated input of the first block or at the timestep embedding, and {name!r} "
        f"({type(net).__name__}) shows neither; use cache=easycache, or cache=none."
    )


def _is_told(norm: nn.Module) -> bool:
    return any(_TOLD.search(parameter) for parameter in list(inspect.signature(type(norm).forward).parameters)[2:])


class _Reached(Exception):
    """The network was left where its signal was known."""


class Modulated(Signal):
    """What the module `looked_at` gives, of each row of the call."""

    costs = True

    def __init__(self, node: Node, inner: Denoise) -> None:
        self.node, self.inner = node, inner
        self._found: torch.Tensor | None = None
        self._wanted = self._leave = False
        module, self.what = looked_at(node.net, node.name)
        node.undo.callback(module.register_forward_hook(self._after).remove)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._wanted and self._found is None:
            first = next(value for value in output if value is not None) if isinstance(output, tuple) else output
            self._found = first.clone()
        if self._leave:
            raise _Reached

    def before(self, inputs: Inputs) -> torch.Tensor:
        self._leave = True
        try:
            return self.during(inputs, lambda: self.inner(inputs))[0]
        finally:
            self._leave = False

    def during(self, inputs: Inputs, run: Callable[[], Any]) -> tuple[torch.Tensor, Any]:
        made, self._wanted = None, True
        try:
            made = run()
        except _Reached:
            pass
        finally:
            self._wanted, found, self._found = False, self._found, None
        return self._checked(found, inputs), made

    def _checked(self, found: torch.Tensor | None, inputs: Inputs) -> torch.Tensor:
        if found is not None and len(found) == 1:  # one embedding for all
            found = found.expand(inputs.rows, *found.shape[1:])
        if found is None or len(found) != inputs.rows:
            made = "nothing" if found is None else f"a tensor of shape {tuple(found.shape)}"
            raise IncompatibleError(
                f"the {self.what} of {type(self.node.net).__name__} is {made} for a batch of {inputs.rows} rows, so "
                "that TeaCache cannot tell whose is whose; use cache=easycache, or cache=none."
            )
        return found
