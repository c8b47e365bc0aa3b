"""Tiny autoencoders' decoders (TAESD, Bohan 2023, github.com/madebyollin/taesd): diffusers' `AutoencoderTiny`.

A stack of 3 x 3 convolutions that was distilled from the decoder of an autoencoder, from the latents that a denoiser
has: z_own / scaling_factor + shift_factor is what a pipeline hands to its own autoencoder, and that is undone here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.core.decoder import Decode, Decoder
from accel.errors import ConfigError, IncompatibleError


@dataclass(frozen=True)
class TinyDecoder(Decoder):
    """The tiny autoencoder `model` of the suite: pictures (B, 3, H, W) in -1..1 of latents (B, C, h, w). It stands for
    an `AutoencoderKL` with as many latent channels and pixels a latent."""

    model: str = ""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("decoder.model is empty; give the name of a decoder of the suite, or decoder=none.")

    @property
    def label(self) -> str:
        return self.model

    def fits(self, net: nn.Module) -> bool:
        from diffusers import AutoencoderTiny

        return isinstance(net, AutoencoderTiny)

    def check_networks(self, own: nn.Module, net: nn.Module) -> None:
        from diffusers import AutoencoderKL

        if not self.fits(net):
            raise IncompatibleError(
                f"{self.model!r} is a {type(net).__name__}, and decoder=tiny needs an AutoencoderTiny; name one, or "
                "use decoder=none."
            )
        if not isinstance(own, AutoencoderKL) or getattr(own.config, "latents_mean", None) is not None:
            raise IncompatibleError(
                f"the latents of this pipeline's {type(own).__name__} are scaled by more than a factor and a shift, "
                "which decoder=tiny cannot undo; use decoder=none."
            )
        ours = own.config.latent_channels, 2 ** (len(own.config.block_out_channels) - 1)
        blocks = len(net.config.decoder_block_out_channels) - 1
        theirs = net.config.latent_channels, net.config.upsampling_scaling_factor**blocks
        if ours != theirs:
            raise IncompatibleError(
                f"decoder {self.model!r} takes latents of {theirs[0]} channels and {theirs[1]} pixels, and those of "
                f"this pipeline have {ours[0]} and {ours[1]}; use a decoder of this latent space, or decoder=none."
            )

    def decoding(self, own: nn.Module, net: nn.Module) -> Decode:
        from diffusers.models.autoencoders.vae import DecoderOutput

        factor, shift = own.config.scaling_factor, getattr(own.config, "shift_factor", None) or 0.0

        @torch.no_grad()
        def decode(z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
            first = next(net.parameters())
            if first.device != z.device:  # networks of a pipeline may be offloaded, and this is none of its
                net.to(z.device)
            latents = ((z - shift) * factor).to(first.dtype)
            pictures = net.decode(latents, return_dict=False)[0].to(z.dtype)
            return DecoderOutput(sample=pictures) if return_dict else (pictures,)

        return decode
