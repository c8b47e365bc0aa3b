"""Weights that were quantised before they were saved: networks whose config has a `quantization_config`.

Such a network is loaded as diffusers and transformers load it. Its files identify it as any network's do; the label
says in words what they hold. Safetensors only, and only methods whose code is an installed package: others fetch their
kernels from the hub when they run (nunchaku_lite), or build what a config describes by code that accel does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from accel.errors import ConfigError, check_installed, unknown
from accel.suites.hub import files as hub_files
from accel.suites.hub import gguf as hub_gguf
from accel.suites.hub import index as hub_index

KEY = "quantization_config"
PACKAGES = {  # by `quant_method`
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "quanto": ("optimum", "accelerate"),
    "torchao": ("torchao", "accelerate"),
}
ON_GPU = ("bitsandbytes",)  # whose kernels diffusers runs there alone


def labels(folder: Path, gguf: str | None = None) -> dict[str, str]:
    """The label of each network of a pipeline folder that is quantised, by the network's name; `gguf`: the file of the
    denoiser's weights, if those are not the folder's."""
    found = {}
    for name, (_, cls) in hub_index.components(folder).items():
        if hub_files.is_network(cls) and (config := hub_files.config_of(folder, name).get(KEY)):
            found[name] = label(config)
    return found if gguf is None else found | {hub_files.denoiser_of(folder): hub_gguf.label(gguf)}


def said(folder: Path, gguf: str | None = None) -> str | None:
    """`labels` in a line; None where nothing is quantised."""
    return ", ".join(f"{name} {own}" for name, own in labels(folder, gguf).items()) or None


def label(config: Mapping[str, Any]) -> str:
    """Method and type of weights, such as `bitsandbytes nf4`, `bitsandbytes int8`, `torchao Int8WeightOnly`."""
    method = str(config.get("quant_method"))
    if config.get("load_in_4bit"):
        return f"{method} {config.get('bnb_4bit_quant_type') or 'fp4'}"
    if config.get("load_in_8bit"):
        return f"{method} int8"
    kind = config.get("quant_type") or config.get("weights_dtype") or ""
    if isinstance(kind, Mapping):  # torchao's own classes, as it writes them
        kind = kind.get("default", kind).get("_type", "")
    return f"{method} {str(kind).removesuffix('Config')}".strip()


def check(folder: Path) -> None:
    """ConfigError unless every quantised network of `folder` is of a method that is known, and whose packages are
    here."""
    for name, (_, cls) in hub_index.components(folder).items():
        if hub_files.is_network(cls):
            check_network(folder / name, hub_files.config_of(folder, name))


def check_network(where: Path, config: Mapping[str, Any]) -> bool:
    """The same of the network in `where`; whether it is quantised."""
    if not (own := config.get(KEY)):
        return False
    method = own.get("quant_method") if isinstance(own, Mapping) else own
    if method not in PACKAGES:
        raise unknown(f"quant_method in the config of {where}", str(method), PACKAGES)
    check_installed(PACKAGES[method], "hub", f"a network that is quantised by {method} ({where})")
    return True


def check_device(folder: Path, device: str) -> None:
    """ConfigError if a network of `folder` is of a method that needs a GPU, and `device` is none."""
    if torch.device(device).type != "cpu":
        return
    for name, own in labels(folder).items():
        if own.startswith(ON_GPU):
            raise ConfigError(
                f"the weights of {folder / name} are quantised ({own}), whose kernels run on a GPU alone; use "
                "evaluation.device=cuda, or a folder of the plain weights."
            )


def check_settings(folder: Path, gguf: str | None, lora_fused: bool, layerwise_casting: bool) -> None:
    """ConfigError for settings that would write into quantised weights."""
    if not (lora_fused or layerwise_casting) or not (own := said(folder, gguf)):
        return
    if lora_fused:
        raise ConfigError(
            f"suite.lora is fused into the weights, and those of {folder} are quantised ({own}); use "
            "suite.lora_fused=false, or the plain weights."
        )
    if layerwise_casting:
        raise ConfigError(f"the weights of {folder} are quantised already ({own}); use suite.layerwise_casting=false.")
