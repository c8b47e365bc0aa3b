"""What diffusers and Hydra look up again and again, looked up once: what they find is the same, and tests ask for it
many thousands of times."""

from __future__ import annotations

import inspect
import pickle
from functools import lru_cache
from pathlib import Path
from types import MethodType, ModuleType

import omegaconf
import torch
from diffusers import configuration_utils
from diffusers.hooks import group_offloading
from diffusers.models import attention_processor, modeling_utils
from hydra._internal import defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from torch.compiler import is_compiling

_keys = lru_cache(maxsize=None)(configuration_utils.ConfigMixin._get_init_keys)
_function = lru_cache(maxsize=None)(inspect.signature)
_method = lru_cache(maxsize=None)(lambda function: inspect.signature(MethodType(function, function)))
_parsed = lru_cache(maxsize=4096)(omegaconf.base.parse)
_map = defaults_list._create_interpolation_map
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
    # And twenty files are read for every composition, half of its time with what follows. Hydra's scan for plugins
    # executes their modules again: only the classes that are registered after it are those that it uses.
    Plugins.instance()
    for scheme in ("file", "pkg", "structured"):
        source = SourcesRegistry.instance().resolve(scheme)
        source.load_config = _once(source.load_config)
    defaults_list._create_interpolation_map = _interpolation_map
    # So are the few references (`${...}`) of these files, by a parser in Python.
    for module in (omegaconf.base, omegaconf._utils):
        module.parse = _parsed


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
    """A source's `load_config`, which reads a file again when it has changed; what is in a package stays. Who asks gets
    an object of its own: from bytes in a sixth of the time that `deepcopy` takes."""
    kept = {}

    def read(self, config_path):
        path = Path(self.path.removeprefix("pkg://"), self._normalize_file_name(config_path))
        written = path.stat() if path.is_file() else None
        key = self.provider, path, written and (written.st_mtime_ns, written.st_size, written.st_ino)
        if key not in kept:
            kept[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(kept[key])

    return read


def _interpolation_map(overrides, defaults, self_added):
    """What names in a list of defaults refer to: made where there is such a name, not for every file."""
    if any(default.is_interpolation() for default in defaults if not default.is_self()):
        return _map(overrides, defaults, self_added)
    return None
