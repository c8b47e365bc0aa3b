"""A pipeline of random weights from configs alone, and how much memory its weights take."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.core.random_weights import random_weights
from accel.errors import ConfigError, needs
from accel.suites.architectures.tokens import stub
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index
from accel.suites.hub.kinds import Kind

MEMORY = Path("/proc/meminfo")
GB = 1e9


def pipeline(folder: Path, kind: Kind, device: Any, dtype: torch.dtype, texts: Iterable[str]) -> Any:
    """The pipeline whose configs are in `folder`, its networks made on `device` in `dtype`. ConfigError for a part that
    is neither a network, nor a scheduler, nor a tokenizer."""
    parts, index = dict(hub_index.components(folder)), hub_index.read(folder)
    made: dict[str, Any] = {}
    for name, (library, cls) in parts.items():
        if hub_files.is_network(cls):
            made[name] = network(library, cls, hub_files.config_of(folder, name), device, dtype)
        elif name == "scheduler":
            made[name] = getattr(import_module(library), cls).from_config(hub_files.config_of(folder, name))
        elif (encoder := name.replace("tokenizer", "text_encoder")) in parts and encoder != name:
            made[name] = stub(cls, hub_files.config_of(folder, encoder), texts)
        else:
            raise ConfigError(f"{folder.name} has a {cls} ({name}), for which nothing can stand in; use suite=hub.")
    asked = [p for p in inspect.signature(kind.cls().__init__).parameters.values() if p.name != "self"]
    absent = {p.name: None for p in asked if p.default is p.empty}
    said = {p.name: index[p.name] for p in asked if p.name in index and not isinstance(index[p.name], list)}
    given = {name: value for name, value in kind.loading().items() if name in {p.name for p in asked}}
    pipe = kind.cls()(**absent | said | given | made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def network(library: str, cls: str, config: Mapping[str, Any], device: Any, dtype: torch.dtype) -> nn.Module:
    """The network of a config with its own initialisation, on `device` in `dtype`; what the class keeps in float32 when
    it is loaded is kept in float32."""
    kind = getattr(import_module(library), cls)
    with random_weights(device, dtype):
        if library == "diffusers":
            net = kind.from_config(dict(config))
        else:
            net = kind(kind.config_class.from_dict(dict(config)))
    net = net.to(torch.device(device))
    kept = _kept(net, library, dtype)
    with torch.no_grad():
        for name, tensor in _floating(net):
            wanted = torch.float32 if any(own in name.split(".") for own in kept) else dtype
            if tensor.dtype != wanted:
                tensor.data = tensor.data.to(wanted)
    return net.eval().requires_grad_(False)


def _kept(net: nn.Module, library: str, dtype: torch.dtype) -> set[str]:
    """Parts of names of what stays in float32: for transformers some of it in float16 alone."""
    own = net._keep_in_fp32_modules or ()
    own = {own} if isinstance(own, str) else set(own)
    if library == "diffusers":
        return own
    strict = set(getattr(net, "_keep_in_fp32_modules_strict", None) or ())
    return own | strict if dtype == torch.float16 else strict


def _floating(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    # What files hold is loaded in the dtype that is asked for; what a class computes by itself is as it computed it.
    kept = net.state_dict(keep_vars=True)
    return [(name, tensor) for name, tensor in kept.items() if tensor.is_floating_point()]


@lru_cache(maxsize=32)
def sizes(folder: Path, dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """{network: (its parameters, bytes of its weights)}, by the meta device: nothing is made."""
    found = {}
    for name, (library, cls) in hub_index.components(folder).items():
        if hub_files.is_network(cls):
            net = network(library, cls, hub_files.config_of(folder, name), "meta", dtype)
            weights = list(net.parameters())
            found[name] = sum(w.numel() for w in weights), sum(w.numel() * w.element_size() for w in weights)
    return found


def free_bytes(device: str) -> int | None:
    """Memory that is free on a device; None where nobody says."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    if where.type != "cpu" or not MEMORY.exists():
        return None
    said = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
    return 1024 * int(said["MemAvailable"].split()[0]) if "MemAvailable" in said else None


def check_memory(what: str, folder: Path, dtype: torch.dtype, device: str, offload: str) -> None:
    """ConfigError if the weights do not fit into what is free where they are to lie."""
    needs("transformers", "bench", "a pipeline with text encoders")
    place = device if offload == "none" else "cpu"
    free, own = free_bytes(place), sizes(folder, dtype)
    if free is None or (total := sum(size for _, size in own.values())) <= free:
        return
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, (_, size) in own.items())
    other = " suite.offload=model (weights wait in the CPU's memory)," if place != "cpu" else ""
    raise ConfigError(
        f"{what} has {total / GB:.1f} GB of weights ({parts}), and {place} has {free / GB:.1f} GB free; use fewer "
        f"layers (suite.layers=0.5), a smaller suite.dtype,{other} or a machine with more memory."
    )
