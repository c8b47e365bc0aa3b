"""Folders of networks that ship and say of themselves what they are: students and decoders, each beside its manifest.

<name>/...               as save_pretrained writes it, weights in float16
<name>/student.json, decoder.json   what it says (accel.core.student, accel.core.decoder)
<name>/MANIFEST.json     sha256 of every file
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from accel.suites.base import manifest, remedy, write_manifest


class Told(Protocol):
    def save(self, folder: Path) -> None: ...


def deciding(folder: Path, suite: str) -> dict[str, str]:
    """sha256 of the files of `folder` that change what its network makes, by its manifest."""
    listed = manifest(folder, remedy(suite))
    return {name: value for name, value in listed.items() if name.endswith((".safetensors", "config.json"))}


def save(own: Any, told: Told, folder: Path, dropped: Collection[str] = ("_name_or_path",)) -> None:
    """Write a pipeline or a network, in the dtype that it has, and what it says, in the place of what is there. The
    keys `dropped` are left out of configs: diffusers notes the place that a network was loaded from."""
    shutil.rmtree(folder, ignore_errors=True)
    own.save_pretrained(folder)
    named = ("model_index.json", "config.json", "*/config.json")
    for path in [path for name in named for path in folder.glob(name)]:
        config = {key: value for key, value in json.loads(path.read_text()).items() if key not in dropped}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    told.save(folder)
    write_manifest(folder)
