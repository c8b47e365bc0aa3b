"""Blocks that do not run at some steps, by a table: AutoDiffusion's architectures, one for each step.

Li et al. 2023, "AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model
Acceleration" (arXiv:2309.10438), sec. 3.2. A *unit* is a residual block or an attention (a transformer of a conditional
UNet, a block of a DiT). One that is removed is replaced by its residual path: the identity for an attention, the
shortcut (a 1 x 1 convolution where channels change) for a residual block. Residual blocks that resample stay, as do
stem, output and embeddings. With `mode` = `reuse` a unit returns its last output instead (`ModuleCache`).

`table[k]` holds the numbers of the units that do not run at solver step k, in the order of `units(net)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.caching.module_cache import ModuleCache, replaced_forward
from accel.caching.parts import layers
from accel.core.denoiser import Denoise, Inputs, Node
from accel.errors import ConfigError, IncompatibleError, check_int, unknown

MODES = ("remove", "reuse")


def _shortcut(block: nn.Module, x: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    return (x if block.conv_shortcut is None else block.conv_shortcut(x)) / block.output_scale_factor


def _past_attention(block: nn.Module, x: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    return x / block.rescale_output_factor


def _past_transformer(block: nn.Module, x: torch.Tensor, kwargs: dict[str, Any]) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=x) if kwargs.get("return_dict", True) else (x,)


# Class of a unit: what its residual path returns for its first input.
RESIDUALS: dict[str, Callable[[nn.Module, torch.Tensor, dict[str, Any]], Any]] = {
    "ResnetBlock2D": _shortcut,
    "Attention": _past_attention,
    "Transformer2DModel": _past_transformer,
    "BasicTransformerBlock": lambda block, x, kwargs: x,
}


def units(net: nn.Module) -> list[str]:
    """Names of the units of a network, in its own order; a unit is listed under its number."""

    def leaves_shape(module: nn.Module) -> bool:
        return not (getattr(module, "up", False) or getattr(module, "down", False))

    there = ((name, net.get_submodule(name)) for name in layers(net))
    return [name for name, m in there if type(m).__name__ in RESIDUALS and leaves_shape(m)]


@dataclass(frozen=True)
class BlockTable(ModuleCache):
    """`table`: for each solver step the numbers of the units that do not run; `mode`: remove | reuse."""

    table: Sequence[Sequence[int]] = ((),)
    mode: str = "remove"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("cache.mode", str(self.mode), MODES)
        for row in self.table:
            for unit in row:
                check_int("cache.table", unit, 0)
        object.__setattr__(self, "table", tuple(tuple(sorted(set(row))) for row in self.table))
        if not self.table:
            raise ConfigError("cache.table is empty; allowed: one list of unit numbers for each step.")
        if self.mode == "reuse" and self.table[0]:
            raise ConfigError(
                f"cache.table begins with {list(self.table[0])}, but the first step has nothing to reuse; let it begin "
                "with [], or use cache.mode=remove."
            )

    @property
    def label(self) -> str:
        rows = ";".join(",".join(map(str, row)) for row in self.table)
        return f"blocks({self.mode} {rows})"

    def modules(self, net: nn.Module, name: str) -> list[str]:
        there = units(net)
        if not there:
            raise IncompatibleError(
                f"{name} ({type(net).__name__}) has no residual blocks or attentions that could be left out; use "
                "cache=none."
            )
        if (largest := max((u for row in self.table for u in row), default=0)) >= len(there):
            raise ConfigError(
                f"cache.table names unit {largest}, but {name!r} has {len(there)}; allowed: 0..{len(there) - 1}."
            )
        return there

    def runs(self, modules: Sequence[str], num_steps: int) -> list[frozenset[str]]:
        if len(self.table) != num_steps:
            raise ConfigError(
                f"cache.table has {len(self.table)} steps, but the sampler has {num_steps}; give one list for each."
            )
        return [remaining(modules, row) for row in self.table]

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        if self.mode == "reuse":
            return super().attach(node, inner)
        clock, names, absent = node.clock, self.modules(node.net, node.name), set()
        plan: list[frozenset[str]] = []
        clock.on_reset(plan.clear)
        for name in names:
            module = node.net.get_submodule(name)
            node.undo.enter_context(replaced_forward(module, _passable(name, module, module.forward, absent)))

        def denoise(inputs: Inputs) -> torch.Tensor:
            if not plan:
                # Samplers may evaluate beside their steps, each time as a trajectory of one step.
                plan.extend(self.runs(names, clock.num_steps) if clock.num_steps > 1 else [frozenset(names)])
            absent.update(set(names) - plan[clock.step])
            before, node.mode = node.mode, "partial" if absent else node.mode
            try:
                return inner(inputs)
            finally:
                node.mode = before
                absent.clear()

        return denoise


def remaining(there: Sequence[str], row: Collection[int]) -> frozenset[str]:
    """The units that run at a step: all of `there` but those whose numbers the table's `row` holds."""
    return frozenset(unit for number, unit in enumerate(there) if number not in row)


def _passable(name: str, module: nn.Module, forward: Callable[..., Any], absent: set[str]) -> Callable[..., Any]:
    past = RESIDUALS[type(module).__name__]

    def passable(*args: Any, **kwargs: Any) -> Any:
        if name not in absent:
            return forward(*args, **kwargs)
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_tensor"))
        return past(module, x, kwargs)

    return passable
