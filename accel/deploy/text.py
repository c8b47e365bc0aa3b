"""YAML of recipe files: plain data and nothing else, each name once, no references; and the digest of what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from accel import records
from accel.errors import ConfigError

LARGEST = 2**24  # bytes of a recipe.yaml; what is larger belongs into an artefact


class _Loader(yaml.SafeLoader):
    """No references: a short file could stand for a huge one. No name twice: the first would be lost silently."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it has a reference (*{self.peek_event().anchor})")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [str(key.value) for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"it has {twice!r} twice in one place")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(path: Path) -> dict[str, Any]:
    """What a YAML file says; ConfigError if it cannot be read, or is no mapping."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} has {path.stat().st_size:,} bytes; allowed: {LARGEST:,}.")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}. Give the folder of a recipe.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no recipe file: {' '.join(str(error).split())[:300]}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no recipe file: it holds no `name: value` lines.")
    return content


def text_of(content: dict[str, Any]) -> str:
    """`content` as YAML, in its own order; short lists and mappings on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def digest(content: dict[str, Any]) -> str:
    """sha256 of what a file says, its own `sha256` left out; layout and comments are free."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    try:
        return records.digest(records.describe(body), 64)
    except TypeError as error:  # a date, a set: YAML has more kinds of values than a recipe
        raise ConfigError(f"a recipe file holds numbers, text, lists and names; {error}.") from error
