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
from typing import Any

import torch
from torch import nn

from accel.caching.rows import Kept, rows_of
from accel.core.denoiser import Denoise, Inputs, Node, replaced_forward
from accel.core.method import Method

Key = tuple[int, int, str]  # stage within the step, call within the stage, part of the batch


class ModuleCache(Method):
    """Base of caches whose plan names modules. `order` is that of the forecast (0: reuse)."""

    order: int = 0

    @abstractmethod
    def modules(self, net: nn.Module, name: str) -> list[str]:
        """Names of the modules of `net` that are cached; IncompatibleError if it has none of the kind."""

    @abstractmethod
    def runs(self, modules: Sequence[str], num_steps: int) -> list[frozenset[str]]:
        """The cached modules that run at each step; what has not run before runs whatever the plan says."""

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            names = self.modules(net, name)
            if recipe.sampler and recipe.sampler.steps > 1:
                self.runs(names, recipe.sampler.steps)

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock, names = node.clock, self.modules(node.net, node.name)
        now, plan, histories = _Now(), [], {}
        for state in (plan, histories):
            clock.on_reset(state.clear)
        for name in names:
            module = node.net.get_submodule(name)
            node.undo.enter_context(replaced_forward(module, _cached(name, module.forward, now)))

        def denoise(inputs: Inputs) -> torch.Tensor:
            if not plan:
                # Samplers may evaluate beside their steps, each time as a trajectory of one step.
                plan.extend(self.runs(names, clock.num_steps) if clock.num_steps > 1 else [frozenset(names)])
            keys = [(clock.slot, clock.call, part) for part in inputs.parts]
            for name in names:
                if name not in plan[clock.step]:
                    kept = [histories[k, name] for k in keys if (k, name) in histories]
                    value = rows_of([h.at(clock.step) for h in kept], inputs) if len(kept) == len(keys) else None
                    if value is not None:
                        now.given[name] = kept[0].shape.restored([t.clone() for t in value])
            before, node.mode = node.mode, "partial" if now.given else node.mode
            try:
                prediction = inner(inputs)
                for name, output in now.seen.items():
                    shape, tensors = Shape.of(output)
                    parts = zip(*(t.clone().chunk(len(keys)) for t in tensors), strict=True)
                    for key, own in zip(keys, parts, strict=True):
                        history = histories.setdefault((key, name), History(shape))
                        history.add(clock.step, Kept(own, inputs.members), self.order)
            finally:
                node.mode = before
                now.clear()
            return prediction

        return denoise


@dataclass
class _Now:
    """One evaluation: outputs that modules are to return, and those of the modules that ran."""

    given: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)

    def clear(self) -> None:
        self.given.clear()
        self.seen.clear()


def _cached(name: str, forward: Callable[..., Any], now: _Now) -> Callable[..., Any]:
    def cached(*args: Any, **kwargs: Any) -> Any:
        if name in now.given:
            return now.given[name]
        now.seen[name] = output = forward(*args, **kwargs)
        return output

    return cached


@dataclass
class History:
    """Taylor factors of one module's output, of the same rows, up to the step of its last run."""

    shape: Shape
    step: int = -1
    members: tuple[int, ...] | None = None
    factors: list[tuple[torch.Tensor, ...]] = field(default_factory=list)  # D_0, D_1, ...

    def add(self, step: int, output: Kept, order: int) -> None:
        """Take the output of a run at `step`; the order grows by one with each run, up to `order`."""
        follows = output.members == self.members and step > self.step >= 0
        before = zip(*self.factors, strict=True) if follows else [()] * len(output.tensors)
        pairs = zip(output.tensors, before, strict=True)
        new = [differences(tensor, old, step - self.step, order) for tensor, old in pairs]
        self.step, self.members, self.factors = step, output.members, list(zip(*new, strict=True))

    def at(self, step: int) -> Kept:
        """The forecast for `step`."""
        return Kept(tuple(taylor(own, step - self.step) for own in zip(*self.factors, strict=True)), self.members)


def taylor(factors: Sequence[torch.Tensor], k: int) -> torch.Tensor:
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


ABSENT = "absent"  # in a Shape


@dataclass(frozen=True)
class Shape:
    """How tensors nest in a module's output: None for a tensor, ABSENT for no value, or tuples of such."""

    nest: Any

    @classmethod
    def of(cls, output: Any) -> tuple[Shape, list[torch.Tensor]]:
        tensors: list[torch.Tensor] = []

        def walk(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return tuple(walk(v) for v in value)
            if value is None:  # such as the text stream after the last block of Stable Diffusion 3
                return ABSENT
            tensors.append(value)
            return None

        return cls(walk(output)), tensors

    def restored(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The same nest around other tensors."""
        left: Iterator[torch.Tensor] = iter(tensors)

        def build(nest: Any) -> Any:
            if nest is None or nest == ABSENT:
                return next(left) if nest is None else None
            return tuple(build(n) for n in nest)

        return build(self.nest)
