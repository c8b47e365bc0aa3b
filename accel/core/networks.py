"""What two denoisers must have in common to work on one trajectory, and what each of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from accel.core.conditioning import conditioning_of
from accel.errors import IncompatibleError

# Config entries that two denoisers must share to continue each other's trajectory: the latent space, and the
# conditioning unless one has its own (accel/core/conditioning.py).
SPACE = ("in_channels", "out_channels", "sample_size")
CONDITIONING = ("num_class_embeds", "num_embeds_ada_norm", "cross_attention_dim", "addition_embed_type", "classes")


def check_shared(nets: Mapping[str, nn.Module], doing: str, axis: str) -> None:
    """IncompatibleError unless all of `nets` live in the latent space and take the conditioning of the first."""
    (base, own), *others = nets.items()
    for name, net in others:
        view = _entries if type(net) is type(own) else space_of
        for key, ours in view(own).items():
            theirs = view(net)[key]
            if ours != theirs and not (key in CONDITIONING and conditioning_of(net)):
                raise IncompatibleError(
                    f"{doing} needs models of one latent space and conditioning, but {key} is {theirs} in {name!r} "
                    f"and {ours} in {base!r}; use a model with {key}={ours}, or {axis}=none."
                )


def _entries(net: nn.Module) -> dict[str, Any]:
    return {key: net.config.get(key) for key in (*SPACE, *CONDITIONING)}


def space_of(net: nn.Module) -> dict[str, Any]:
    """What networks of different classes must share: a UNet and a transformer may continue each other's trajectory."""
    config = net.config
    classes = config.get("num_class_embeds")
    if classes is None and config.get("num_embeds_ada_norm"):
        classes = config["num_embeds_ada_norm"] + 1  # a DiT adds the null class itself
    return {
        "in_channels": config["in_channels"],
        "out_channels": config.get("out_channels") or config["in_channels"],
        "sample_size": config.get("sample_size"),
        "classes": classes,
        "cross_attention_dim": config.get("cross_attention_dim"),
        "addition_embed_type": config.get("addition_embed_type"),
    }
