"""The parts of a denoiser that a module cache may name: its blocks, its layers, and the branches within them.

A UNet's parts have diffusers' names. A transformer's are found by what they are, for the names differ from model to
model (transformer_blocks, blocks, layers, double_stream_blocks): a *block* is an entry of a list of the network's own
that attends, and its *branches* are the children that compute with weights (attention, feed-forward, the projections
of a block that does both at once), all but norms, modulations and embeddings, which are computed at each step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch import nn

_BLOCK = re.compile(r"(down_blocks|up_blocks)\.\d+|mid_block")
_LAYER = re.compile(
    r"((down_blocks|up_blocks)\.\d+|mid_block)\.(resnets|resnets_in|resnets_out|attentions|motion_modules|temp_convs|temp_attentions)\.\d+"
)
_UNIT = re.compile(r"(attn\d?|ff|ff_context|conv1|conv2)")
# Kandinsky 3's names of the same: an attention and its feed-forward, and a convolution of a residual block.
_CONVOLUTION = re.compile(r".*\.resnets_(in|out)\.\d+\.resnet_blocks\.\d+\.projection")
_KANDINSKY = re.compile(rf".*\.attentions\.\d+\.(attention|feed_forward)|{_CONVOLUTION.pattern}")
_ATTENDS = re.compile(r"att(entio)?n", re.IGNORECASE)
# Children of a block that are no branch: what they compute depends on the step, or is added to nothing.
_BESIDE = re.compile(r"norm|modulation|(^|_)mod($|_)|ada|emb|skip|gate|scale|time|cond|act(_|$)|drop", re.IGNORECASE)


def blocks(net: nn.Module) -> list[str]:
    """Down, mid and up blocks of a UNet; blocks of a transformer."""
    if _is_unet(net):
        return [name for name, _ in net.named_modules() if _BLOCK.fullmatch(name)]
    return list(_blocks_of(net))


def layers(net: nn.Module) -> list[str]:
    """Residual blocks and transformers of a UNet; blocks of a transformer."""
    if _is_unet(net):
        return [name for name, m in net.named_modules() if _LAYER.fullmatch(name) and not isinstance(m, nn.Identity)]
    return list(_blocks_of(net))


def branches(net: nn.Module) -> list[str]:
    """What a block adds to its input: attentions and feed-forwards, and the convolutions of residual blocks."""
    if _is_unet(net):
        names = (name for name, _ in net.named_modules() if _LAYER.match(name))
        return [name for name in names if _UNIT.fullmatch(name.rsplit(".", 1)[-1]) or _KANDINSKY.fullmatch(name)]
    return [f"{name}.{child}" for name, block in _blocks_of(net).items() for child in _branches_of(block)]


LEVELS: dict[str, Callable[[nn.Module], list[str]]] = {"block": blocks, "layer": layers, "unit": branches}


def role(name: str) -> str:
    """A branch by another name: `attn` or `ff` in the place of what its network calls it; its own if that is usual."""
    parent, _, own = name.rpartition(".")
    if _UNIT.fullmatch(own) or _CONVOLUTION.fullmatch(name):
        return name
    return f"{parent}.{'attn' if _ATTENDS.search(own) else 'ff'}"


def share(net: nn.Module, names: list[str]) -> float:
    """Of the weights of all layers in a network's blocks, norms and modulations left out, those in the modules `names`.

    A measure of what a cache can save: in a transformer each of them costs one product a token.
    """
    within = [net.get_submodule(name) for name in (blocks(net) if _is_unet(net) else branches(net))]
    whole = {id(m): m for part in within for m in part.modules() if _computes(m)}
    cached = {id(m) for name in names for m in net.get_submodule(name).modules()}
    total = sum(m.weight.numel() for m in whole.values())
    return sum(m.weight.numel() for key, m in whole.items() if key in cached) / max(1, total)


def _is_unet(net: nn.Module) -> bool:
    return isinstance(getattr(net, "up_blocks", None), nn.ModuleList)


def _computes(module: nn.Module) -> bool:
    weight = module._parameters.get("weight", module._buffers.get("weight"))  # a quantised layer keeps it as a buffer
    return weight is not None and weight.dim() > 1 and not isinstance(module, nn.Embedding)


def _attends(module: nn.Module) -> bool:
    return any(_ATTENDS.search(type(m).__name__) or _ATTENDS.search(n) for n, m in module.named_modules())


def _blocks_of(net: nn.Module) -> dict[str, nn.Module]:
    lists = ((name, own) for name, own in net.named_children() if isinstance(own, nn.ModuleList))
    found = ((f"{name}.{i}", block) for name, own in lists for i, block in enumerate(own) if _attends(block))
    return dict(map(_unwrapped, *zip(*found, strict=True))) if (found := list(found)) else {}


def _unwrapped(name: str, block: nn.Module) -> tuple[str, nn.Module]:
    # A block that holds nothing but another one (HiDream).
    children = list(block.named_children())
    if len(children) == 1 and _attends(children[0][1]) and len(list(children[0][1].children())) > 1:
        return f"{name}.{children[0][0]}", children[0][1]
    return name, block


def _branches_of(block: nn.Module) -> Iterator[str]:
    for name, child in block.named_children():
        beside = _BESIDE.search(name) or re.search(r"Norm|Modulation|Embed", type(child).__name__)
        if not beside and not isinstance(child, nn.ModuleList) and any(_computes(m) for m in child.modules()):
            yield name
