"""A recipe as a file: recipe.yaml, and beside it the artefacts and other files that its methods need.

The YAML holds names, settings and digests (accel.deploy.schema); tensors are safetensors. What is loaded is what was
saved, or an error says what differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import accel
from accel.core.recipe import Recipe
from accel.deploy import schema, text
from accel.deploy.methods import EpochError, recipe_of, written
from accel.deploy.model import SCALE, differences, file_differences, of_pipeline
from accel.deploy.samples import Samples
from accel.errors import ConfigError, IntegrityError, Refusals, check_name
from accel.files import file_hash, load_tensors, save_tensors, write_atomic

NAME = "recipe.yaml"
YAML = (".yaml", ".yml")
HEAD = (
    "# A recipe of accel (docs/deploy.md). Who edits it drops `sha256` and `measured`: what was measured was another.\n"
)
SAMPLES = "samples"  # of the file that holds them
AGAIN = "Get the whole folder again from where it was saved."


class OtherModelError(ConfigError):
    """A model that is not the one which a recipe was measured on."""


@dataclass(frozen=True)
class SavedRecipe:
    """What a recipe file holds. `artefacts`: as `accelerate` takes them; `model`: what it was measured on (empty: not
    said); `measured`: what records say of it; `accel`: the version that wrote it; `suite`: words that open the suite
    (empty: the one that `measured` names); `samples`: its first images, if the file has them; `folder`: where the file
    is, if it was loaded."""

    recipe: Recipe
    artefacts: Mapping[str, Mapping[str, torch.Tensor]] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    accel: str = accel.__version__
    suite: Sequence[str] = ()
    samples: Samples | None = None
    folder: Path | None = field(default=None, compare=False)

    @property
    def guidance_scale(self) -> float | None:
        """What a network that is told the guidance scale was told when the recipe was measured; None: not said."""
        found = self.model.get("files", {}).get(SCALE)
        return None if found is None else float(found)

    def check(self, pipe: Any, models: Mapping[str, nn.Module] | None = None) -> None:
        """ConfigError, which says what differs, unless `pipe` and `models` are what the recipe was measured on. Nothing
        is asked of a recipe that was saved without a pipeline."""
        if "networks" in self.model:
            self._same(differences(self.model, of_pipeline(pipe, self.recipe, models)), "pipeline")

    def check_suite(self, suite: Any) -> None:
        """The same of a suite, by the sha256 of its files and the settings that decide its images, as records have
        them."""
        if files := self.model.get("files"):
            self._same(file_differences(files, suite.model_fingerprint()), f"suite {suite.name!r}")

    def _same(self, said: list[str], what: str) -> None:
        if said:
            raise OtherModelError(
                f"the recipe {self.recipe.label} was measured on another model than that of this {what}: "
                f"{'; '.join(said)}. Load the model that it was measured on, measure the recipe on this one, or apply "
                "it with strict=False, which warns in place of this error."
            )


def save_recipe(
    recipe: Recipe,
    path: Path | str,
    *,
    pipe: Any = None,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    measured: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    suite: Sequence[str] = (),
    samples: Samples | None = None,
) -> Path:
    """Write `recipe` into the folder `path` (or to a .yaml file, with the rest beside it); returns the YAML file.

    `pipe` and `models`: what it runs on, plain; their digests are kept, and asked for when it is applied. `artefacts`:
    what its calibrated methods need. `measured`: plain data, as accel.deploy.measured makes them; `files`: a suite's
    fingerprint; `suite`: words that open it; `samples`: what accel.deploy.first_images makes. ConfigError, before
    anything is written, for a method that is not registered, a missing artefact, and a recipe that is there already.
    """
    target = yaml_of(Path(path))
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another folder, or delete it.")
    beside: dict[str, Path] = {}
    with Refusals() as refusals:
        methods = {
            name: refusals.ask(written, name, method, beside)
            for name in schema.AXES
            if (method := getattr(recipe, name)) is not None
        }
        refusals.ask(_check_artefacts, recipe, artefacts or {})
    content = {"schema": schema.VERSION, "accel": accel.__version__, "label": recipe.label, "recipe": methods}
    again = recipe_of(methods, beside)  # nothing is written that could not be read
    if {name: written(name, getattr(again, name), {}) for name in methods} != methods:
        raise ConfigError(f"the recipe {recipe.label} would not be the same when it is loaded; a setting has no YAML.")
    model = of_pipeline(pipe, recipe, models) if pipe is not None else {}
    content |= {"model": model | ({"files": dict(files)} if files else {})} if model or files else {}
    content |= {"suite": list(suite)} if suite else {}
    content |= {"measured": dict(measured)} if measured else {}
    schema.check(content, target)
    if samples is not None:
        content["samples"] = _artefact(target, SAMPLES, {"images": samples.images}) | samples.said()
    content["artefacts"] = {name: _artefact(target, name, own) for name, own in sorted((artefacts or {}).items())}
    content["files"] = {name: _copied(target, name, source) for name, source in sorted(beside.items())}
    content = {name: value for name, value in content.items() if value != {}}
    content["sha256"] = text.digest(content)
    write_atomic(target, (HEAD + text.text_of(content)).encode())  # last: a recipe is whole or not there
    return target


def load_recipe(path: Path | str, *, strict: bool = True) -> SavedRecipe:
    """The recipe in folder `path`, or of the .yaml file `path`, with its artefacts.

    ConfigError for what it may not hold, another schema, and methods whose numbers have changed since; IntegrityError
    for files that are not what was saved, and for a file that was edited but still says that it was measured. `strict`
    false: of the last two of these a warning.
    """
    source = yaml_of(Path(path))
    content = text.read(source)
    schema.check(content, source)
    with Refusals() as refusals:
        refusals.ask(_check_whole, source, content, strict)
        files = refusals.ask(_files, source, content.get("files", {})) or {}
        artefacts = refusals.ask(_artefacts, source, content.get("artefacts", {}))
        samples = refusals.ask(_samples, source, content.get("samples"))
        recipe = refusals.ask(_recipe, content["recipe"], files, strict)
    with Refusals() as refusals:
        refusals.ask(_check_artefacts, recipe, artefacts or {})
    about = content.get("model", {}), content.get("measured", {}), content["accel"], content.get("suite", ())
    return SavedRecipe(recipe, artefacts or None, *about, samples, source.parent)


def yaml_of(path: Path) -> Path:
    """The .yaml file that `path`, a folder or that file, stands for."""
    return path if path.suffix in YAML else path / NAME


def copy_files(path: Path, folder: Path) -> None:
    """Copy a recipe that was loaded, with all that lies beside it, into `folder`, where it is recipe.yaml."""
    source = yaml_of(path)
    content = text.read(source)
    listed = [*content.get("artefacts", {}).values(), *content.get("files", {}).values()]
    for own in [*listed, *([content["samples"]] if "samples" in content else [])]:
        write_atomic(folder / own["file"], source.with_name(own["file"]).read_bytes())
    write_atomic(folder / NAME, source.read_bytes())


def _recipe(data: Mapping[str, Any], files: Mapping[str, Path], strict: bool) -> Recipe:
    try:
        return recipe_of(data, files)
    except ConfigError as error:
        if strict or not all(isinstance(reason, EpochError) for reason in error.reasons or (error,)):
            raise
        warnings.warn(str(error), stacklevel=4)
        return recipe_of({name: {k: v for k, v in own.items() if k != "epoch"} for name, own in data.items()}, files)


def _check_whole(source: Path, content: Mapping[str, Any], strict: bool) -> None:
    said = content.get("sha256")
    if said == text.digest(dict(content)) or (said is None and not content.get("measured")):
        return
    reason = (
        f"{source} was changed after it was saved: its sha256 is not that of what it says, so that what it says was "
        "measured may be of another recipe. Get it again from where it was saved, or, to use it as changed, delete "
        "`sha256` and `measured` from it."
    )
    if strict:
        raise IntegrityError(reason)
    warnings.warn(reason, stacklevel=4)


# artefacts and files ---------------------------------------------------------------------------------------------


def _check_artefacts(recipe: Recipe, artefacts: Mapping[str, Any]) -> None:
    """ConfigError if a calibrated method lacks its artefact."""
    # Precision's is of several networks, the pipeline's own among them.
    if missing := [axis for axis in recipe.calibrated if ("base" if axis == "precision" else axis) not in artefacts]:
        raise ConfigError(
            f"the recipe {recipe.label} needs what was searched, fitted or learned for its {' and '.join(missing)}, "
            "and has no such artefact; give it as artefacts={...} (as accelerate takes it), or save a row that was "
            "measured: accel recipe <study> <row> --to <folder>."
        )


def _beside(target: Path, name: str) -> Path:
    return target.with_name(f"{target.stem}.{name}")


def _artefact(target: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    path = _beside(target, f"{check_name('the name of an artefact', name)}.safetensors")
    save_tensors(path, dict(tensors))
    return {"file": path.name, "sha256": file_hash(path)}


def _copied(target: Path, name: str, source: Path) -> dict[str, str]:
    path = _beside(target, name)
    write_atomic(path, source.read_bytes())
    return {"file": path.name, "sha256": file_hash(path)}


def _files(source: Path, listed: Mapping[str, Mapping[str, str]]) -> dict[str, Path]:
    """Where the files beside a recipe are, by name, each of them whole."""
    found = {}
    with Refusals() as refusals:
        for name, own in listed.items():
            found[name] = refusals.ask(_whole, source, own)
    return found


def _artefacts(source: Path, listed: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name, path in _files(source, listed).items():
        found[name] = load_tensors(path) if path.suffix == ".safetensors" else None
        if found[name] is None:
            raise IntegrityError(f"{path} is no safetensors file of accel; artefacts are nothing else. {AGAIN}")
    return found


def _samples(source: Path, said: Mapping[str, Any] | None) -> Samples | None:
    if said is None:
        return None
    tensors = _artefacts(source, {SAMPLES: said})[SAMPLES]
    found = Samples(tensors.get("images", torch.empty(0)), said["seed"], said["environment"])
    if found.digests != said["images"]:
        raise IntegrityError(f"{source.with_name(said['file'])} holds other images than {source} says. {AGAIN}")
    return found


def _whole(source: Path, own: Mapping[str, str]) -> Path:
    path = source.with_name(check_name("a file of a recipe", own["file"]))
    if not path.is_file() or path.is_symlink():
        raise IntegrityError(f"{path} is not there. {AGAIN}")
    if (found := file_hash(path)) != own["sha256"]:
        raise IntegrityError(
            f"{path} is not what was saved: its sha256 is {found[:12]}..., and the recipe says "
            f"{own['sha256'][:12]}.... {AGAIN}"
        )
    return path
