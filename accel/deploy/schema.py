"""What a recipe.yaml holds, as a JSON schema, and the part of JSON schema that it is written in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from accel.core.recipe import Recipe
from accel.errors import ConfigError, Refusals, unknown

VERSION = 1
AXES = tuple(field.name for field in fields(Recipe))
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
# Settings of a suite by name: nothing that names code, nothing that is looked up elsewhere.
_WORD = {"type": "string", "pattern": r"^\+?suite(\.(?!_)[A-Za-z0-9_]+)*=(?![\s\S]*(_target_|\$\{))"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METHOD = {
    "type": "object",
    "required": ["method"],
    "additionalProperties": False,
    "properties": {
        "method": {"type": "string", "description": "the registered name: a file of conf/<axis>"},
        "epoch": {"type": "integer", "description": "of the method's numbers"},
        "settings": {"type": "object", "description": "all of them; objects by `type`, a class of that axis"},
    },
}
_FILE = {
    "type": "object",
    "required": ["file", "sha256"],
    "additionalProperties": False,
    "properties": {"file": {"type": "string"}, "sha256": _SHA256},
}
_SAMPLES = {
    "type": "object",
    "required": ["file", "sha256", "seed", "images", "environment"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string"},
        "sha256": _SHA256,
        "seed": {"type": "integer"},
        "images": {"type": "array", "items": _SHA256, "description": "sha256 of each image: type, shape, bytes"},
        "environment": {"type": "object", "description": "what they were made in: device, threads, versions"},
    },
}
_MODEL = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "pipeline": {"type": "string", "description": "class of the pipeline that was saved from"},
        "dtype": {"type": "string"},
        "schedule": {"type": "string", "description": "identity of the noise schedule"},
        "networks": _TEXTS | {"description": "digest of each network of the pipeline, by component"},
        "models": _TEXTS | {"description": "digest of each further network that the recipe names"},
        "files": _TEXTS | {"description": "sha256 of each weights and config file, as in records"},
    },
}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A recipe of accel",
    "type": "object",
    "required": ["schema", "accel", "recipe"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": VERSION},
        "accel": {"type": "string", "description": "version that wrote the file"},
        "label": {"type": "string"},
        "recipe": {
            "type": "object",
            "additionalProperties": False,
            "properties": dict.fromkeys(AXES, _METHOD),
        },
        "artefacts": {"type": "object", "additionalProperties": _FILE},
        "files": {"type": "object", "additionalProperties": _FILE},
        "model": _MODEL,
        "suite": {
            "type": "array",
            "items": _WORD,
            "description": "words that open the suite: suite=<name> suite.<setting>=<value>",
        },
        "samples": _SAMPLES | {"description": "the first images, which accel verify makes again"},
        "measured": {"type": "object", "description": "what records say of the recipe; see docs/deploy.md"},
        "sha256": _SHA256 | {"description": "of all the rest"},
    },
}
_TYPES = {"object": dict, "string": str, "integer": int, "array": list}


def check(content: Mapping[str, Any], path: Any) -> None:
    """ConfigError, which says all that is wrong, unless `content` is of this schema and as it says."""
    version = content.get("schema")
    if version != VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > VERSION
        remedy = "upgrade accel" if newer else "write it again with recipe.save(folder)"
        raise ConfigError(
            f"{path} is of schema {version!r}, written by accel {content.get('accel', '(not said)')}; this accel reads "
            f"schema {VERSION}: {remedy}."
        )
    with Refusals() as refusals:
        _check(content, SCHEMA, "", str(path), refusals)


def _check(value: Any, schema: Mapping[str, Any], where: str, path: str, refusals: Refusals) -> None:
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, bool))):
        refusals.add(ConfigError(f"{path}: {where or 'it'} is {value!r}; allowed: {_said(kind)}."))
        return
    if "pattern" in schema and not re.search(schema["pattern"], value):
        refusals.add(ConfigError(f"{path}: {where} is {value!r}; allowed: text like {schema['pattern']}."))
    for i, inner in enumerate(value if kind == "array" else ()):
        _check(inner, schema["items"], f"{where}[{i}]", path, refusals)
    if kind != "object":
        return
    for name in schema.get("required", ()):
        if name not in value:
            refusals.add(ConfigError(f"{path}: {where or 'it'} has no {name}; it needs one."))
    own, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, inner in value.items():
        at = f"{where}.{name}" if where else str(name)
        if name in own:
            _check(inner, own[name], at, path, refusals)
        elif more is False:
            refusals.add(ConfigError(f"{path}: {unknown('entry', at, [f'{where}.{k}'.lstrip('.') for k in own])}"))
        elif isinstance(more, Mapping):
            _check(inner, more, at, path, refusals)


def _said(kind: str) -> str:
    return {"object": "`name: value` lines", "string": "text", "integer": "an integer", "array": "a list"}[kind]
