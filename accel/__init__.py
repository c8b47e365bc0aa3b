"""accel: a benchmark harness for diffusion sampling acceleration."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.core.recipe import Recipe, accelerate
    from accel.core.run import Run
    from accel.deploy.apply import apply
    from accel.deploy.recipe_file import load_recipe, save_recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "accelerate", "apply", "load_recipe", "save_recipe"]
_CORE, _FILE = "accel.core.recipe", "accel.deploy.recipe_file"
_HOMES = {"apply": "accel.deploy.apply", "Run": "accel.core.run", "load_recipe": _FILE, "save_recipe": _FILE}


def __getattr__(name: str) -> Any:
    """The public names and the rooms (`accel.samplers`), loaded when first asked for: torch and diffusers take seconds,
    and help, lists and typos need neither (PEP 562)."""
    if name in __all__:
        found = getattr(import_module(_HOMES.get(name, _CORE)), name)
        globals()[name] = found
        return found
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
