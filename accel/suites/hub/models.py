"""Loading and preparing the networks of a pipeline, and counting prompts that its text encoders cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.core import compiling
from accel.core.denoiser import denoiser_name
from accel.digests import stored
from accel.errors import ConfigError, Refusals, check_installed, needs
from accel.suites.base import loading
from accel.suites.hub import files as hub_files
from accel.suites.hub import gguf as hub_gguf
from accel.suites.hub import index as hub_index
from accel.suites.hub import quantised as hub_quantised
from accel.suites.hub.kinds import Kind


def memory() -> dict[str, bool]:
    """Without the package accelerate, networks are first made at random and then filled: twice the memory."""
    return {"low_cpu_mem_usage": find_spec("accelerate") is not None}


def quiet() -> None:
    """Nothing from transformers but errors: truncated prompts are counted here, and text encoders load in seconds."""
    logging = needs("transformers.utils.logging", "bench", "a pipeline with text encoders")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def prepared(pipe: Any, vae_slicing: bool, channels_last: bool, compiled: bool) -> Any:
    """`pipe` with settings that change its speed and memory, and its images by rounding only."""
    net = getattr(pipe, denoiser_name(pipe))
    vae = getattr(pipe, "vae", None)
    if vae_slicing and vae is None:
        raise ConfigError(f"{type(pipe).__name__} has no VAE; use suite.vae_slicing=false.")
    if vae_slicing:
        vae.enable_slicing()
    if channels_last:
        for part in (net, vae):
            if part is not None:
                part.to(memory_format=torch.channels_last)
    if compiled:
        compile_blocks(net)
    return pipe


def compile_blocks(net: nn.Module, **options: Any) -> int:
    """`compiling.compile_blocks`, ConfigError for a network without such blocks. Returns their number."""
    if not (blocks := compiling.compile_blocks(net, **options)):
        raise ConfigError(f"{type(net).__name__} has no repeated blocks to compile; use suite.compile=false.")
    return len(blocks)


def denoiser(folder: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    """The denoiser alone of another pipeline folder."""
    name = hub_files.denoiser_of(folder)
    return network(folder, name, *hub_index.components(folder)[name], dtype, variant)


def networks(
    folder: Path, dtype: torch.dtype, variant: str | None, gguf: str | None = None, without: str | None = None
) -> dict[str, nn.Module]:
    """Every network of a pipeline folder but `without`, the denoiser with the weights of the file `gguf` if there is
    one.

    ConfigError for one that cannot be loaded, or whose weights are not those of its class and config: what a file lacks
    would have random values, what it has too much would be left out.
    """
    found = {} if gguf is None else {hub_files.denoiser_of(folder): hub_gguf.network(folder, Path(gguf), dtype)}
    return found | {
        name: network(folder, name, library, cls, dtype, variant)
        for name, (library, cls) in hub_index.components(folder).items()
        if hub_files.is_network(cls) and name not in (*found, without)
    }


def network(folder: Path, name: str, library: str, cls: str, dtype: torch.dtype, variant: str | None) -> nn.Module:
    """The network in `folder`/`name`, whose class was checked, with all of its weights or ConfigError."""
    place = hub_files.place_of(folder, name)
    options = {"dtype" if library == "transformers" and _says_dtype() else "torch_dtype": dtype}
    quantised = hub_quantised.check_network(place, hub_files.config_of(folder, name))
    if hub_files.has_variant(folder, name, variant):
        options["variant"] = variant
    kind = getattr(import_module(library), cls)
    if library == "diffusers" and kind._keep_in_fp32_modules is not None:  # diffusers loads these with accelerate alone
        check_installed(("accelerate",), "hub", f"a {cls}, parts of which stay in float32,")
    with loading(place):
        found, info = kind.from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True, **options, **memory()
        )
    if quantised:  # what lies beside a tensor under its name holds the scales of it
        tensors = {*found.state_dict()}
        info["unexpected_keys"] = [key for key in map(str, info["unexpected_keys"]) if not _beside(key, tensors)]
    _check_weights(f"{place}: the weights", cls, found, info)
    return found


def _check_weights(where: str, cls: str, network: nn.Module, info: dict[str, Any]) -> None:
    """ConfigError unless the files hold every tensor of `network`, no others, and numbers alone.

    info: what from_pretrained says of its loading; both libraries leave out what a class declares it does without. A
    buffer that a class computes itself (position_ids of early text encoders) may lie in a file and is not read.
    """
    with Refusals() as refusals:
        if lacking := {*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])}:
            refusals.add(
                ConfigError(
                    f"{where} lack {len(lacking)} of the tensors of a {cls}, or have them in another shape: "
                    f"{_few(lacking)}. Download the model again."
                )
            )
        if extra := {*map(str, info["unexpected_keys"])} - {name for name, _ in network.named_buffers()}:
            refusals.add(
                ConfigError(
                    f"{where} hold {len(extra)} tensors that a {cls} of this config does not have: {_few(extra)}. "
                    "Weights and config are not of one model; download it again."
                )
            )
        if bad := [
            name
            for name, tensor in network.state_dict().items()
            if not all(map(_finite, stored(name, tensor).values()))
        ]:
            refusals.add(
                ConfigError(
                    f"{where} of {len(bad)} tensors are infinite or no numbers in {network.dtype}: {_few(bad)}. "
                    "Download the model again, or use suite.dtype=float32 if they are beyond a smaller type."
                )
            )


def _beside(key: str, tensors: Collection[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:count]) in tensors for count in range(1, len(parts)))


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return f"{', '.join(ordered[:3])}{' ...' if len(ordered) > 3 else ''}"


def _finite(tensor: torch.Tensor) -> bool:
    # Both ends show what is not finite, in one pass without a copy: nan is passed on.
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _says_dtype() -> bool:
    import transformers
    from packaging.version import Version

    return Version(transformers.__version__) >= Version("4.56")


def limits(pipe: Any, kind: Kind, max_sequence_length: int | None) -> dict[str, tuple[Any, int]]:
    """Each tokenizer of the pipeline, and the number of tokens beyond which it cuts a prompt."""
    found = {}
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4"):
        if (tokenizer := getattr(pipe, name, None)) is not None:
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
            clip = kind.sequence is None or "CLIP" in type(tokenizer).__name__
            limit = tokenizer.model_max_length if clip else max_sequence_length or kind.sequence
            found[name] = tokenizer, int(limit)
    return found


def longer(prompts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """How many prompts have more tokens than `limit`, special ones included."""
    return sum(len(ids) > limit for ids in tokenizer(list(prompts), truncation=False, verbose=False).input_ids)
