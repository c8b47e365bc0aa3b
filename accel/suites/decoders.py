"""Decoders that ship with a suite: tiny autoencoders, each beside its manifest and what it was distilled from.

<suite>_decoders/<name>/config.json, diffusion_pytorch_model.safetensors   as save_pretrained writes them, in float16
<suite>_decoders/<name>/decoder.json                                       its autoencoder, and its bill
<suite>_decoders/<name>/MANIFEST.json                                      sha256 of every file
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from accel.core.decoder import FILE, Distilled, distilled
from accel.suites import shipped
from accel.suites.base import TinyAutoencoder, check_manifest, load_network, remedy

# What diffusers writes into a config and then warns of when it is read: not an argument, and where it was loaded from.
NOT_ASKED = ("block_out_channels", "_name_or_path")


def folder_of(denoisers: Path) -> Path:
    """Where the decoders for the latents of the networks in a folder are: beside it."""
    return denoisers.parent / f"{denoisers.name}_decoders"


def decoders(folder: Path, suite: str) -> dict[str, TinyAutoencoder]:
    """The decoders below `folder`, none where there is no such. IntegrityError for a damaged manifest or origin."""
    return {path.parent.name: _decoder(path.parent, suite) for path in sorted(folder.glob(f"*/{FILE}"))}


def _decoder(folder: Path, suite: str) -> TinyAutoencoder:
    return TinyAutoencoder(partial(load, folder, suite), shipped.deciding(folder, suite), Distilled.load(folder).bill)


def load(folder: Path, suite: str) -> nn.Module:
    """The tiny autoencoder in `folder`, after checking every file."""
    from diffusers import AutoencoderTiny

    check_manifest(folder, remedy(suite))
    return distilled(load_network(AutoencoderTiny, folder), Distilled.load(folder))


def save(net: nn.Module, origin: Distilled, folder: Path) -> None:
    """Write a decoder, in the dtype that it has, in the place of what is there."""
    shipped.save(net, origin, folder, NOT_ASKED)
