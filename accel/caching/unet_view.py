"""Truncated views of a diffusers UNet: the same modules, fewer layers, the network's own `forward`.

The decoder's concatenation points are numbered from the shallowest: skip 1 is the output of `conv_in`, skip 2 that of
the first down layer, and so on; a down block contributes one skip for each layer and one for its downsampler. A view
with `skips = s` keeps the down layers that make skips 1..s and the up layers that consume them; the mid block is
replaced by a stub that returns a stored tensor, which enters the first kept up layer. While a view runs, the network
and its cut blocks have other tables of children, and are put back after it: so the view reads the current parameters
(quantised or cast ones too), and the hooks of other libraries (offloading) run as they do on the whole network. What is
stored is copied when it is taken and when it is given back, because FreeU changes hidden states in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import first_output, forward_beneath
from accel.errors import AccelError, IncompatibleError

CONTROLNET = "down_block_additional_residuals"
ADAPTER = "down_intrablock_additional_residuals"


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


@dataclass(frozen=True)
class Table:
    """The children that `module` has while a view runs; None: none of that name."""

    module: nn.Module
    children: dict[str, nn.Module | None]


@contextmanager
def arranged(tables: Sequence[Table]) -> Iterator[None]:
    """Until the context ends the modules of `tables` have those children in place of their own of the same names."""
    before = [(table.module, dict(vars(table.module))) for table in tables]
    for table in tables:
        own = vars(table.module)
        own["_modules"] = own["_modules"] | table.children
        for name in table.children:
            own.pop(name, None)  # a child that is None may be a plain attribute
    try:
        yield
    finally:
        for module, own in before:
            vars(module).clear()
            vars(module).update(own)


def _layers(block: nn.Module) -> dict[str, nn.ModuleList]:
    # Lists with an entry for each layer of a block: its residual blocks, and what follows each of them.
    lists = {n: m for n, m in block.named_children() if isinstance(m, nn.ModuleList)}
    resamplers = ("downsamplers", "upsamplers")
    return {n: m for n, m in lists.items() if n not in resamplers and len(m) == len(block.resnets)}


def _cut(block: nn.Module, which: slice) -> Table:
    return Table(block, {name: layers[which] for name, layers in _layers(block).items()})


def _kept_down(net: nn.Module, skips: int) -> tuple[nn.ModuleList, list[Table], int, bool]:
    """The kept down blocks, the cut ones among them (one at most), how many are whole, and whether the cut one has its
    last layer."""
    kept, cut, left, last = [], [], skips - 1, False  # skip 1 is conv_in's
    for block in net.down_blocks:
        if left <= 0:
            break
        layers = len(block.resnets)
        whole = layers + (1 if block.downsamplers is not None else 0)
        kept.append(block)
        if left < whole:
            take = min(left, layers)
            table = _cut(block, slice(0, take))
            cut.append(Table(block, table.children | {"downsamplers": None}))
            last = take == layers
        left -= whole
    return nn.ModuleList(kept), cut, len(kept) - len(cut), last


def _kept_up(net: nn.Module, skips: int) -> tuple[nn.ModuleList, list[Table], int, int]:
    """The kept up blocks, the cut one, and where the stored tensor enters: (index of the up block, layer in it)."""
    kept, left = [], skips
    for index in reversed(range(len(net.up_blocks))):
        block = net.up_blocks[index]
        layers = len(block.resnets)
        kept.insert(0, block)
        cut = [_cut(block, slice(layers - left, layers))] if left < layers else []
        left -= layers
        if left <= 0:
            return nn.ModuleList(kept), cut, index, max(0, -left)
    raise AssertionError("skips exceed the decoder's layers")


class ShallowView:
    """The part of `net` outside skip `skips`, and the capture of the tensor that enters it on full evaluations."""

    def __init__(self, net: nn.Module, skips: int) -> None:
        self.net, self.stub, self.own_forward = net, Stub(), forward_beneath(net)
        self.armed, self.entry = False, None
        up, cut_up, self.entry_block, self.entry_layer = _kept_up(net, skips)
        down, cut_down, self.whole, self.last = _kept_down(net, skips)
        children = {"down_blocks": down, "mid_block": self.stub, "up_blocks": up}
        self.tables = [Table(net, children), *cut_down, *cut_up]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts `capture` works. Hooks stay where they are: to add and remove them at every full step would
        cost time, and compiled blocks would be compiled again."""
        block, handles = self.net.up_blocks[self.entry_block], ExitStack()
        if self.entry_layer == 0:

            def before(module, args, kwargs):
                if self.armed:
                    self.entry = (args[0] if args else kwargs["hidden_states"]).clone()

            handles.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        else:
            # Of the modules of the layer before, the one that runs last leaves the hidden state.
            def after(module, args, output):
                if self.armed:
                    self.entry = first_output(output).clone()

            for layers in _layers(block).values():
                handles.callback(layers[self.entry_layer - 1].register_forward_hook(after).remove)
        with handles:
            yield

    def capture(self, forward: Callable[[], Any]) -> tuple[Any, torch.Tensor]:
        """Run a full forward; return its result and the hidden state that enters the kept part (before the concat)."""
        with self.watched():
            result, (entry,) = capture([self], forward)
        return result, entry

    def forward(self, stored: torch.Tensor, **kwargs: Any) -> Any:
        """The shallow evaluation: `stored` replaces everything deeper than the view."""
        zero = torch.zeros((), device=stored.device, dtype=stored.dtype)
        if kwargs.get("mid_block_additional_residual") is not None:
            # Already inside `stored`; a zero keeps diffusers from reading the call as a T2I-adapter's.
            kwargs["mid_block_additional_residual"] = zero
        elif kwargs.get(CONTROLNET) is not None:  # which is how adapters were handed over formerly
            kwargs[ADAPTER], kwargs[CONTROLNET] = kwargs[CONTROLNET], None
        if kwargs.get(ADAPTER) is not None:
            kwargs[ADAPTER] = self._adapters(list(kwargs[ADAPTER]), zero)
        self.stub.value = stored.clone()
        try:
            with arranged(self.tables):
                return self.own_forward(**kwargs)
        finally:
            self.stub.value = None

    def _adapters(self, residuals: list[torch.Tensor], zero: torch.Tensor) -> list[torch.Tensor]:
        # One for each down block, added where it ends: in a block that attends behind its last layer, in others behind
        # the downsampler, which a cut block does not have.
        blocks = self.tables[0].children["down_blocks"]
        if len(blocks) > self.whole and not (self.last and getattr(blocks[-1], "has_cross_attention", False)):
            return [*residuals[: self.whole], zero]
        return residuals[: len(blocks)]


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
