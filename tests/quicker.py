"""What diffusers and Hydra look up again and again, looked up once: what they find is the same, and tests ask for it
many thousands of times."""

from __future__ import annotations

import copy
import inspect
from functools import lru_cache
from pathlib import Path
from types import MethodType, ModuleType

import torch
from diffusers import configuration_utils
from diffusers.hooks import group_offloading
from diffusers.models import attention_processor, modeling_utils
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from torch.compiler import is_compiling

_keys = lru_cache(maxsize=None)(configuration_utils.ConfigMixin._get_init_keys)
_function = lru_cache(maxsize=None)(inspect.signature)
_method = lru_cache(maxsize=None)(lambda function: inspect.signature(MethodType(function, function)))
_dtype, _offloaded = modeling_utils.get_parameter_dtype, group_offloading._get_top_level_group_offload_hook


def install() -> None:
    """Put these into diffusers and Hydra, for this process."""
    # What the constructors of a dozen schedulers take is asked whenever one is made, and what a processor of attention
    # takes in its every call.
    configuration_utils.ConfigMixin._get_init_keys = staticmethod(lambda cls: set(_keys(cls)))
    for module in (configuration_utils, attention_processor):
        module.inspect = ModuleType(inspect.__name__)
        vars(module.inspect).update(vars(inspect) | {"signature": _signature})
    # Whether any module of a network has a hook that says its dtype or its device is asked in every evaluation: a
    # fourth of what a tiny network takes.
    modeling_utils.get_parameter_dtype = _dtype_of
    group_offloading._get_top_level_group_offload_hook = _offload_hook_of
    # And twenty files are read for every composition, a third of its time.
    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        source.load_config = _once(source.load_config)


def _signature(made):
    if is_compiling():  # what torch traces is diffusers' own code
        return inspect.signature(made)
    return _method(made.__func__) if isinstance(made, MethodType) else _function(made)


def _hooked(net: torch.nn.Module) -> bool:
    left = [net]
    while left:
        module = left.pop()
        if "_diffusers_hook" in module.__dict__:
            return True
        left += [child for child in module._modules.values() if child is not None]
    return False


def _dtype_of(net: torch.nn.Module) -> torch.dtype:
    """That of the first parameter; where a module has a hook or is kept in float32, what diffusers itself finds."""
    if is_compiling():
        return _dtype(net)
    plain = not getattr(net, "_keep_in_fp32_modules", None) and not _hooked(net)
    first = next(net.parameters(), None) if plain else None
    return first.dtype if first is not None and first.is_floating_point() else _dtype(net)


def _offload_hook_of(net: torch.nn.Module):
    return _offloaded(net) if is_compiling() or _hooked(net) else None


def _once(load):
    """A source's `load_config`, which reads a file again when it has changed; what is in a package stays."""
    kept = {}

    def read(self, config_path):
        path = Path(self.path.removeprefix("pkg://"), self._normalize_file_name(config_path))
        written = path.stat() if path.is_file() else None
        key = self.provider, path, written and (written.st_mtime_ns, written.st_size, written.st_ino)
        if key not in kept:
            kept[key] = load(self, config_path)
        return copy.deepcopy(kept[key])

    return read
