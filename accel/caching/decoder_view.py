"""The decoder of a diffusers UNet alone: the same modules, the network's own `forward`, the encoder replaced by stubs.

`conv_in`, the down blocks and the mid block return what was captured at the inputs of the up blocks: the hidden state
that enters the first one and all skip tensors, ControlNet's and adapters' residuals already in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from accel.caching.unet_view import Stub, Table, arranged, skip_count
from accel.core.denoiser import forward_beneath

RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
SKIPS = "res_hidden_states_tuple"


def skips_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """The skip tensors among the arguments of an up block, the one that is consumed first at the end."""
    return kwargs[SKIPS] if SKIPS in kwargs else args[1]


class DownStub(nn.Module):
    """Stands where the down blocks were and returns the stored skips."""

    has_cross_attention = False
    value: tuple[torch.Tensor, ...] = ()

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        return hidden_states, self.value


class DecoderView:
    """The part of `net` behind its encoder. Features: (hidden state, skip 1, skip 2, ...), skip 1 that of conv_in."""

    def __init__(self, net: nn.Module, name: str = "the denoiser") -> None:
        skip_count(net, name)
        self.net, self.first, self.down, self.mid = net, Stub(), DownStub(), Stub()
        self.own_forward = forward_beneath(net)
        blocks = nn.ModuleList([self.down])
        self.tables = [Table(net, {"conv_in": self.first, "down_blocks": blocks, "mid_block": self.mid})]

    def capture(self, forward: Callable[[], Any]) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """Run a full forward; return its result and the features, copied before anything could change them."""
        hidden: list[torch.Tensor] = []
        skips: list[torch.Tensor] = []

        def before(module, args, kwargs):
            if not hidden:
                hidden.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).clone())
            skips[:0] = [skip.clone() for skip in skips_of(args, kwargs)]

        with ExitStack() as hooks:
            for block in self.net.up_blocks:
                hooks.callback(block.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
            result = forward()
        return result, (*hidden, *skips)

    def forward(self, features: tuple[torch.Tensor, ...], **kwargs: Any) -> Any:
        """The decoder on stored features, with timestep and conditions of `kwargs`; of the sample only the shape."""
        # The hidden state is copied again: FreeU changes it in place, the skips it does not.
        self.mid.value, self.first.value, self.down.value = features[0].clone(), features[1], features[2:]
        try:
            with arranged(self.tables):
                return self.own_forward(**{k: v for k, v in kwargs.items() if k not in RESIDUALS})
        finally:
            self.mid.value, self.first.value, self.down.value = None, None, ()
