"""The denoiser's weights from a GGUF file: arrays with a type each (Q4_K, Q8_0 ...), no code; the config is the
folder's.

diffusers reads the file with the package gguf (`from_single_file`) and dequantises each linear layer's weight, in
float16, when it is called. The other networks are those of the folder, which needs no weights of its denoiser then.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.errors import ConfigError, check_installed
from accel.files import file_hash
from accel.suites.base import loading
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index

PLAIN = ("F16", "F32", "BF16")
PACKAGES = ("gguf", "accelerate")


def check(folder: Path, gguf: str | None) -> None:
    """ConfigError unless the file is there, and diffusers can read it into the denoiser of `folder`."""
    if gguf is None:
        return
    cls = _class(folder)
    if not hasattr(cls, "from_single_file"):
        raise ConfigError(f"diffusers reads no GGUF file into a {cls.__name__}; leave suite.gguf out.")
    label(gguf)


def identity(gguf: str | None) -> dict[str, str]:
    """The file's hash, under the name that it has in a fingerprint."""
    return {} if gguf is None else {"gguf": file_hash(_file(gguf))}


def label(gguf: str) -> str:
    """`gguf` and the type of most of the file's numbers, such as `gguf Q4_K`."""
    path = _file(gguf)
    check_installed(PACKAGES, "hub", "suite.gguf")
    return _label(path, path.stat().st_mtime_ns)


def _file(gguf: str) -> Path:
    path = Path(gguf).expanduser()
    if path.suffix != ".gguf" or not path.is_file():
        raise ConfigError(
            f"suite.gguf is {gguf!r}; needed: a .gguf file that is here. Fetch it where there is a network: hf "
            "download <owner>/<name> <file>.gguf --local-dir models."
        )
    return path


@lru_cache(maxsize=16)
def _label(path: Path, changed: int) -> str:
    counts: Counter[str] = Counter()
    with loading(path):
        for tensor in import_module("gguf").GGUFReader(str(path)).tensors:
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
    quantised = {name: count for name, count in counts.items() if name not in PLAIN} or counts
    if not quantised:
        raise ConfigError(f"{path} holds no tensors. Download it again.")
    return f"gguf {max(quantised, key=quantised.__getitem__)}"


def network(folder: Path, path: Path, dtype: torch.dtype) -> nn.Module:
    """The denoiser of `folder` with the weights of the file. ConfigError if it lacks some of them."""
    from diffusers import GGUFQuantizationConfig

    check(folder, str(path))
    path, name = path.expanduser(), hub_files.denoiser_of(folder)
    how: dict[str, Any] = {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype), "torch_dtype": dtype}
    with loading(path):
        net = _class(folder).from_single_file(
            str(path), config=str(folder), subfolder=name, local_files_only=True, **how
        )
    if lacking := [own for own, tensor in net.state_dict().items() if tensor.device.type == "meta"]:
        raise ConfigError(
            f"{path} lacks {len(lacking)} of the tensors of a {type(net).__name__}, {lacking[0]} among them; it is of "
            "another model. Use one that was made of this model."
        )
    return net.eval()


def lines(folder: Path, gguf: str | None, dtype: str) -> list[str]:
    """The lines of Python that do the same to a `pipe` without its denoiser, by diffusers alone."""
    if gguf is None:
        return []
    name, cls = hub_files.denoiser_of(folder), _class(folder).__name__
    path = str(Path(gguf).expanduser().absolute())
    return [
        f"from diffusers import {cls}, GGUFQuantizationConfig",
        f"net = {cls}.from_single_file({path!r}, config={str(folder.absolute())!r}, subfolder={name!r}, "
        f"quantization_config=GGUFQuantizationConfig(compute_dtype=torch.{dtype}), torch_dtype=torch.{dtype})",
        f"pipe.register_modules({name}=net)",
    ]


def _class(folder: Path) -> type:
    library, cls = hub_index.components(folder)[hub_files.denoiser_of(folder)]
    return getattr(import_module(library), cls)
