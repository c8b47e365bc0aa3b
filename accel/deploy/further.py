"""Further networks of a pipeline folder: what a recipe names beside the pipeline's own (stitches, autoguidance).

    <folder>/networks/MANIFEST.json     sha256 of every file below
    <folder>/networks/<name>/           config.json and safetensors, as save_pretrained writes them; of a student also
                                        student.json, its contract

What is loaded from a folder names no code: classes are those of the installed diffusers, weights are safetensors that
hold every tensor of the class and no other, and nothing but these files may lie there. That they are the networks which
the recipe was measured on, its digests say, as they do of networks that a caller gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import nn

from accel.core.conditioning import conditioning_of
from accel.core.denoiser import denoiser_name
from accel.core.student import FILE as CONTRACT
from accel.core.student import Contract, contract_of, contracted
from accel.deploy.model import needed
from accel.deploy.recipe_file import AGAIN, SavedRecipe
from accel.errors import ConfigError, IntegrityError, Refusals, check_name

PLACE = "networks"
INDEX = "model_index.json"  # of a pipeline folder
FILE = re.compile(r"config\.json|student\.json|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
ALLOWED = "a pipeline folder holds networks of diffusers' own classes alone, for it never names code"


def check(saved: SavedRecipe, models: Mapping[str, nn.Module]) -> None:
    """ConfigError, with every reason, if a folder cannot hold the networks that a recipe names."""
    digests = saved.model.get("models", {})
    with Refusals() as refusals:
        for name in sorted(needed(saved.recipe)):
            refusals.ask(check_name, "the name of a further network", name)
            refusals.ask(_check_kind, name, models[name])
            if name not in digests:
                refusals.add(
                    ConfigError(
                        f"the recipe file has no digest of its further network {name!r}, by which it would be known in "
                        "a folder; write the file again with its model (accel recipe without --without-model, or "
                        "recipe.save(folder, pipe=..., models=...))."
                    )
                )


def write(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Save networks, which `check` let pass, into a pipeline folder; without any, nothing."""
    from accel.suites.base import write_manifest  # suites need more than the core, which `apply` does not

    for name, net in networks.items():
        net.save_pretrained(folder / PLACE / name, safe_serialization=True)
        if contract := contract_of(net):
            contract.save(folder / PLACE / name)
    if networks:
        write_manifest(folder / PLACE)


def beside(saved: SavedRecipe, pipe: Any, models: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module] | None:
    """`models`, and what else the recipe names of the pipeline folder that it was loaded from, in the dtype and on the
    device of the denoiser of `pipe`.

    IntegrityError for files that are not what was saved or are missing, ConfigError for a config that names another
    class than one of diffusers' networks, and for whatever else is no network there.
    """
    wanted = sorted(needed(saved.recipe) - {*(models or ())})
    if not wanted or saved.folder is None or not any((saved.folder / own).exists() for own in (PLACE, INDEX)):
        return models
    return {**(models or {}), **_read(saved.folder / PLACE, wanted, getattr(pipe, denoiser_name(pipe)))}


def _read(place: Path, names: Iterable[str], like: nn.Module) -> dict[str, nn.Module]:
    from accel.suites.base import check_manifest
    from accel.suites.hub import models as hub_models

    names = list(names)
    if missing := [name for name in names if not (place / check_name("a further network", name)).is_dir()]:
        raise IntegrityError(
            f"the recipe needs {' and '.join(map(repr, missing))} beside the pipeline, and {place / missing[0]} is not "
            f"there. {AGAIN} Or give it: accel.apply(pipe, folder, models={{{missing[0]!r}: network}})."
        )
    listed = check_manifest(place, AGAIN)
    with Refusals() as refusals:
        classes = {name: refusals.ask(_class_of, place, name, listed) for name in names}
    device = next((tensor.device for tensor in like.parameters()), torch.device("cpu"))
    found = {}
    for name, cls in classes.items():
        found[name] = hub_models.network(place, name, "diffusers", cls, like.dtype, None).to(device)
        if (place / name / CONTRACT).exists():
            contracted(found[name], Contract.load(place / name))
    return found


def _class_of(place: Path, name: str, listed: Mapping[str, str]) -> str:
    """The class of a network by its config; ConfigError if it is none of diffusers', or if other files lie there."""
    from accel.suites.hub import files as hub_files

    there = sorted(path.relative_to(place / name).as_posix() for path in (place / name).rglob("*"))
    if strange := [file for file in there if not FILE.fullmatch(file) or f"{name}/{file}" not in listed]:
        raise ConfigError(
            f"{place / name} holds {strange[0]!r}, which is not of the network that was saved; allowed: config.json "
            f"and the safetensors that MANIFEST.json lists. {AGAIN}"
        )
    config = hub_files.config_of(place, name)
    hub_files.check_config(place, name, config)
    cls = config.get("_class_name")
    if not (isinstance(cls, str) and cls.isidentifier() and _is_network(getattr(diffusers, cls, None))):
        raise ConfigError(f"the config of {place / name} names the class {cls!r}, and {ALLOWED}. {AGAIN}")
    if "quantization_config" in config:
        raise ConfigError(f"the config of {place / name} has a quantization_config; allowed: plain weights. {AGAIN}")
    return cls


def _check_kind(name: str, net: nn.Module) -> None:
    if not (_is_network(type(net)) and getattr(diffusers, type(net).__name__, None) is type(net)):
        raise ConfigError(
            f"the further network {name!r} is a {type(net).__name__}, and {ALLOWED}; use --to code, or "
            f"accel.apply(pipe, recipe, models={{{name!r}: network}})."
        )
    said = {
        "a conditioning of its own (accel.core.conditioning)": conditioning_of(net),
        "adapters": getattr(net, "peft_config", None),
        "quantised weights": getattr(net, "hf_quantizer", None),
    }
    if reasons := [reason for reason, found in said.items() if found]:
        raise ConfigError(f"the further network {name!r} has {reasons[0]}, which no folder holds; use --to code.")


def _is_network(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, ModelMixin) and cls.__module__.startswith("diffusers.")
