"""Reuse or forecast the outputs of single modules over steps: what layer-wise caches of UNets and transformers share.

A plan says for each solver step which of the cached modules run. One that runs stores its output; one that does not
returns its last output, or with `order` m > 0 a Taylor forecast of it (Liu et al. 2025, "From Reusing to Forecasting:
Accelerating Diffusion Models with TaylorSeers", arXiv:2503.06923, eq. 5-8), in solver steps k since the last run:

    F(k) = sum_{j <= m} D_j k^j / j!,   D_0 = F,   D_j = (D_{j-1} - D_{j-1} of the run before) / (steps between them)

with as many orders as there were runs. What is kept and what is returned are copies, for others may write into a
module's output (FreeU, adapters). Modules keep what they store for each stage of a step and each part of the
batch; where rows are missing, the module runs. Parameters and modules are never changed: only the instance attribute
`forward` of the cached modules is shadowed while the recipe is attached.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from accel.caching.parts import share
from accel.caching.rows import Kept, parted, rows_of, selected
from accel.core.denoiser import Denoise, Inputs, Node, replaced_forward
from accel.core.method import Method
from accel.errors import IncompatibleError

Key = tuple[int, int, str]  # stage within the step, call within the stage, part of the batch


class ModuleCache(Method):
    """Base of caches whose plan names modules. `order` is that of the forecast (0: reuse). With a `weight` w the
    forecast is F + w (F - F of the run before), whatever lies between, in the place of a Taylor series of `order` 1."""

    uneven: ClassVar[bool] = True
    order: int = 0
    weight: float | None = None

    @abstractmethod
    def modules(self, net: nn.Module, name: str) -> list[str]:
        """Names of the modules of `net` that are cached; IncompatibleError if it has none of the kind."""

    @abstractmethod
    def runs(self, modules: Sequence[str], num_steps: int) -> list[frozenset[str]]:
        """The cached modules that run at each step; what has not run before runs whatever the plan says."""

    def shared(self, parts: list[Kept]) -> list[Kept]:
        """What is kept of each part of a batch, of what a module gave for it."""
        return parts

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            names = self.modules(net, name)
            if recipe.sampler and recipe.sampler.steps > 1:
                self.runs(names, recipe.sampler.steps)

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock, names = node.clock, self.modules(node.net, node.name)
        node.cached_share = share(node.net, names)
        plan: list[frozenset[str]] = []
        histories: dict[tuple[Key, str], list[History]] = {}  # one for each time that a forward calls the module
        for state in (plan, histories):
            clock.on_reset(state.clear)
        node.state.append(histories)
        cells = {name: _Cell() for name in names}
        for name, cell in cells.items():
            module = node.net.get_submodule(name)
            node.undo.enter_context(replaced_forward(module, _cached(cell, module.forward)))

        def kept_outputs(name: str, keys: list[Key], inputs: Inputs) -> list[Any] | None:
            found = [histories.get((key, name), ()) for key in keys]
            outputs = []
            for same in zip(*found, strict=False):
                value = rows_of([history.at(clock.step) for history in same], inputs)
                if value is None:
                    return None
                outputs.append(same[0].shape.restored([t.clone() for t in value]))
            return outputs or None

        def keep(name: str, keys: list[Key], inputs: Inputs) -> None:
            for call, output in enumerate(cells[name].seen):
                shape, tensors = Shape.of(output)
                parts = self.shared(parted([t.clone() for t in tensors], inputs, f"module {name}"))
                for key, own in zip(keys, parts, strict=True):
                    calls = histories.setdefault((key, name), [])
                    if call == len(calls):
                        calls.append(History(shape, weight=self.weight))
                    calls[call].add(clock.step, own, self.order)

        def denoise(inputs: Inputs) -> torch.Tensor:
            if not plan:
                # Samplers may evaluate beside their steps, each time as a trajectory of one step.
                plan.extend(self.runs(names, clock.num_steps) if clock.num_steps > 1 else [frozenset(names)])
            keys = [(clock.slot, clock.call, part) for part in inputs.parts]
            for name in names:
                if name not in plan[clock.step]:
                    cells[name].given = kept_outputs(name, keys, inputs)
            reused = any(cell.given for cell in cells.values())
            before, node.mode = node.mode, "partial" if reused else node.mode
            try:
                prediction = inner(inputs)
                if not any(cell.calls for cell in cells.values()):
                    raise IncompatibleError(
                        f"an evaluation of {node.name} called none of the {len(names)} cached modules, such as "
                        f"{names[0]}, so nothing would be cached; use another cache.match, or cache=none."
                    )
                for name in names:
                    keep(name, keys, inputs)
            finally:
                node.mode = before
                for cell in cells.values():
                    cell.clear()
            return prediction

        return denoise


@dataclass
class _Cell:
    """One module in one evaluation: outputs that it is to return, and those of the runs that it did.

    A cell for each module, so that what is compiled around one does not depend on the others.
    """

    given: list[Any] | None = None
    seen: list[Any] = field(default_factory=list)
    calls: int = 0

    def clear(self) -> None:
        self.given, self.calls = None, 0
        self.seen.clear()


def _cached(cell: _Cell, forward: Callable[..., Any]) -> Callable[..., Any]:
    def cached(*args: Any, **kwargs: Any) -> Any:
        cell.calls += 1
        if cell.given is not None and cell.calls <= len(cell.given):
            return cell.given[cell.calls - 1]
        output = forward(*args, **kwargs)
        if cell.given is None:
            cell.seen.append(output)
        return output

    return cached


@dataclass
class History:
    """Taylor factors of one module's output, of the same rows, up to the step of its last run."""

    shape: Shape
    step: int = -1
    rows: int | None = None
    members: tuple[int, ...] | None = None
    weight: float | None = None
    factors: list[tuple[torch.Tensor, ...]] = field(default_factory=list)  # D_0, D_1, ...

    def add(self, step: int, output: Kept, order: int) -> None:
        """Take the output of a run at `step`; the order grows by one with each run, up to `order`."""
        before = self._of(output) if step > self.step >= 0 else [()] * len(output.tensors)
        pairs = zip(output.tensors, before, strict=True)
        gap = step - self.step if self.weight is None else 1
        new = [differences(tensor, old, gap, order) for tensor, old in pairs]
        self.step, self.rows, self.members = step, output.samples, output.members
        self.factors = list(zip(*new, strict=True))

    def _of(self, output: Kept) -> list[tuple[torch.Tensor, ...]]:
        """D_0, D_1, ... of each tensor, for the rows of `output`; none where some of them were not in the last run."""
        kept = (Kept(factor, self.members, self.rows) for factor in self.factors)
        found = [selected(own, output.members, output.samples) for own in kept]
        return [()] * len(output.tensors) if None in found else list(zip(*(one.tensors for one in found), strict=True))

    def at(self, step: int) -> Kept:
        """The forecast for `step`."""
        k = step - self.step if self.weight is None else self.weight
        forecast = tuple(taylor(own, k) for own in zip(*self.factors, strict=True))
        return Kept(forecast, self.members, self.rows)


def taylor(factors: Sequence[torch.Tensor], k: float) -> torch.Tensor:
    """F(k) = sum_j D_j k^j / j!, k solver steps after the run that left the factors D_0, D_1, ..., of one shape."""
    value = factors[0]
    for j, factor in enumerate(factors[1:], 1):
        value = value + factor * (k**j / math.factorial(j))
    return value


def differences(value: torch.Tensor, before: Sequence[torch.Tensor], gap: int, order: int) -> list[torch.Tensor]:
    """[D_0, D_1, ...]: D_0 = value, D_j = (D_{j-1} - D_{j-1} of the run before) / gap, j up to `order`.

    before: D_0, D_1, ... of the run before, `gap` solver steps ago; there is one order more than it has.
    """
    found = [value]
    for old in before[:order]:
        found.append((found[-1] - old) / gap)
    return found


class _Tensor:
    """Stands for a tensor in the nest of a `Shape`."""


@dataclass(frozen=True)
class Shape:
    """How tensors nest in a module's output: a tensor, or tuples, lists and output objects of them.

    What is no tensor (the text that a last block does not return, a number) is kept as it is.
    """

    nest: Any

    @classmethod
    def of(cls, output: Any) -> tuple[Shape, list[torch.Tensor]]:
        tensors: list[torch.Tensor] = []

        def walk(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                tensors.append(value)
                return _Tensor
            return _rebuilt(value, walk)

        return cls(walk(output)), tensors

    def restored(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The same nest around other tensors."""
        left: Iterator[torch.Tensor] = iter(tensors)

        def build(nest: Any) -> Any:
            return next(left) if nest is _Tensor else _rebuilt(nest, build)

        return build(self.nest)


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    # `value` with each of its entries changed, if it has any.
    if isinstance(value, dict):  # diffusers' output objects are dicts, too
        return type(value)(**{k: change(v) for k, v in value.items()})
    return tuple(change(v) for v in value) if isinstance(value, (list, tuple)) else value
