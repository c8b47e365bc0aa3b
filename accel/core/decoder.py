"""Tiny decoders: another network that makes pictures of latents, in the place of the pipeline's own autoencoder's.

A decoder is no part of the denoiser's trajectory, and what it leaves is the last part of a call that few steps do not
make shorter (accel.core.amdahl). It sits where the pipeline calls `vae.decode`, gets the latents as the denoiser has
them, and gives pictures in -1..1; encoding stays the pipeline's own. One that was distilled from an autoencoder says
from which (`distilled_from`), and stands for no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from accel.core.denoiser import replaced
from accel.digests import weights_hex
from accel.errors import IncompatibleError, unknown
from accel.files import load_fields, save_fields

FILE = "decoder.json"
_NAME = "accel_decoder"
Decode = Callable[..., Any]  # as the `decode` of diffusers' autoencoders


@dataclass(frozen=True)
class Distilled:
    """What a decoder was distilled from: `autoencoder`, the digest of the network whose pictures it makes (hex,
    accel.digests.weights_hex); `bill`: what its training cost (seconds, steps, samples, MACs), and what it saw."""

    autoencoder: str
    bill: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it beside the weights in `folder`."""
        save_fields(folder / FILE, self)

    @classmethod
    def load(cls, folder: Path) -> Distilled:
        """Of the decoder in `folder`; IntegrityError if there is none, or it is damaged."""
        return load_fields(cls, folder / FILE, "not of a decoder")


def distilled(net: nn.Module, origin: Distilled) -> nn.Module:
    """`net`, which from now on is a decoder of that origin."""
    setattr(net, _NAME, origin)
    return net


def distilled_from(net: nn.Module) -> Distilled | None:
    """The origin that `distilled` gave this network, if any."""
    return vars(net).get(_NAME)


class Decoder:
    """A network in the place of a pipeline's decoder: what a recipe asks of it. `model`: its name."""

    EPOCH = 1
    model: str

    @property
    def label(self) -> str:
        """Short name for tables."""
        return type(self).__name__.lower()

    def find(self, models: Mapping[str, nn.Module]) -> nn.Module:
        """Its network among `models`; ConfigError or IncompatibleError if it is not there."""
        if self.model in models:
            return models[self.model]
        fit = [name for name, net in models.items() if self.fits(net)]
        if not fit:
            raise IncompatibleError(f"there is no decoder, but {self.model!r} is named; use decoder=none.")
        raise unknown("decoder", self.model, fit)

    def fits(self, net: nn.Module) -> bool:
        """Whether `net` is of the kind that it decodes with."""
        return distilled_from(net) is not None

    def check(self, pipe: Any, models: Mapping[str, nn.Module]) -> None:
        """Raise with the reason if none of `models` can stand for the decoder of `pipe` as it asks."""
        own = getattr(pipe, "vae", None)
        if own is None or not callable(getattr(own, "decode", None)):
            raise IncompatibleError(
                f"{type(pipe).__name__} has no decoder, for its denoiser makes the pictures; use decoder=none."
            )
        net = self.find(models)
        origin = distilled_from(net)
        if origin is not None and (found := weights_hex(own)) != origin.autoencoder:
            raise IncompatibleError(
                f"decoder {self.model!r} was distilled from an autoencoder with the digest "
                f"{origin.autoencoder[:12]}..., and this pipeline's has {found[:12]}...: another latent space. Distil "
                "it anew from this one, or use decoder=none."
            )
        self.check_networks(own, net)

    def check_networks(self, own: nn.Module, net: nn.Module) -> None:
        """IncompatibleError unless `net` takes the latents of the autoencoder `own` and makes pictures of its size."""

    def decoding(self, own: nn.Module, net: nn.Module) -> Decode:
        """What stands in the place of `own.decode`."""
        raise TypeError(f"{type(self).__name__} does not say how it decodes")

    def attach(self, pipe: Any, net: nn.Module, undo: ExitStack) -> None:
        """Put it into `pipe`; the way back goes on `undo`."""
        undo.enter_context(replaced(pipe.vae, "decode", self.decoding(pipe.vae, net)))
