"""Weights of transformers' models: from a local folder or the hub, safetensors only, never code from a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from accel.errors import ConfigError
from accel.files import file_hash

WEIGHTS, SHARDS = "model.safetensors", "model-*.safetensors"
FETCHED = ["*.json", "*.txt", WEIGHTS, SHARDS]  # of a hub repository: no pickles, no code
PICKLES = ("*.bin", "*.pt", "*.pth")

Files = Sequence[tuple[str, ...]]  # alternatives; of one of them all files must be there


def checkpoint(source: str | Path, kind: str, files: Files = ()) -> Path:
    """The folder of a transformers checkpoint of model type `kind`: `source` itself, or its copy in the hub's cache.

    A hub id is looked up in the local cache first, and downloaded only if it is not wholly there. Raises ConfigError
    when it is in neither place and out of reach, holds another model, lacks `files` or has no safetensors weights.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(source), kind, files)
    if defect := _defect(folder, kind, files):
        raise ConfigError(f"{kind} weights: {defect}")
    return folder


def _from_hub(name: str, kind: str, files: Files) -> Path:
    from huggingface_hub import snapshot_download

    if Path(name).expanduser().is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ConfigError(f"{kind} weights: there is no folder {name}; give a folder that exists, or a hub id.")
    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=FETCHED))
        if not _defect(cached, kind, files):
            return cached
    except Exception:  # not, or not wholly, in the cache; what is raised depends on the hub client's version
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=FETCHED))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{kind} weights: {name!r} is not a local folder, is not in the local cache of the hub and cannot be "
            f"downloaded ({reason}). Give a local folder, or fetch it where there is a network: "
            f"hf download {name}."
        ) from error


def _defect(folder: Path, kind: str, files: Files) -> str | None:
    """What keeps `folder` from being a checkpoint of model type `kind`; None if it is one."""
    try:
        found = json.loads((folder / "config.json").read_text())["model_type"]
    except FileNotFoundError:
        return f"{folder} has no config.json; needed: a transformers checkpoint."
    except (ValueError, KeyError, TypeError) as error:
        return f"{folder / 'config.json'} is damaged ({error!r}); needed: that of a transformers checkpoint."
    if found != kind:
        return f"{folder} holds a model of type {found!r}; needed: {kind!r}."
    if files and not any(all((folder / name).is_file() for name in names) for names in files):
        return f"{folder} is not complete; needed: {', or '.join(' and '.join(names) for names in files)}."
    return None if weight_files(folder) else _no_weights(folder)


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    found = (
        f"only {', '.join(pickles)}, and pickles, which can run code, are not loaded" if pickles else "no safetensors"
    )
    return (
        f"{folder} has {found}; needed: {WEIGHTS}. If you trust the file, convert it once: from_pretrained and "
        "save_pretrained of transformers."
    )


def weight_files(folder: Path) -> list[Path]:
    """The one safetensors file, or else its shards."""
    whole = folder / WEIGHTS
    return [whole] if whole.is_file() else sorted(folder.glob(SHARDS))


def files_sha256(folder: Path) -> str:
    """sha256 of the weights file; of lines `name sha256` where there are several."""
    files = weight_files(folder)
    if len(files) == 1:
        return file_hash(files[0])
    return hashlib.sha256("".join(f"{path.name} {file_hash(path)}\n" for path in files).encode()).hexdigest()


def state_sha256(network: nn.Module) -> str:
    """sha256 of the names, types, shapes and values of a network whose file is not known."""
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def load_model(cls: type, folder: Path) -> nn.Module:
    """`cls.from_pretrained` of this folder's safetensors alone; ConfigError if damaged, or if weights are missing."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        model, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"cannot load {cls.__name__} from {folder}: {error}") from error
    if missing := sorted(map(str, info["missing_keys"])):
        raise ConfigError(
            f"{folder} lacks {len(missing)} weights of {cls.__name__}, the first is {missing[0]}; they would be random."
        )
    return model
