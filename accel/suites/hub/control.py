"""A ControlNet beside the denoiser: where it is, which pipeline class runs it, what identifies it, how it is loaded.

Zhang, Rao & Agrawala 2023 (arXiv:2302.05543): a second network, made of the denoiser's encoder, sees an image of a
condition (edges, depth, a pose) at every step, and what it returns is added to the denoiser's skips, or after its
transformer blocks. It is a folder with `config.json` and safetensors, or a hub id; a pipeline that was saved with one
has it already.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from accel.errors import ConfigError
from accel.suites.hub import beside as hub_beside
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index
from accel.suites.hub import kinds as hub_kinds
from accel.suites.hub.kinds import CONTROLNET, Kind

WHAT = (CONTROLNET, "ControlNet")  # its setting, and what errors call it
# What a network and its ControlNet must agree on, where both say it; else what is added would not fit.
SHARED = ("block_out_channels", "cross_attention_dim", "joint_attention_dim", "caption_projection_dim")

# What decides how many tensors a ControlNet adds, and of which shape.
LAYERS = ("block_out_channels", "layers_per_block", "down_block_types", "num_layers", "num_single_layers",
          "num_attention_heads", "attention_head_dim")  # fmt: skip


def place_of(source: str, variant: str | None) -> Path:
    """The folder of a ControlNet's config and weights. ConfigError if it is out of reach, or has no safetensors."""
    return hub_beside.place_of(source, variant, *WHAT)


def config(source: str, variant: str | None) -> dict[str, Any]:
    """The ControlNet's config, which names its class."""
    return hub_beside.config(source, variant, *WHAT)


@lru_cache(maxsize=8)
def kind(folder: Path, source: str | None, variant: str | None) -> Kind:
    """The kind of pipeline that runs the model in `folder`: with a ControlNet, the class that diffusers has for both.
    ConfigError where there is none, where the ControlNet is another model's, and for two of them."""
    own = hub_index.kind_of(folder)
    if not source:
        return own if own.control_scale is None else _told(own, hub_files.config_of(folder, CONTROLNET))
    if own.control_scale is not None:
        raise ConfigError(f"{folder} is a {own.name}, which has a ControlNet of its own; leave suite.controlnet out.")
    net = config(source, variant)
    name = hub_kinds.controlled(own.name, hub_kinds.UNION in str(net.get("_class_name")))
    try:
        found = hub_index.kind_named(name)
    except ConfigError as error:
        raise ConfigError(f"suite hub has no {own.name} under a ControlNet: {error}") from None
    _check_fits(found, folder, source, variant)
    return _told(found, net)


def _told(kind: Kind, net: Mapping[str, Any]) -> Kind:
    """`kind` with the number of kinds of conditions that its ControlNet was trained for, by its config `net`."""
    found = net.get("num_control_type") if hub_kinds.UNION in kind.name else net.get("num_mode")
    return replace(kind, modes=found)


def _check_fits(kind: Kind, folder: Path, source: str, variant: str | None) -> None:
    net, own = config(source, variant), hub_files.config_of(folder, hub_files.denoiser_of(folder))
    cls = str(net.get("_class_name"))
    taken = str(inspect.signature(kind.cls().__init__).parameters[CONTROLNET].annotation)
    allowed = ", ".join(sorted(set(re.findall(r"\w*ControlNet\w*Model", taken))))
    if not (cls.isidentifier() and re.search(rf"\b{cls}\b", taken)):
        raise ConfigError(
            f"suite.controlnet is a {hub_index.short(cls)}, and a {kind.name} takes {allowed}; use one that was "
            "trained for this model."
        )
    differing = [f"{key} {net[key]!r}" for key in SHARED if key in net and key in own and net[key] != own[key]]
    if differing:
        raise ConfigError(
            f"the ControlNet {source} has {', '.join(differing)}, and the network of {folder} has not; use one that "
            "was trained for this model."
        )


def check_others(folder: Path, others: Mapping[str, Mapping[str, Any]]) -> None:
    """ConfigError for a further network (its config by its name) of other layers than the one in `folder`, whose
    ControlNet's tensors would not fit it."""
    own = hub_files.config_of(folder, hub_files.denoiser_of(folder))
    for name, found in others.items():
        if any(found.get(key) != own.get(key) for key in LAYERS):
            raise ConfigError(
                f"{name} has other layers than the network of {folder}, which the ControlNet was trained for: what it "
                "adds would not fit. Leave one of them out."
            )


def load(source: str, dtype: torch.dtype, variant: str | None) -> nn.Module:
    """The network, all of whose tensors are in its files; ConfigError else."""
    return hub_beside.load(source, dtype, variant, *WHAT)


def hashes(source: str | None, variant: str | None) -> dict[str, str]:
    """sha256 of the files of a ControlNet; {} without one."""
    return hub_beside.hashes(source, variant, *WHAT)


def settle(vae: Any) -> None:
    """Have an autoencoder's latents be their mean wherever a caller samples them without a generator.

    Some pipelines (Stable Diffusion 3, Hunyuan-DiT) sample the latents of a condition's image by the global generator:
    the same image would be another condition in every batch, and in each half of a guided one.
    """
    vae.encode = MethodType(_settled, vae)


def _settled(vae: Any, *args: Any, **kwargs: Any) -> Any:
    output = type(vae).encode(vae, *args, **kwargs)
    if (latents := getattr(output, "latent_dist", None)) is not None:
        own = latents.sample
        latents.sample = lambda generator=None: latents.mode() if generator is None else own(generator)
    return output


def lines(kind: Kind, source: str | None, variant: str | None, dtype: torch.dtype) -> list[str]:
    """The lines of Python that put it into `pipe` by diffusers alone, and settle what the pipeline draws by itself."""
    found = []
    if source:
        place, cls = place_of(source, variant).absolute(), config(source, variant)["_class_name"]
        how = f"torch_dtype={dtype}, use_safetensors=True" + (f", variant={variant!r}" if variant else "")
        found += [
            f"from diffusers import {cls}",
            f"pipe.register_modules({CONTROLNET}={cls}.from_pretrained({str(place)!r}, {how}).to(pipe.device))",
        ]
    if not kind.settled:
        found += [
            "from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Latents",
            "drawn = Latents.sample",
            "Latents.sample = lambda self, generator=None: drawn(self, generator) if generator else self.mode()",
        ]
    return found
