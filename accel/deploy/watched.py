"""Methods that decide by a threshold, and what they hold against it: watched while the method saves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from accel.caching.diffusers_hooks import DiffusersCache, blocks_of
from accel.core.denoiser import Denoise, Node
from accel.core.method import Method
from accel.core.recipe import Recipe
from accel.errors import ConfigError
from accel.guidance.adaptive import AdaptiveGuidance

NEVER = 2.0  # a cosine that is not reached
Watch = tuple[Recipe, list[float]]


@dataclass(frozen=True)
class Tunable:
    """A method with a threshold: the `axis` of the recipe and the `setting` by its name on a command line; `residual`
    in words; `rising`: whether it saves more at larger thresholds; `always`: one that is reached each time it is asked
    for; `at` sets it; `off` is the recipe without what it saves; `watch` that recipe with a list, which gets each
    residual while it runs."""

    axis: str
    setting: str
    value: float
    residual: str
    rising: bool
    always: float
    at: Callable[[float], Recipe]
    off: Recipe
    watch: Callable[[], Watch]


def tunable(recipe: Recipe) -> Tunable:
    """The method with a threshold in a recipe. ConfigError if it has none whose residual is measured here."""
    guidance, cache = recipe.guidance, recipe.cache
    if isinstance(guidance, AdaptiveGuidance):
        return Tunable(
            "guidance", "guidance.threshold", guidance.threshold,
            f"cosine of conditional and unconditional prediction ({guidance.space}), by step and sample", False, -1.0,
            lambda value: replace(recipe, guidance=replace(guidance, threshold=value)),
            replace(recipe, guidance=guidance.exact), lambda: _cosines(recipe, guidance),
        )  # fmt: skip
    if isinstance(cache, DiffusersCache) and cache.hook == "first_block":
        return Tunable(
            "cache", "cache.options.threshold", cache.options.get("threshold", 0.05),
            "relative change of what the first block adds, from step to step, by batch", True, 1e9,
            lambda value: replace(recipe, cache=replace(cache, options={**cache.options, "threshold": value})),
            replace(recipe, cache=None), lambda: _changes(recipe),
        )  # fmt: skip
    raise ConfigError(
        f"the recipe {recipe.label} has no method whose residual is held against a threshold; allowed: guidance=ag, "
        "cache=diffusers_first_block. (MagCache adds residuals up, and the thresholds of learned routers are of their "
        "scores: search=recipes varies those.)"
    )


def _cosines(recipe: Recipe, guidance: AdaptiveGuidance) -> Watch:
    found: list[float] = []

    class Watched(AdaptiveGuidance):
        def agreement(self, *given: Any) -> torch.Tensor:
            gamma = super().agreement(*given)
            found.extend(gamma.tolist())
            return gamma

    own = {f.name: getattr(guidance, f.name) for f in fields(guidance)}
    return replace(recipe, guidance=Watched(**own | {"threshold": NEVER})), found


def _changes(recipe: Recipe) -> Watch:
    watched = _FirstBlock()
    return replace(recipe, cache=watched), watched.found


class _FirstBlock(Method):
    """Attached in the place of the cache: the plain network, and mean |r_t - r_(t-1)| / mean |r_(t-1)| of what its
    first block adds, r, as diffusers' hook computes it."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self._last: dict[tuple[Any, ...], torch.Tensor] = {}

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock, block = node.clock, blocks_of(node.net)[0]
        clock.on_reset(self._last.clear)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            from diffusers.hooks._helpers import TransformerBlockRegistry

            at = TransformerBlockRegistry.get(type(module)).return_hidden_states_index
            hidden = output[at] if isinstance(output, tuple) else output
            residual = hidden - (args[0] if args else kwargs["hidden_states"])
            key = clock.slot, clock.call, len(residual)
            if (last := self._last.get(key)) is not None:
                self.found.append(float((residual - last).abs().mean() / last.abs().mean()))
            self._last[key] = residual

        node.undo.callback(block.register_forward_hook(after, with_kwargs=True).remove)
        return inner
