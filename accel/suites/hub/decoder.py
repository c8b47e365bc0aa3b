"""A tiny decoder for a hub pipeline: `suite.decoder`, which recipes with `decoder=tiny` put in the place of its own.

TAESD (github.com/madebyollin/taesd) and its kin for other latents, as diffusers' `AutoencoderTiny`: a folder or a hub
id. Which latents it was distilled for its files do not say beyond their channels; its maker does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from accel.errors import ConfigError
from accel.suites.base import TinyAutoencoder
from accel.suites.hub import beside as hub_beside
from accel.suites.hub import index as hub_index

WHAT = ("decoder", "tiny autoencoder")  # its setting, and what errors call it
NAME, CLASS = "tiny", "AutoencoderTiny"


def config(source: str, variant: str | None) -> dict[str, Any]:
    """The config of the network; ConfigError unless it is a tiny autoencoder."""
    found = hub_beside.config(source, variant, *WHAT)
    if (cls := str(found.get("_class_name"))) != CLASS:
        raise ConfigError(
            f"suite.decoder is of class {hub_index.short(cls)}; allowed: {CLASS}, such as TAESD for the latents of "
            "this model."
        )
    return found


def check(source: str | None, variant: str | None) -> None:
    """ConfigError unless what is named, if anything is, can be loaded."""
    if source:
        config(source, variant)


def decoders(source: str | None, variant: str | None, dtype: torch.dtype) -> dict[str, TinyAutoencoder]:
    """The decoder that is named, by the name that recipes have for it; {} without."""
    if not source:
        return {}
    return {NAME: TinyAutoencoder(partial(_load, source, dtype, variant), hub_beside.hashes(source, variant, *WHAT))}


def _load(source: str, dtype: torch.dtype, variant: str | None) -> nn.Module:
    config(source, variant)
    return hub_beside.load(source, dtype, variant, *WHAT).eval().requires_grad_(False)
