"""LoRA files on a pipeline of suite `hub`: which they are, what identifies them, and how they get into the networks.

Each layer's weight W becomes W + sum_i s_i (alpha_i / r_i) B_i A_i, s_i the scale of file i (Hu et al. 2021,
arXiv:2106.09685, section 4.1; alpha_i / r_i is the file's own). Fused, that sum is in the weights and the layers are
those of the model again, so that whatever looks at layers (precision, caches, pruning) finds what it knows. Otherwise A
and B stay beside W as layers of their own, which cost their MACs at each call, and are quantised as such.

diffusers reads the files, in whichever of the trainers' formats they are, with the package peft. Safetensors only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from accel.errors import ConfigError, check_float, check_installed
from accel.files import file_hash
from accel.suites.base import loading
from accel.suites.hub.files import PICKLES

NAME = "pytorch_lora_weights.safetensors"  # of the file in a folder that holds several
LARGEST = 100.0  # scale


@dataclass(frozen=True)
class Lora:
    """A file of LoRA weights (or the folder that holds it) and how much of it is added. ConfigError for a scale that is
    no number of -100..100, or for a path that is no text."""

    path: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ConfigError(f"a path in suite.lora is {self.path!r}; allowed: a file of safetensors, or its folder.")
        check_float(f"the scale of {self.path} in suite.lora", self.scale, -LARGEST, LARGEST)

    @property
    def file(self) -> Path:
        """The file. ConfigError if it is not there, or no safetensors."""
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = sorted(path.glob("*.safetensors"))
            named = [file for file in found if file.name == NAME]
            if len(found) != 1 and not named:
                raise ConfigError(f"{path} holds {len(found)} files of safetensors; name the LoRA's in suite.lora.")
            return (named or found)[0]
        if not path.is_file():
            raise ConfigError(
                f"there is no LoRA file {path}. Fetch it where there is a network: hf download <owner>/<name> <file> "
                "--local-dir loras, then suite.lora=[loras/<file>]."
            )
        if path.suffix != ".safetensors":
            pickled = "a pickle, which can run code when loaded" if path.suffix in PICKLES else "of another kind"
            raise ConfigError(f"the LoRA file {path} is {pickled}; needed: .safetensors.")
        return path

    def identity(self) -> str:
        """sha256 of the file, and the scale."""
        return f"{file_hash(self.file)} x {self.scale:g}"


def parsed(said: Iterable[Any]) -> tuple[Lora, ...]:
    """`suite.lora` as Loras: each a mapping of path and scale, or the text `path` or `path:scale`."""
    if isinstance(said, str) or not isinstance(said, Iterable):
        raise ConfigError(f"suite.lora is {said!r}; allowed: a list, such as [style.safetensors:0.8].")
    return tuple(_one(each) for each in said)


def _one(said: Any) -> Lora:
    if isinstance(said, Lora):
        return said
    if isinstance(said, str):
        path, _, scale = said.rpartition(":")
        try:
            number = float(scale)
        except ValueError:  # no scale, perhaps a colon of the path
            return Lora(said)
        return Lora(path, number) if path else Lora(said)
    if not isinstance(said, Mapping) or not {"path"} <= {*said} <= {"path", "scale"}:
        raise ConfigError(f"suite.lora has {said!r}; allowed: path:scale, or {{path: ..., scale: ...}}.")
    return Lora(said["path"], said.get("scale", 1.0))


def check(loras: Sequence[Lora], cls: type) -> None:
    """ConfigError unless the files are there and pipelines of `cls` can take them."""
    if not loras:
        return
    if not hasattr(cls, "load_lora_weights"):
        raise ConfigError(f"{cls.__name__} takes no LoRA weights; leave suite.lora out.")
    check_installed(("peft",), "hub", "suite.lora")
    for lora in loras:
        lora.file  # noqa: B018 (refuses what is not there)


def add(pipe: Any, loras: Sequence[Lora], fused: bool) -> None:
    """Put LoRA weights into the networks of `pipe`, in place. ConfigError for files that are not of its networks."""
    if not loras:
        return
    check(loras, type(pipe))
    names = [f"lora{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        file = lora.file
        with loading(file), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # that of the file before
            pipe.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=name, use_safetensors=True, local_files_only=True
            )
        check_whole(pipe, file, name)
    with loading(file.parent):
        pipe.set_adapters(names, [lora.scale for lora in loras])
        if fused:
            pipe.fuse_lora(components=_with_adapters(pipe), adapter_names=names, safe_fusing=True)
            pipe.unload_lora_weights()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)


def check_whole(pipe: Any, file: Path, name: str) -> None:
    """ConfigError unless every pair of matrices in `file` is in a layer of `pipe` as the adapter `name`."""
    read = type(pipe).lora_state_dict(str(file.parent), weight_name=file.name, use_safetensors=True)
    state = read[0] if isinstance(read, tuple) else read
    held = sum(_first(key) for key in state)
    there = sum(
        _first(key) and f".{name}." in key
        for part in pipe.components.values()
        if isinstance(part, nn.Module)
        for key, _ in part.named_parameters()
    )
    if not held or there < held:
        raise ConfigError(
            f"{file}: {there} of its {held} LoRA layers are layers of this {type(pipe).__name__}; it is of another "
            "model. Use one that was trained for this model."
        )


def _first(key: str) -> bool:
    # Whether a tensor is the first of a LoRA layer's two, in any of the formats.
    return any(
        part in key for part in (".lora_A.", ".lora.down.", "_lora.down.", ".lora_down.", "lora_linear_layer.down")
    )


def _with_adapters(pipe: Any) -> list[str]:
    return [name for name in pipe._lora_loadable_modules if getattr(getattr(pipe, name, None), "peft_config", None)]


def lines(loras: Sequence[Lora], fused: bool) -> list[str]:
    """The lines of Python that do the same to `pipe` by diffusers alone."""
    if not loras:
        return []
    names = [f"lora{i}" for i in range(len(loras))]
    found = [
        f"pipe.load_lora_weights({str(lora.file.parent.absolute())!r}, weight_name={lora.file.name!r}, "
        f"adapter_name={name!r})"
        for name, lora in zip(names, loras, strict=True)
    ]
    found.append(f"pipe.set_adapters({names!r}, {[lora.scale for lora in loras]!r})")
    return found + (["pipe.fuse_lora()", "pipe.unload_lora_weights()"] if fused else [])
