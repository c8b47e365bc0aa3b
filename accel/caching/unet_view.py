"""Truncated views of a diffusers UNet: the same parameters, fewer layers, the class's own `forward`.

The decoder's concatenation points are numbered from the shallowest: skip 1 is the output of `conv_in`, skip 2 that of
the first down layer, and so on; a down block contributes one skip for each layer and one for its downsampler. A view
with `skips = s` keeps the down layers that make skips 1..s and the up layers that consume them; the mid block is
replaced by a stub that returns a stored tensor, which enters the first kept up layer. Containers are shallow copies,
the original is never changed, so the view reads the current parameters (quantised or cast ones too). What is stored is
copied when it is taken and when it is given back, because FreeU changes hidden states in place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import first_output
from accel.errors import AccelError, IncompatibleError


class Stub(nn.Module):
    """Stands where the mid block was and returns the stored entry tensor."""

    has_cross_attention = False
    value: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.value


def skip_count(net: nn.Module, name: str = "the denoiser") -> int:
    """Number of skip connections of a UNet; IncompatibleError when `net` is not a UNet that a view can truncate."""
    if not all(isinstance(getattr(net, a, None), nn.ModuleList) for a in ("down_blocks", "up_blocks")):
        raise IncompatibleError(
            f"{name} ({type(net).__name__}) has no down and up blocks; this cache needs the skip connections of a "
            "UNet. Use cache=none, or a model with a UNet."
        )
    blocks = [*net.down_blocks, *net.up_blocks]
    if any(hasattr(b, "skip_conv") or not hasattr(b, "resnets") for b in blocks):
        raise IncompatibleError(
            f"{name} has blocks ({type(blocks[0]).__name__}) whose skips cannot be cut; use cache=none."
        )
    return sum(len(b.resnets) for b in net.up_blocks)


def shallow_copy(module: nn.Module) -> nn.Module:
    """The module with a table of children of its own; parameters and children are shared."""
    view = copy.copy(module)
    view.__dict__.pop("forward", None)  # instance overrides are bound to the original
    view._modules = dict(module._modules)
    return view


def _kept_down(net: nn.Module, skips: int) -> nn.ModuleList:
    kept, left = [], skips - 1  # skip 1 is conv_in's
    for block in net.down_blocks:
        if left <= 0:
            break
        layers = len(block.resnets)
        whole = layers + (1 if block.downsamplers is not None else 0)
        if left >= whole:
            kept.append(block)
        else:
            part = shallow_copy(block)
            take = min(left, layers)
            part._modules["resnets"] = block.resnets[:take]
            if getattr(block, "attentions", None) is not None:
                part._modules["attentions"] = block.attentions[:take]
            part.__dict__.pop("downsamplers", None)
            part._modules["downsamplers"] = None
            kept.append(part)
        left -= whole
    return nn.ModuleList(kept)


def _kept_up(net: nn.Module, skips: int) -> tuple[nn.ModuleList, int, int]:
    """The kept up blocks, and where the stored tensor enters: (index of the up block, layer within it)."""
    kept, left = [], skips
    for index in reversed(range(len(net.up_blocks))):
        block = net.up_blocks[index]
        layers = len(block.resnets)
        if left >= layers:
            kept.insert(0, block)
        else:
            part = shallow_copy(block)
            part._modules["resnets"] = block.resnets[layers - left :]
            if getattr(block, "attentions", None) is not None:
                part._modules["attentions"] = block.attentions[layers - left :]
            kept.insert(0, part)
        left -= layers
        if left <= 0:
            return nn.ModuleList(kept), index, max(0, -left)
    raise AssertionError("skips exceed the decoder's layers")


class ShallowView:
    """The part of `net` outside skip `skips`, and the capture of the tensor that enters it on full evaluations."""

    def __init__(self, net: nn.Module, skips: int) -> None:
        self.net, self.stub = net, Stub()
        self.armed, self.entry = False, None
        up, self.entry_block, self.entry_layer = _kept_up(net, skips)
        self.view = shallow_copy(net)
        self.view.__dict__.pop("mid_block", None)
        self.view._modules |= {"down_blocks": _kept_down(net, skips), "mid_block": self.stub, "up_blocks": up}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts `capture` works. Hooks stay where they are: to add and remove them at every full step would
        cost time, and compiled blocks would be compiled again."""
        block = self.net.up_blocks[self.entry_block]
        if self.entry_layer == 0:

            def before(module, args, kwargs):
                if self.armed:
                    self.entry = (args[0] if args else kwargs["hidden_states"]).clone()

            handle = block.register_forward_pre_hook(before, with_kwargs=True)
        else:
            layers = block.attentions if getattr(block, "attentions", None) is not None else block.resnets

            def after(module, args, output):
                if self.armed:
                    self.entry = first_output(output).clone()

            handle = layers[self.entry_layer - 1].register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    def capture(self, forward: Callable[[], Any]) -> tuple[Any, torch.Tensor]:
        """Run a full forward; return its result and the hidden state that enters the kept part (before the concat)."""
        with self.watched():
            result, (entry,) = capture([self], forward)
        return result, entry

    def forward(self, stored: torch.Tensor, **kwargs: Any) -> Any:
        """The shallow evaluation: `stored` replaces everything deeper than the view."""
        if kwargs.get("mid_block_additional_residual") is not None:
            # Already inside `stored`; a zero keeps diffusers from reading the call as a T2I-adapter's.
            kwargs["mid_block_additional_residual"] = torch.zeros((), device=stored.device, dtype=stored.dtype)
        self.stub.value = stored.clone()
        try:
            return type(self.net).forward(self.view, **kwargs)
        finally:
            self.stub.value = None


def capture(views: Sequence[ShallowView], forward: Callable[[], Any]) -> tuple[Any, list[torch.Tensor]]:
    """Run one full forward; return its result and, for each (watched) view, the hidden state that enters it."""
    for view in views:
        view.armed = True
    try:
        result = forward()
        if any(view.entry is None for view in views):
            raise AccelError("a full evaluation did not pass through the UNet's up blocks, so nothing can be cached.")
        return result, [view.entry for view in views]
    finally:
        for view in views:
            view.armed, view.entry = False, None
