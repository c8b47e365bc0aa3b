"""Networks beside a pipeline's own, each a folder with `config.json` and safetensors or a hub id: a ControlNet, a tiny
decoder. Where they are, what identifies them, and how they are loaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.errors import ConfigError
from accel.files import file_hash
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index
from accel.suites.hub import models as hub_models


@lru_cache(maxsize=8)
def place_of(source: str, variant: str | None, setting: str, what: str) -> Path:
    """The folder of a network's config and weights, which `suite.<setting>` names and errors call `what`. ConfigError
    if it is out of reach, or has no safetensors."""
    path = Path(source).expanduser()
    if not path.is_dir():
        path = _from_hub(source, setting, what)
    if not (path / "config.json").exists():
        raise ConfigError(f"suite.{setting} is {path}, which has no config.json; allowed: the folder of a {what}.")
    if not hub_files.weights_in(path, variant):
        raise ConfigError(f"the {what} {path} has no safetensors weights; download those.")
    return path


def config(source: str, variant: str | None, setting: str, what: str) -> dict[str, Any]:
    """The network's config, which names its class."""
    place = place_of(source, variant, setting, what)
    found = hub_index.read_object(place / "config.json", f"{place / 'config.json'} is missing. Download it again.")
    hub_files.check_config(place, setting, found)
    return found


def load(source: str, dtype: torch.dtype, variant: str | None, setting: str, what: str) -> nn.Module:
    """The network, all of whose tensors are in its files; ConfigError else."""
    cls = str(config(source, variant, setting, what)["_class_name"])
    return hub_models.network(place_of(source, variant, setting, what), setting, "diffusers", cls, dtype, variant)


@lru_cache(maxsize=8)
def hashes(source: str | None, variant: str | None, setting: str, what: str) -> dict[str, str]:
    """sha256 of the files of the network; {} without one."""
    if not source:
        return {}
    place = place_of(source, variant, setting, what)
    files = sorted([*hub_files.weights_in(place, variant), place / "config.json"])
    return {f"{setting}/{path.name}": file_hash(path) for path in files}


def _from_hub(source: str, setting: str, what: str) -> Path:
    if not hub_files.is_id(source):
        raise ConfigError(f"there is no folder {source} (suite.{setting}); give one, or a hub id (owner/name).")
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors"]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted, local_files_only=True))
    except (OSError, ValueError):
        pass
    try:
        return Path(snapshot_download(source, allow_patterns=wanted))
    except Exception as error:  # each layer below has errors of its own, and none is of interest but as text
        name = source.partition("/")[2]
        raise ConfigError(
            f"the {what} {source!r} is not a local folder, is not in the local cache of the hub, and cannot be "
            f"downloaded ({' '.join(str(error).split())[:200]}). Fetch it where there is a network: hf download "
            f"{source} config.json --include '*.safetensors' --local-dir models/{name}, then suite.{setting}=models/"
            f"{name}."
        ) from error
