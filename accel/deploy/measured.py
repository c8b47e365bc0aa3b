"""From a row of a study to what a recipe file says of it: the recipe, its artefacts, and what was measured, of records.

Everything is as tables have it: values with their 95 % intervals, paired differences to the study's baseline with the
margins that were stated and the verdict, and speed-ups with device, threads and batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accel.core.recipe import Recipe
from accel.deploy.methods import recorded, written
from accel.deploy.schema import AXES
from accel.errors import ConfigError, unknown
from accel.metrics.statistics import Estimate
from accel.records import Results
from accel.results.comparison import Comparison, Row, device_of, metric_of, no_speed
from accel.studies.calibration import kept_artefacts

ENDS = ("value", "lo", "hi")
MADE_BY = ("accel", "commit", "device", "device_name", "threads", "python", "system", "packages")


@dataclass(frozen=True)
class Measured:
    """A row: its recipe, what its calibrated methods learned, the fingerprint of its model, and what was measured."""

    recipe: Recipe
    artefacts: Mapping[str, Mapping[str, torch.Tensor]]
    weights: Mapping[str, str]
    suite: str
    said: Mapping[str, Any]


def of_row(results: Results, study: str, label: str) -> Measured:
    """The row `label` (as the table has it, or the id of its record) of a study. ConfigError if there is no such row
    with results, or several; if it is of images that no recipe made, of methods that are not registered or whose
    numbers have changed since; and if its artefacts are gone."""
    comparison = Comparison.load(results, study)
    row = _row(comparison, label)
    record = row.quality
    recipe = recorded(record["recipe"])
    artefacts = kept_artefacts(results.root / "artefacts", record["suite"], record["weights"], recipe)
    return Measured(recipe, artefacts, record["weights"], record["suite"], _said(comparison, row))


def _row(comparison: Comparison, label: str) -> Row:
    made = [row for row in comparison.done if row.role != "floor"]
    found = {row.quality["id"]: row for row in reversed(made) if label in (row.label, row.quality["id"])}
    if not found:
        if refused := next((row.refused for row in comparison.rows if row.label == label and row.refused), None):
            raise ConfigError(
                f"row {label!r} of study {comparison.name} has no result ({refused}); choose another row."
            )
        raise unknown(f"row of study {comparison.name}", label, {row.label for row in made})
    if len(found) > 1:
        said = ", ".join(f"{key} (N = {row.quality['n']}, seed {row.quality['seed']})" for key, row in found.items())
        raise ConfigError(f"{label!r} is several rows of study {comparison.name}; give the id of one: {said}.")
    return next(iter(found.values()))


def _said(comparison: Comparison, row: Row) -> dict[str, Any]:
    record, base = row.quality, comparison.baseline
    values = {key: _interval(value) | {"n": value["n"]} for key, value in record["values"].items()}
    said = {
        "study": comparison.name,
        "row": row.label,
        "role": row.role,
        "suite": record["suite"],
        "n": record["n"],
        "seeds": record.get("seeds") or [record["seed"]],
        "values": values,
        "reference": record.get("reference") or {},
        "cost": {key: value for key, value in (record.get("cost") or {}).items() if value is not None},
        "margins": {key: value for key, value in comparison.margins.to_dict().items() if value is not None},
    }
    if base is not None and row.quality["id"] != base.quality["id"]:
        judged = dict.fromkeys([metric_of(record), *comparison.compared])
        differences = {key: _difference(comparison, row, base, key) for key in judged if key in values}
        against = {
            "baseline": base.label,
            "recipe": _data(base),
            "differences": {key: value for key, value in differences.items() if value is not None},
        }
        said["against"] = {key: value for key, value in against.items() if value is not None}
    speed = [_speed(comparison, row, timing) for timing in row.timings]
    said["speed"] = [one for one in speed if one is not None]
    said["made_by"] = {key: value for key in MADE_BY if (value := record.get("environment", {}).get(key)) is not None}
    said["records"] = {"quality": record["id"], "timing": [timing["id"] for timing in row.timings]}
    return {key: value for key, value in said.items() if value not in ([], {})}


def _data(row: Row) -> dict[str, Any] | None:
    """The recipe of a row as plain data; None for one that needs more than these, or cannot be made again."""
    files: dict[str, Path] = {}
    with suppress(ConfigError):
        recipe = recorded(row.quality["recipe"])
        made = {axis: written(axis, own, files) for axis in AXES if (own := getattr(recipe, axis)) is not None}
        return None if files or recipe.calibrated else made
    return None


def _interval(value: Mapping[str, Any]) -> dict[str, float]:
    return {end: value[end] for end in ENDS}


def _difference(comparison: Comparison, row: Row, base: Row, key: str) -> dict[str, Any] | None:
    delta: Estimate | None = comparison.delta(row, base, key)
    if delta is None:
        return None
    found: dict[str, Any] = {end: float(getattr(delta, end)) for end in ENDS}
    margin = comparison.margin(key, base)
    return found | ({} if margin is None else {"margin": margin}) | {"verdict": comparison.verdict(row, base, key)}


def _speed(comparison: Comparison, row: Row, timing: Mapping[str, Any]) -> dict[str, Any] | None:
    shown = comparison.timing(row, device_of(timing))
    if shown is None:
        return None
    return {
        "device": timing["device_name"],
        "threads": timing["threads"],
        "batch": timing["batch"],
        "speedup": _interval(shown["speedup"]),
        "told_apart": not no_speed(shown),  # from 1, and from what the same shows against itself
        "ms_per_image": _interval(shown["ms_per_image"]),
    }
