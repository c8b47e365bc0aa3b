"""Which layers of a network are quantised: convolutions and linear layers, but those that stay in floating point.

`keep` patterns name layers as UNets do. Networks without a `time_embedding` (transformers) have their timestep's
embedding elsewhere and under many names; there the pattern stands for the modules that embed it, by their class. Layers
of an adapter that are merged into the layer below, or switched off, never run and are no layers of the network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn

KEEP = ("time_embedding.*", "class_embedding*", "*time_emb_proj")  # layers that stay in floating point
TIME = "time_embedding.*"
_EMBEDS_TIME = re.compile(r".*(Timestep|Time)(Embedding|Embedder|Embeddings|Embed)")
_EMBEDS_MORE = re.compile(r".*(Timestep|Time).*Embed.*")
_ADAPTER = re.compile(r"lora_(A|B|embedding_A|embedding_B)|(lora|adapter|hada|oft|boft|vera)_\w+")


def quantisable(net: nn.Module, keep: Sequence[str]) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name, without those matching a `keep` pattern."""
    found = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    idle = _idle_adapters(net)
    found = {n: m for n, m in found.items() if not any(fnmatch(n, k) for k in keep) and not _below(n, idle)}
    if TIME in keep and not hasattr(net, "time_embedding"):
        embeds = time_embedders(net)
        found = {n: m for n, m in found.items() if not _below(n, embeds)}
    return found


def left_float(net: nn.Module, keep: Sequence[str]) -> list[str]:
    """Names of the convolutions and linear layers that stay in floating point."""
    return sorted(set(quantisable(net, ())) - set(quantisable(net, keep)))


def time_embedders(net: nn.Module, combined: bool = False) -> set[str]:
    """Names of the modules that embed the timestep, by their class; `combined`: or the timestep with other things."""
    embeds = _EMBEDS_MORE if combined else _EMBEDS_TIME
    return {n for n, m in net.named_modules() if embeds.fullmatch(type(m).__name__)}


def _below(name: str, parents: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in parents for i in range(1, len(parts) + 1))


def _idle_adapters(net: nn.Module) -> set[str]:
    # Of each layer with adapters (peft's): the modules of those that are merged or not active.
    idle: set[str] = set()
    for name, module in net.named_modules():
        if not hasattr(module, "base_layer"):
            continue
        off = bool(getattr(module, "merged", False) or getattr(module, "disable_adapters", False))
        active = set(getattr(module, "active_adapters", ()) or ())
        for kind, holder in module.named_children():
            if _ADAPTER.fullmatch(kind) and isinstance(holder, nn.ModuleDict):
                idle |= {f"{name}.{kind}.{adapter}" for adapter in holder if off or adapter not in active}
    return idle
