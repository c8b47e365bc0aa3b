"""A student in the place of a pipeline's denoiser: where its weights are, what identifies them, how they are loaded.

A student is a pipeline (a folder or a hub id, of which the denoiser is taken), the folder of a denoiser alone, or one
file of weights for the denoiser that the pipeline has. It must be of that denoiser's class and take what it takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from accel.core.pipelines import distilled_config
from accel.errors import ConfigError
from accel.files import file_hash
from accel.students import Known, known_by
from accel.students.known import named
from accel.suites.base import loading
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index
from accel.suites.hub import models as hub_models
from accel.suites.hub.lora import Lora

# What a pipeline and its denoiser must agree on; whether a number is told beside the time is the student's own.
SHARED = ("in_channels", "out_channels", "cross_attention_dim", "joint_attention_dim", "caption_channels", "patch_size")


def place_of(source: str, name: str, variant: str | None) -> Path:
    """The file of a student, or the folder of its network, which pipelines have as `name`."""
    path = Path(source).expanduser()
    if path.suffix in (".safetensors", *hub_files.PICKLES) or path.is_file():
        if path.suffix != ".safetensors":
            raise ConfigError(f"suite.student is {path}, which may run code when loaded; needed: .safetensors.")
        if not path.is_file():
            raise ConfigError(f"there is no file {path} (suite.student). Fetch it where there is a network.")
        return path
    if path.is_dir() and not (path / hub_index.FILE).exists():
        if not (path / "config.json").exists():
            raise ConfigError(
                f"suite.student is {path}, which has neither {hub_index.FILE} nor config.json; allowed: the folder of a"
                " pipeline, that of its denoiser, a file of its weights, or a hub id."
            )
        return path
    folder = hub_files.folder_of(source, None, variant)
    if (own := hub_files.denoiser_of(folder)) != name:
        raise ConfigError(f"the student {source} has a {own}, and the pipeline a {name}; use one distilled from it.")
    return hub_files.place_of(folder, name)


def config(source: str, name: str, folder: Path, variant: str | None) -> dict[str, Any]:
    """The config of the student's network; of a single file that of the pipeline's own in `folder`. ConfigError where
    it is of another class, or takes another input, than the pipeline's."""
    own, place = hub_files.config_of(folder, name), place_of(source, name, variant)
    if place.is_file():
        return own
    found = hub_index.read_object(place / "config.json", f"{place / 'config.json'} is missing. Download it again.")
    hub_files.check_config(place, name, found)
    cls = hub_index.components(folder)[name][1]
    differing = [f"{key} {found.get(key)!r}" for key in SHARED if found.get(key) != own.get(key)]
    if found.get("_class_name", cls) != cls or differing:
        what = ", ".join(differing) or f"a {hub_index.short(found['_class_name'])}"
        raise ConfigError(
            f"the student {source} has {what}, and the {cls} of {folder} has not; use one distilled from it."
        )
    return found


def check(source: str | None, gguf: str | None, name: str, folder: Path, variant: str | None) -> None:
    """ConfigError unless the student, if there is one, fits the pipeline, and alone has its place."""
    if source and gguf:
        raise ConfigError("suite.student and suite.gguf both give the denoiser's weights; leave one of them out.")
    if source:
        config(source, name, folder, variant)


@lru_cache(maxsize=8)
def told(source: str | None, name: str, folder: Path, variant: str | None) -> bool:
    """Whether the denoiser, the student's or the pipeline's own, is told the guidance scale in place of guidance."""
    own = config(source, name, folder, variant) if source else hub_files.config_of(folder, name)
    return distilled_config(own)


def contract(known: str, loras: Iterable[Lora], *sources: str | None) -> Known | None:
    """The contract of a student of others that `known` says: `auto` by the names of files and models, LoRAs first."""
    if known not in ("auto", "none"):
        return named(known)
    return known_by([*(lora.path for lora in loras), *filter(None, sources)]) if known == "auto" else None


def load(source: str, name: str, folder: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    """The student's network, all of whose tensors are in its files; ConfigError else."""
    kept, place = config(source, name, folder, variant), place_of(source, name, variant)
    library, cls = hub_index.components(folder)[name]
    if place.is_dir():
        where = place.parent if place.name == name else place
        return hub_models.network(where, name, library, cls, dtype, variant)
    import diffusers

    net = getattr(diffusers, cls).from_config(kept).to(dtype)
    with loading(place):
        state = load_file(place)
    own = net.state_dict()
    wrong = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape} | (
        own.keys() ^ state.keys()
    )
    if wrong:
        raise ConfigError(
            f"{place}: {len(wrong)} tensors are not those of the {cls} of {folder}, such as {min(wrong)}. It is the "
            "student of another model, or no file of its denoiser alone."
        )
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def hashes(source: str, name: str, variant: str | None) -> dict[str, str]:
    """sha256 of the student's files."""
    place = place_of(source, name, variant)
    if place.is_file():
        return {f"student/{place.name}": file_hash(place)}
    weights = hub_files.weights_in(place, variant)
    return {f"student/{path.name}": file_hash(path) for path in sorted([*weights, place / "config.json"])}


def lines(source: str, name: str, variant: str | None, dtype: torch.dtype) -> list[str]:
    """The lines of Python that put it into `pipe` by diffusers alone."""
    place = place_of(source, name, variant).absolute()
    if place.is_file():
        return ["import safetensors.torch", f"pipe.{name}.load_state_dict(safetensors.torch.load_file({str(place)!r}))"]
    how = f"torch_dtype={dtype}, use_safetensors=True" + (f", variant={variant!r}" if variant else "")
    return [f"pipe.{name} = type(pipe.{name}).from_pretrained({str(place)!r}, {how})"]
