"""Where a pipeline's files are, which of them are loaded, and their hashes; pickles and foreign code are refused.

A model is a local folder or a hub id. A hub id is looked up in the local cache first; only if it is not wholly there
is it downloaded, without pickles. Nothing here imports code from a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.errors import ConfigError
from accel.files import file_hash
from accel.suites.hub.index import FILE, NEVER, components, read_object, short
from accel.suites.hub.kinds import UNUSED

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<a>\w+))?(-\d+-of-\d+)?(\.(?P<b>\w+))?\.safetensors")
ATTENTION = (None, "eager", "sdpa")  # of transformers, which need no other package
TEXT = (".json", ".txt", ".model", ".jinja")  # configs, tokenizers and their templates


@lru_cache(maxsize=16)
def folder_of(model: str, revision: str | None = None, variant: str | None = None, denoiser: bool = True) -> Path:
    """The local folder of a model, whose files are all there. ConfigError if it is out of reach or unusable.
    `denoiser`: whether the denoiser's weights are the folder's, too."""
    if not model:
        raise ConfigError("suite.model is empty; give a folder of a diffusers pipeline, or a hub id (owner/name).")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _from_hub(model, revision, variant, denoiser)
    check(folder, variant, denoiser)
    return folder


def check(folder: Path, variant: str | None, denoiser: bool = True) -> None:
    """Raise ConfigError unless every entry of the index is allowed and of the class that its config says, and every
    network has safetensors weights of `variant` (or plain ones)."""
    for name, (_, cls) in components(folder).items():
        if is_network(cls) or name == "scheduler":
            config = config_of(folder, name)
            check_config(folder, name, config)
            if (own := config.get("_class_name", cls)) != cls:  # transformers' configs name none
                raise ConfigError(
                    f"{folder / FILE} has {name} as {cls}, and the config in {place_of(folder, name)} is that of "
                    f"{short(own)}. Download the model again, or write the class of the config into {FILE}."
                )
        elif not (folder / name).is_dir():
            raise ConfigError(f"{folder / name} is missing. Download the model again.")
        elsewhere = not denoiser and name == denoiser_of(folder)
        if not is_network(cls) or elsewhere or _weights(folder, name, variant):
            continue
        place = place_of(folder, name)
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


def check_config(folder: Path, name: str, config: dict[str, Any]) -> None:
    """Refuse a config that would make a library fetch and run the kernels of somebody else."""
    left: list[Any] = [config]
    while left:
        for key, value in left.pop().items():
            if isinstance(value, dict):
                left.append(value)
            elif isinstance(value, list):
                left += [item for item in value if isinstance(item, dict)]
            elif "implementation" in str(key) and value not in ATTENTION:
                raise ConfigError(
                    f"the config of {folder / name} has {key} {value!r}, which may be code of its own; allowed: null, "
                    f"eager, sdpa. {NEVER}"
                )


def denoiser_of(folder: Path) -> str:
    """Name of the denoiser's component."""
    return "unet" if "unet" in components(folder) else "transformer"


def has_variant(folder: Path, name: str, variant: str | None) -> bool:
    """Whether there are weights of the variant, or the plain ones are loaded."""
    return variant is not None and any(_variant(path.name) == variant for path in _weights(folder, name, variant))


def is_network(cls: str) -> bool:
    return not re.search(r"Tokenizer|Scheduler|Processor|FeatureExtractor", cls)


def hashes(folder: Path, variant: str | None, denoiser: bool = True) -> dict[str, str]:
    """{file: sha256} of everything that decides what the pipeline generates: weights, configs, tokenizers."""
    files = {p for name, (_, cls) in components(folder).items() for p in _used(folder, name, cls, variant)}
    files -= set() if denoiser else {*_weights(folder, denoiser_of(folder), variant)}
    ordered = sorted(files | {folder / FILE})
    with ThreadPoolExecutor(4) as pool:
        return dict(zip((p.relative_to(folder).as_posix() for p in ordered), pool.map(file_hash, ordered), strict=True))


def config_of(folder: Path, component: str) -> dict[str, Any]:
    """The config of one component."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = place_of(folder, component) / name
    return read_object(path, f"{path} is missing. Download the model again.")


def _used(folder: Path, name: str, cls: str, variant: str | None) -> Iterator[Path]:
    place = place_of(folder, name)
    if is_network(cls):
        yield from _weights(folder, name, variant)
        yield place / "config.json"
    elif place == folder:  # a flat checkpoint: its scheduler only
        yield folder / "scheduler_config.json"
    else:
        yield from (p for p in place.iterdir() if p.suffix in TEXT)


def place_of(folder: Path, name: str) -> Path:
    """The folder of one component's files."""
    # Early checkpoints (google/ddpm-cifar10-32) keep everything at the root.
    return folder / name if (folder / name).is_dir() else folder


def _weights(folder: Path, name: str, variant: str | None) -> list[Path]:
    return weights_in(place_of(folder, name), variant)


def weights_in(place: Path, variant: str | None) -> list[Path]:
    """The weight files of a network's folder that are loaded: those of the variant, else the plain ones."""
    by_variant: dict[str | None, list[Path]] = {}
    for path in place.glob("*.safetensors"):
        if WEIGHTS.fullmatch(path.name):
            by_variant.setdefault(_variant(path.name), []).append(path)
    return by_variant.get(variant) or by_variant.get(None, [])


def _variant(file: str) -> str | None:
    match = WEIGHTS.fullmatch(file)
    return (match["a"] or match["b"]) if match else None


def is_id(source: str) -> bool:
    """Whether it has the form of a hub id, owner/name."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not source.startswith(".")


def _from_hub(model: str, revision: str | None, variant: str | None, denoiser: bool) -> Path:
    if not is_id(model):
        raise ConfigError(f"there is no folder {model}; give a folder that exists, or a hub id (owner/name).")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return _downloaded(model, revision, variant, None)
    if (folder / FILE).exists():
        components(folder)  # what is refused here is not to be had by downloading it again
    try:
        check(folder, variant, denoiser)
    except ConfigError as lacking:  # in the cache, but not wholly
        return _downloaded(model, revision, variant, lacking)
    return folder


def _downloaded(model: str, revision: str | None, variant: str | None, lacking: ConfigError | None) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    try:
        components(Path(hf_hub_download(model, FILE, revision=revision)).parent)
        return Path(
            DiffusionPipeline.download(
                model, revision=revision, variant=variant, use_safetensors=True, **dict.fromkeys(UNUSED)
            )
        )
    except ConfigError:
        raise
    except Exception as error:  # each layer below has errors of its own, and none is of interest but as text
        at, name = f" --revision {revision}" if revision else "", model.partition("/")[2]
        reason = " ".join(str(lacking or error).split())[:400]
        if "trust_remote_code" in reason:  # advice of the libraries that is never to be followed here
            raise ConfigError(f"{model!r} brings along code of its own. {NEVER}") from error
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
