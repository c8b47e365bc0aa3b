"""What diffusers' caches hold against their thresholds.

FirstBlockCache: mean |r_t - r_(t-1)| / mean |r_(t-1)|, r what the first block adds, of the last step that was computed.

MagCache: with the ratio g_i of step i, after a computed step s - 1 the steps s, s + 1, ... are skipped while

    E(s, k) = sum_{j <= k} |1 - prod_{s <= i < s + j} g_i| <= threshold,   k = 1, 2, ... up to max_skip_steps

and no step before int(retention_ratio N + 1/2) is. What is compared belongs to the ratios, not to the images: each E of
a run that is allowed may be met at some threshold, and nothing else ever is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from accel.caching.diffusers_blocks import blocks_of, entered, hidden_states
from accel.core.denoiser import Denoise, Node
from accel.core.method import Method
from accel.core.threshold import Learned, ThresholdRule, Watched
from accel.errors import ConfigError

RATIOS = "mag_ratios"
SETTING = "options.threshold"
ALWAYS = 1e9
Options = Mapping[str, Any]
At = Callable[[float], Method]


def _first_block(options: Options, at: At) -> ThresholdRule:
    words = "relative change of what the first block adds, from step to step, by batch"
    value = options.get("threshold", _default("FirstBlockCacheConfig", "threshold"))

    def watch(recipe: Any, artefact: Learned) -> Watched:
        watched = FirstBlockChanges()
        return watched, watched.found

    return ThresholdRule(SETTING, value, words, True, ALWAYS, at, None, watch)


def _mag(options: Options, at: At) -> ThresholdRule:
    own = {name: options.get(name, _default("MagCacheConfig", name)) for name in ("threshold", "max_skip_steps")}
    words = f"error that MagCache adds up, of every run of at most {own['max_skip_steps']} skipped steps, by its ratios"

    def watch(recipe: Any, artefact: Learned) -> Watched:
        ratios, retained = _measured(options, artefact)
        steps = recipe.sampler.steps if recipe.sampler else len(ratios)
        return None, accumulated_errors(ratios[:steps], retained, own["max_skip_steps"])

    return ThresholdRule(SETTING, own["threshold"], words, True, ALWAYS, at, None, watch, of_images=False)


RULES: Mapping[str, Callable[[Options, At], ThresholdRule]] = {"first_block": _first_block, "mag": _mag}


def accumulated_errors(ratios: Sequence[float] | torch.Tensor, retained: int, longest: int) -> list[float]:
    """E(s, k) of every run of k = 1..`longest` steps that begins at or after step `retained` (and after step 0, which
    has nothing to reuse), in order of s and then of k; `ratios`: g_i of each step. In float32, as diffusers adds."""
    ratios, found = torch.as_tensor(ratios, dtype=torch.float32), []
    for start in range(max(1, retained), len(ratios)):
        product, error = torch.tensor(1.0), torch.tensor(0.0)
        for ratio in ratios[start : start + longest]:
            product = product * ratio
            error = error + abs(1.0 - product)
            found.append(float(error))
    return found


def _measured(options: Options, artefact: Learned) -> tuple[torch.Tensor, int]:
    """The ratio of each step, and the first step that may be skipped, as diffusers' configuration has them."""
    from diffusers.hooks import MagCacheConfig

    if RATIOS not in options:
        if artefact is None:
            raise ConfigError(
                "the recipe has no ratios of MagCache, so nothing can be said of its threshold; save it with its "
                "artefacts (accel recipe does), or give cache.options.mag_ratios=[...]."
            )
        ratios = artefact[RATIOS].tolist()
        options = {**options, RATIOS: ratios, "num_inference_steps": len(ratios)}
    config = MagCacheConfig(**options)
    return config.mag_ratios, int(config.retention_ratio * config.num_inference_steps + 0.5)


def _default(config: str, name: str) -> Any:
    import diffusers.hooks

    return getattr(getattr(diffusers.hooks, config), name)


class FirstBlockChanges(Method):
    """Attached in the place of FirstBlockCache: the plain network, and what the cache would have compared."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self._last: dict[tuple[Any, ...], torch.Tensor] = {}

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock = node.clock
        clock.on_reset(self._last.clear)

        def after(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            residual = hidden_states(block, output) - entered(args, kwargs)
            key = clock.slot, clock.call, len(residual)
            if (last := self._last.get(key)) is not None:
                self.found.append(float((residual - last).abs().mean() / last.abs().mean()))
            self._last[key] = residual

        node.undo.callback(blocks_of(node.net)[0].register_forward_hook(after, with_kwargs=True).remove)
        return inner
