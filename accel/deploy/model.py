"""Which model a recipe was measured on: digests of its networks and files, and what differs from them here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from accel.core.denoiser import denoiser_name
from accel.core.guidance import CLASSIFIER
from accel.core.recipe import Recipe
from accel.core.student import TEACHER
from accel.digests import weights_hex
from accel.errors import AccelError, ConfigError
from accel.samplers.noise_schedule import noise_schedule

NO_MODEL = (
    "prompts",
    "inputs",
    "masks",
    "control",
    "setting strength",
    "setting image scale",
    "setting control scale",
)  # of a suite's fingerprint: what is shown, not what shows it
SCALE = "setting distilled guidance"  # of a suite's fingerprint: what a distilled network was told


def needed(recipe: Recipe) -> set[str]:
    """Names of the networks that a recipe needs beside the pipeline's."""
    names = {*(recipe.stitch.models if recipe.stitch else ()), *(recipe.guidance.models if recipe.guidance else ())}
    names = (names - {TEACHER}) | {recipe.student.model} if recipe.student else names
    names |= {recipe.decoder.model} if recipe.decoder else set()
    return names | ({CLASSIFIER} if recipe.guidance and recipe.guidance.uses_classifier else set())


def of_pipeline(pipe: Any, recipe: Recipe, models: Mapping[str, nn.Module] | None = None) -> dict[str, Any]:
    """What identifies the model of `pipe` and the further networks that `recipe` names, as a recipe file keeps it.

    A digest is that of artefacts (accel.digests): names, shapes and 64 values of each tensor of a network.
    """
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    wanted = needed(recipe)
    found = {
        "pipeline": type(pipe).__name__,
        "dtype": str(getattr(getattr(pipe, denoiser_name(pipe)), "dtype", "")).removeprefix("torch."),
        "schedule": _schedule(pipe),
        "networks": {name: _digest(name, part) for name, part in sorted(parts.items())},
        "models": {name: _digest(name, models[name]) for name in sorted(wanted & {*(models or ())})},
    }
    return {name: value for name, value in found.items() if value}


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, each network, and the noise schedule, that is another one here than in what was saved."""
    said = []
    for kind in ("networks", "models"):
        theirs, ours = saved.get(kind, {}), here.get(kind, {})
        for name in sorted({*theirs, *(ours if kind == "networks" else ())}):
            if theirs.get(name) != ours.get(name):
                said.append(f"{name} ({_short(theirs.get(name))} was measured, {_short(ours.get(name))} is here)")
    if saved.get("schedule") != here.get("schedule"):
        said.append(f"noise schedule ({saved.get('schedule')} was measured, {here.get('schedule')} is here)")
    if said and saved.get("dtype") != here.get("dtype"):
        said.append(f"dtype ({saved.get('dtype')} was measured, {here.get('dtype')} is here)")
    return said


def file_differences(saved: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """In words, each file or setting of the model that is another one in a suite's fingerprint `here`."""
    names = sorted({*saved, *here} - {*NO_MODEL})
    return [
        f"{name} ({_short(saved.get(name))} was measured, {_short(here.get(name))} is here)"
        for name in names
        if saved.get(name) != here.get(name)
    ]


def _short(digest: str | None) -> str:
    return "nothing" if digest is None else digest[:12]


def _digest(name: str, net: nn.Module) -> str:
    try:
        return weights_hex(net)
    except (NotImplementedError, RuntimeError) as error:  # weights that offloading has taken away
        raise ConfigError(
            f"the weights of {name} cannot be read ({' '.join(str(error).split())[:200]}); save or apply a recipe "
            "before the pipeline's weights are offloaded."
        ) from error


def _schedule(pipe: Any) -> str:
    try:
        config = pipe.scheduler.config
        return f"{noise_schedule(config).identity}/{config.get('prediction_type', 'flow')}"
    except (AccelError, AttributeError):  # a scheduler that accel has no words for
        return ""
