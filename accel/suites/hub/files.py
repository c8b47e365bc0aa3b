"""Where a pipeline's files are, which of them are loaded, and their hashes; pickles and foreign code are refused.

A model is a local folder or a hub id. A hub id is looked up in the local cache first; only if it is not wholly there
is it downloaded, without pickles. Nothing here imports code from a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.errors import ConfigError, unknown
from accel.files import file_hash
from accel.suites.hub.kinds import KINDS, Kind

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # never loaded, see hub_kinds
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<a>\w+))?(-\d+-of-\d+)?(\.(?P<b>\w+))?\.safetensors")
TEXT = (".json", ".txt", ".model")  # configs and tokenizers


@lru_cache(maxsize=16)
def folder_of(model: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The local folder of a model, whose files are all there. ConfigError if it is out of reach or unusable."""
    if not model:
        raise ConfigError("suite.model is empty; give a folder of a diffusers pipeline, or a hub id (owner/name).")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _from_hub(model, revision, variant)
    check(folder, variant)
    return folder


def index(folder: Path) -> dict[str, Any]:
    """The pipeline's model_index.json."""
    try:
        return json.loads((folder / "model_index.json").read_text())
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a diffusers pipeline folder (it has no model_index.json).") from None
    except ValueError as error:
        raise ConfigError(f"{folder / 'model_index.json'} is damaged: {error}.") from error


def kind_of(folder: Path) -> Kind:
    """The kind of the pipeline in `folder`; ConfigError for a class that suite hub does not know."""
    name = index(folder).get("_class_name")
    if not isinstance(name, str):
        raise ConfigError(f"{folder} names the pipeline class {name!r}, code of its own, which is never run.")
    if name not in KINDS:
        raise unknown(f"pipeline class of {folder}", name, KINDS)
    return KINDS[name]


def components(folder: Path) -> dict[str, tuple[str, str]]:
    """{name: (library, class)} of what is loaded. ConfigError for a component that is code of the checkpoint."""
    found = {}
    for name, value in index(folder).items():
        if name[0] == "_" or name in UNUSED or not isinstance(value, list) or None in value:
            continue
        library, cls = value
        if library not in ("diffusers", "transformers"):
            raise ConfigError(
                f"{folder}: component {name} is {library}.{cls}; allowed: classes of diffusers and transformers. Code "
                "of a checkpoint is never run."
            )
        found[name] = (library, cls)
    return found


def check(folder: Path, variant: str | None) -> None:
    """Raise ConfigError unless every component has safetensors weights of `variant` (or plain ones)."""
    kind_of(folder)
    for name, (_, cls) in components(folder).items():
        if not is_network(cls) or _weights(folder, name, variant):
            continue
        place = _place(folder, name)
        files = sorted(p.name for p in place.glob("*")) if place.is_dir() else []
        pickles = [f for f in files if f.endswith(PICKLES)]
        if pickles:
            raise ConfigError(
                f"{place} has only pickled weights ({', '.join(pickles)}), which can run code when loaded; needed: "
                f"safetensors. Convert them once: accel convert {folder}"
            )
        which = f"{variant} or plain " if variant else ""
        other = sorted({v for f in files if (v := _variant(f))})
        hint = f" There is the variant {' and '.join(other)}: use suite.variant={other[0]}." if other else ""
        raise ConfigError(f"{place} has no {which}safetensors weights.{hint or ' Download the model again.'}")


def denoiser_of(folder: Path) -> str:
    """Name of the denoiser's component."""
    return "unet" if "unet" in components(folder) else "transformer"


def is_network(cls: str) -> bool:
    return not re.search(r"Tokenizer|Scheduler|Processor|FeatureExtractor", cls)


def hashes(folder: Path, variant: str | None) -> dict[str, str]:
    """{file: sha256} of everything that decides what the pipeline generates: weights, configs, tokenizers."""
    files = {p for name, (_, cls) in components(folder).items() for p in _used(folder, name, cls, variant)}
    ordered = sorted(files | {folder / "model_index.json"})
    with ThreadPoolExecutor(4) as pool:
        return dict(zip((p.relative_to(folder).as_posix() for p in ordered), pool.map(file_hash, ordered), strict=True))


def config_of(folder: Path, component: str) -> dict[str, Any]:
    """The config of one component."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    try:
        return json.loads((_place(folder, component) / name).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_place(folder, component) / name} is missing or damaged: {error}.") from error


def _used(folder: Path, name: str, cls: str, variant: str | None) -> Iterator[Path]:
    place = _place(folder, name)
    if is_network(cls):
        yield from _weights(folder, name, variant)
        yield place / "config.json"
    elif place == folder:  # a flat checkpoint: its scheduler only
        yield folder / "scheduler_config.json"
    else:
        yield from (p for p in place.iterdir() if p.suffix in TEXT)


def _place(folder: Path, name: str) -> Path:
    # Early checkpoints (google/ddpm-cifar10-32) keep everything at the root.
    return folder / name if (folder / name).is_dir() else folder


def _weights(folder: Path, name: str, variant: str | None) -> list[Path]:
    """The weight files that are loaded: those of the variant, else the plain ones."""
    by_variant: dict[str | None, list[Path]] = {}
    for path in _place(folder, name).glob("*.safetensors"):
        if WEIGHTS.fullmatch(path.name):
            by_variant.setdefault(_variant(path.name), []).append(path)
    return by_variant.get(variant) or by_variant.get(None, [])


def _variant(file: str) -> str | None:
    match = WEIGHTS.fullmatch(file)
    return (match["a"] or match["b"]) if match else None


def _from_hub(model: str, revision: str | None, variant: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise ConfigError(f"there is no folder {model}; give a folder that exists, or a hub id (owner/name).")
    from huggingface_hub import snapshot_download

    lacking = None
    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        check(folder, variant)
        return folder
    except ConfigError as error:  # in the cache, but not wholly
        lacking = error
    except (OSError, ValueError):
        pass
    return _downloaded(model, revision, variant, lacking)


def _downloaded(model: str, revision: str | None, variant: str | None, lacking: ConfigError | None) -> Path:
    from diffusers import DiffusionPipeline

    absent = dict.fromkeys(("safety_checker", "feature_extractor"))
    try:
        return Path(
            DiffusionPipeline.download(model, revision=revision, variant=variant, use_safetensors=True, **absent)
        )
    except Exception as error:  # each layer below has errors of its own, and none is of interest but as text
        at, name = f" --revision {revision}" if revision else "", model.partition("/")[2]
        reason = " ".join(str(lacking or error).split())[:400]
        raise ConfigError(
            f"{model!r} is not a local folder, is not wholly in the local cache of the hub, and cannot be downloaded "
            f"({reason}). Fetch it where there is a network: hf download {model}{at} {_patterns(variant)} --local-dir "
            f"models/{name}, then suite.model=models/{name}. A gated model needs its licence accepted on its page and "
            "`hf auth login`."
        ) from error


def _patterns(variant: str | None) -> str:
    if variant:
        wanted = ("*.json", "*.txt", "*.model", f"*.{variant}*.safetensors")
        return " ".join(f"--include '{pattern}'" for pattern in wanted)
    return " ".join(f"--exclude '{pattern}'" for pattern in ("*.bin", "*.ckpt", "*.msgpack", "*.onnx*"))
