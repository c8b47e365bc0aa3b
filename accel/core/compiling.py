"""torch.compile at the denoiser's seam: block by block, in place, so that what attaches there stays outside.

Blocks of one class share their code, and torch keeps a limited number of graphs for it, beyond which it runs what is
left uncompiled without a word. `room_to_compile` makes room for as many as there are blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from accel.errors import IncompatibleError

GRAPHS = 8  # of one compiled block: with and without its modules, for each number of rows


def repeated_blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks that repeat: of the classes that diffusers names (`_repeated_blocks`), else `transformer_blocks`."""
    names = getattr(net, "_repeated_blocks", None) or {
        type(block).__name__ for block in getattr(net, "transformer_blocks", ())
    }
    return [module for module in net.modules() if type(module).__name__ in names]


def compile_blocks(net: nn.Module, **options: Any) -> list[nn.Module]:
    """torch.compile each block that repeats, in place, with `options` of it; the blocks."""
    blocks = repeated_blocks(net)
    for block in blocks:
        block.compile(**options)
    return blocks


def uncompiled(block: nn.Module) -> None:
    """Take back what `compile_blocks` did to one block."""
    block.__dict__.pop("_compiled_call_impl", None)


def check_compiled(name: str, net: nn.Module, looks_inside: bool) -> None:
    """IncompatibleError if `net` is compiled as a whole, in a way that a method at this seam cannot work with.

    Its parts no longer run one by one: what `looks_inside` would be passed over. Compiled in place, the compiler would
    also trace what wraps the network. Compiled blocks are no obstacle to any method.
    """
    in_place = getattr(net, "_compiled_call_impl", None) is not None
    if in_place or (looks_inside and hasattr(net, "_orig_mod")):
        raise IncompatibleError(
            f"the denoiser {name!r} ({type(getattr(net, '_orig_mod', net)).__name__}) is compiled as a whole; compile "
            "its blocks instead: load it again and call its compile_repeated_blocks() (suite.compile=true does)."
        )


@contextmanager
def room_to_compile(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Until the context ends torch.compile may compile each compiled block of `nets` anew.

    What methods put into a block (a cache around its attention, quantised layers) is an object of its own in each, so
    that no two blocks share a graph. Beyond torch's limit of 8 graphs the rest would silently run uncompiled.
    """
    modules = [module for net in nets for module in net.modules()]
    compiled = sum(getattr(module, "_compiled_call_impl", None) is not None for module in modules)
    if not compiled:
        yield
        return
    import torch._dynamo

    config = torch._dynamo.config
    limits = ("cache_size_limit", "accumulated_cache_size_limit")  # newer torch knows recompile_limit, too, and these
    known = {name: getattr(config, name) for name in limits if hasattr(config, name)}
    with config.patch({name: max(value, GRAPHS * compiled) for name, value in known.items()}):
        yield


def compilations() -> int:
    """How many graphs torch.compile has made in this process."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds
        return 0
    return sys.modules["torch._dynamo"].utils.counters["stats"]["unique_graphs"]
