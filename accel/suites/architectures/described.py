"""What an architecture is: the published configuration of every part of its pipeline, without weights.

Those that ship are files of `configs`, each with its source; parts that several share (text encoders) are in
`encoders.json`, by name. A folder of one's own needs model_index.json and each part's config.json.
"""

from __future__ import annotations

import atexit
import copy
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.errors import ConfigError
from accel.suites.hub import files as hub_files
from accel.suites.hub import index as hub_index

HERE = Path(__file__).parent / "configs"
SHARED = "encoders"
# In configs of denoisers and text encoders: how many layers there are, and lists of one entry a layer.
LAYERS = ("num_layers", "num_single_layers", "num_hidden_layers", "layers_per_block", "transformer_layers_per_block")
LAYERS += ("num_mmdit_layers", "num_single_dit_layers", "n_layers", "depth")
BY_LAYER = ("layer_types",)
CELL = 16  # of which sides of smaller images are multiples, in pixels


def names() -> list[str]:
    """The architectures that ship."""
    return sorted(path.stem for path in HERE.glob("*.json") if path.stem != SHARED)


@lru_cache(maxsize=32)
def described(arch: str) -> dict[str, Any]:
    """`model_index` and the config of each part by its name; of those that ship also `about`, `source` and what is
    usual: `dtype`, `height`, `width`, `frames`. ConfigError for one that is neither known nor a folder."""
    if arch in names():
        shared = json.loads((HERE / f"{SHARED}.json").read_text())
        found = json.loads((HERE / f"{arch}.json").read_text())
        parts = found["model_index"].keys() & found.keys()
        return found | {part: shared[found[part]] for part in parts if isinstance(found[part], str)}
    folder = Path(arch).expanduser()
    if not arch or not folder.is_dir():
        raise ConfigError(
            f"suite.arch is {arch!r}; allowed: {', '.join(names())}, or a folder with model_index.json and the "
            "config.json of each part."
        )
    index = hub_index.read(folder)
    parts = hub_index.components(folder).items()
    own = {part: hub_files.config_of(folder, part) for part, (_, cls) in parts if configured(part, cls)}
    return {"model_index": index} | own


def configured(part: str, cls: str) -> bool:
    """Whether a part is made of its config: networks and the scheduler are, tokenizers have files of their own."""
    return part == "scheduler" or hub_files.is_network(cls)


@lru_cache(maxsize=32)
def folder_of(arch: str, layers: float = 1.0, cells: float = 1.0) -> Path:
    """A folder with the configs of an architecture, for this process: that of a pipeline, without weights and
    tokenizers. `layers`: the share of its denoiser's and text encoders' layers; `cells`: of its `sample_size`."""
    found = described(arch)
    folder = _root() / f"{len(list(_root().iterdir()))}" / Path(arch).name
    folder.mkdir(parents=True)
    _write(folder / hub_index.FILE, found["model_index"])
    for part, (_, cls) in hub_index.components(folder).items():
        if not configured(part, cls):
            continue
        if part not in found:
            raise ConfigError(f"suite.arch={arch} has no config of its {part}, a {cls}; add {part}/config.json.")
        place = folder / part
        config = found[part] if part in ("scheduler", "vae") else scaled(found[part], layers, cells)
        hub_files.check_config(folder, part, config)
        if (own := config.get("_class_name", cls)) != cls:
            raise ConfigError(f"suite.arch={arch} has {part} as {cls}, and its config is that of {own}.")
        place.mkdir()
        _write(place / ("scheduler_config.json" if part == "scheduler" else "config.json"), config)
    return folder


def scaled(config: Mapping[str, Any], layers: float, cells: float) -> dict[str, Any]:
    """A config with a share of its layers, at least one of each sort, and of its sample's side, a multiple of 8 where
    it was one."""
    found = copy.deepcopy(dict(config))
    for key, value in found.items():
        if isinstance(value, dict):
            found[key] = scaled(value, layers, cells)
        elif key in LAYERS:
            found[key] = [fewer(n, layers) for n in value] if isinstance(value, list) else fewer(value, layers)
        elif key in BY_LAYER and isinstance(value, list):
            found[key] = value[: fewer(len(value), layers)]
        elif key == "sample_size" and value is not None:
            found[key] = [smaller(n, cells) for n in value] if isinstance(value, list) else smaller(value, cells)
    return found


def fewer(count: int, share: float) -> int:
    """The nearest whole number to share * count, at least 1."""
    return max(1, round(count * share))


def smaller(side: int, share: float) -> int:
    """The nearest to share * side that has its factors of 2, up to 8 (a side of at most 8: any), at least one."""
    step = math.gcd(side, 8) if side > 8 else 1
    return step * fewer(side // step, share)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


@lru_cache(maxsize=1)
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="accel-arch-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root
