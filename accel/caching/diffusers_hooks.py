"""diffusers' own caches as baselines: FirstBlockCache, MagCache, TaylorSeer and PyramidAttentionBroadcast.

Their hooks (diffusers.hooks) are applied as they are; around them accel resets their state with every trajectory, which
a hand-written loop forgets, gives each stage, call and set of rows its own context, and removes every trace at the
end. `options` are those of the hook's config:

    first_block  threshold (of the relative change of the first block's residual)
    mag          threshold, max_skip_steps, retention_ratio, mag_ratios (left out: measured, see below)
    taylorseer   cache_interval, disable_cache_before_step, max_order, cache_identifiers, ...
    pab          spatial_attention_block_skip_range, spatial_attention_timestep_skip_range, ...

Limits of theirs (diffusers 0.42): the first three work on transformers only; on UNets they raise, or silently do
nothing; PAB works on both. Where their hooks raise, or match no module of the network, they are refused here, which is
found by putting them on and off again: TaylorSeer's default finds no module of DiTTransformer2DModel, so that
`cache_identifiers` must name them. They count calls, so a sampler with two evaluations a step advances them twice; the
contexts above undo that for FirstBlockCache, MagCache and TaylorSeer; PAB knows none, begins anew where guidance
changes the batch, and is refused under those samplers and where a pipeline calls its denoiser twice a step. A module
that is called twice in one evaluation (CogView 4's feed-forward, for image and text) keeps its last output only, and is
refused at the first evaluation. FirstBlockCache fails where the last block returns no text stream (Stable Diffusion 3)
and is refused there.
MagCache's ratios belong to a model, a sampler and a number of steps: how much the norm of what all blocks add to a
token changes from step to step, averaged over tokens (Ma et al. 2025, arXiv:2506.09045, eq. 4). Theirs are printed by a
calibration run, to be copied; here they are an artefact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel.caching.diffusers_blocks import Ratios, blocks_of, refuse_between_blocks
from accel.caching.diffusers_thresholds import RATIOS, RULES
from accel.caching.learning import record
from accel.core.artefacts import unlike
from accel.core.denoiser import Denoise, Inputs, Node, Sample, denoiser_name
from accel.core.method import Method
from accel.core.threshold import ThresholdRule
from accel.digests import weights_digest
from accel.errors import ConfigError, IncompatibleError, unknown

HOOKS = {  # name: config class and function of diffusers.hooks, and whether it needs a transformer
    "first_block": ("FirstBlockCacheConfig", "apply_first_block_cache", True),
    "mag": ("MagCacheConfig", "apply_mag_cache", True),
    "taylorseer": ("TaylorSeerCacheConfig", "apply_taylorseer_cache", True),
    "pab": ("PyramidAttentionBroadcastConfig", "apply_pyramid_attention_broadcast", False),
}
WHOLE = ("first_block", "mag")  # pass all further blocks by, and add what these added together
NAMED = {
    "taylorseer": "cache_identifiers",
    "pab": "spatial_attention_block_identifiers and spatial_attention_block_skip_range",
}
SAMPLES = 16  # that they are measured on
MODEL = "model"  # in an artefact the digest of the weights that it was made for


@dataclass(frozen=True)
class DiffusersCache(Method):
    """One of HOOKS with `options`."""

    hook: str = "first_block"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hook not in HOOKS:
            raise unknown("cache.hook", str(self.hook), HOOKS)
        options = {k: tuple(v) if is_list(v) else v for k, v in dict(self.options).items()}
        object.__setattr__(self, "options", options)
        self._config(None, {RATIOS: (1.0,)} if self.calibrated else {})

    @property
    def calibrated(self) -> bool:
        return self.hook == "mag" and RATIOS not in self.options

    @property
    def contextless(self) -> bool:
        """Whether the hooks count calls, whatever these are for, and ask for the timestep."""
        return self.hook == "pab"

    def _alone(self, clock: Any, net: nn.Module) -> None:
        if clock.call:
            raise IncompatibleError(
                f"diffusers' PyramidAttentionBroadcast counts calls, and this pipeline calls its {type(net).__name__} "
                "more than once a step, whose features it would mix; use cache=fora, or guidance=none."
            )

    def __hash__(self) -> int:
        return hash((self.hook, tuple(sorted(self.options.items(), key=str))))

    @property
    def label(self) -> str:
        # Lists of numbers are ranges; patterns of module names would fill the line.
        values = [v if isinstance(v, tuple) else (v,) for v in self.options.values()]
        said = ["-".join(map(str, v)) for v in values if not any(isinstance(item, str) for item in v)]
        return f"diffusers_{self.hook}({','.join(said)})"

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        rule = RULES.get(self.hook)
        return rule and rule(self.options, lambda value: replace(self, options={**self.options, "threshold": value}))

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            if HOOKS[self.hook][2] and not blocks_of(net):
                raise IncompatibleError(
                    f"diffusers' {self.hook} cache works on transformers, and {name!r} is a {type(net).__name__}; use "
                    "cache=deepcache, or cache=none."
                )
            text_ends = [getattr(block, "context_pre_only", False) for block in blocks_of(net)]
            if self.hook == "first_block" and any(text_ends):
                raise IncompatibleError(
                    f"diffusers' FirstBlockCache fails on {type(net).__name__}, whose last block returns no text; use "
                    "cache=taylorseer, or cache=none."
                )
            with _without_traces(net):
                self._apply(net, None, {RATIOS: (1.0,)} if self.calibrated else {})

    def check_beside(self, nets, beside) -> None:
        if self.hook in WHOLE:
            refuse_between_blocks(f"diffusers' {self.hook} cache", nets, beside)

    def check_around(self, scheduler, models) -> None:
        if self.hook == "pab" and (order := int(getattr(scheduler, "order", 1))) > 1:
            raise IncompatibleError(
                f"diffusers' PyramidAttentionBroadcast counts calls, and {type(scheduler).__name__} makes {order} of "
                "them a step, whose features it would mix; use a sampler with one evaluation a step, such as dpmpp_2m, "
                "or cache=fora."
            )

    def _apply(self, net: nn.Module, clock: Any, more: Mapping[str, Any] | None = None) -> None:
        """Put the hooks on `net`; IncompatibleError if diffusers cannot, or if they match none of its modules."""
        import diffusers.hooks

        config, before = self._config(clock, more), _hooked(net)
        try:
            getattr(diffusers.hooks, HOOKS[self.hook][1])(net, config)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise self._failed(net, error) from error
        if _hooked(net) <= before:
            raise IncompatibleError(
                f"diffusers' {self.hook} cache matches no module of {type(net).__name__}, so nothing would be cached; "
                f"name some in cache.options ({NAMED.get(self.hook, 'it has no option for that')}), use cache=fora or "
                "cache=deepcache, or cache=none."
            )

    def _failed(self, net: nn.Module, error: Exception) -> IncompatibleError:
        said = " ".join(str(error).split()) or type(error).__name__
        return IncompatibleError(
            f"diffusers' {self.hook} cache fails on {type(net).__name__}: {said[:200].rstrip('.')}. Use cache=fora, "
            "cache=taylorseer or cache=deepcache, or cache=none."
        )

    def prepared(self, pipe: Any, recipe: Any, artefact: Mapping[str, torch.Tensor] | None = None) -> DiffusersCache:
        if not self.calibrated:
            return self
        if artefact is None:
            raise ConfigError(
                "the ratios of diffusers' MagCache are still to be measured; run the recipe through `python -m accel`, "
                "or pass artefacts={'cache': cache.calibrate(...)}, or cache.options.mag_ratios=[...]."
            )
        if MODEL in artefact and unlike(artefact, _made_for(pipe)):  # what was measured before this was kept has none
            raise ConfigError(
                "the ratios of diffusers' MagCache were measured on other weights than those of this pipeline; measure "
                "them again."
            )
        ratios = artefact[RATIOS].tolist()
        if recipe.sampler and recipe.sampler.steps != len(ratios):
            raise ConfigError(
                f"the ratios of MagCache were measured over {len(ratios)} steps, but the sampler has "
                f"{recipe.sampler.steps}; measure them again."
            )
        return replace(self, options={**self.options, RATIOS: ratios, "num_inference_steps": len(ratios)})

    def calibrate(
        self,
        pipe: Any,
        recipe: Any,
        sample: Sample,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        artefacts: Mapping[str, Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The artefact: `mag_ratios`, one for each step, of one batch of samples.

        `sample(recipe, start, stop)` generates those samples of `pipe`, which runs that recipe meanwhile.
        `artefacts`: what sampler and guidance have learned.
        """
        measured = Ratios()
        record(pipe, recipe, artefacts, measured, sample, SAMPLES)
        on_step(1, 1)
        return {RATIOS: torch.tensor(measured.means()), **_made_for(pipe)}

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        import diffusers.hooks

        net, clock = node.net, node.clock
        node.undo.enter_context(_without_traces(net))
        self._apply(net, clock)
        registry = diffusers.hooks.HookRegistry.check_if_exists_or_initialize(net)
        seen: list[tuple] = []
        clock.on_reset(registry.reset_stateful_hooks)
        clock.on_reset(seen.clear)
        checked: list[bool] = []
        node.state.append(lambda: _kept_by_hooks(net))

        def denoise(inputs: Inputs) -> torch.Tensor:
            batch = inputs.parts, inputs.members, inputs.rows
            if self.contextless:
                self._alone(clock, net)
                if seen and batch != seen[-1]:
                    registry.reset_stateful_hooks()  # or it would broadcast the features of other rows
                seen[:] = [batch]
            own = ",".join(map(str, inputs.members or ()))
            _enter(net, f"{clock.slot}.{clock.call}.{'+'.join(inputs.parts)}.{inputs.rows}.{own}")
            try:
                with _called_once(net, self.hook) if not checked else nullcontext():
                    prediction = inner(inputs)
            except (ValueError, TypeError, KeyError) as error:
                if not _raised_in_hooks(error):
                    raise
                raise self._failed(net, error) from error
            checked[:] = [True]
            return prediction

        return denoise

    def _config(self, clock: Any, more: Mapping[str, Any] | None = None) -> Any:
        import diffusers.hooks

        options = {**self.options, **(more or {})}
        if self.contextless:
            options["current_timestep_callback"] = lambda: int(clock.timestep)
        try:
            return getattr(diffusers.hooks, HOOKS[self.hook][0])(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"cache.options of diffusers' {self.hook} cache: {error}".rstrip(".") + ".") from error


def _made_for(pipe: Any) -> dict[str, torch.Tensor]:
    return {MODEL: weights_digest(getattr(pipe, denoiser_name(pipe)))}


def is_list(value: Any) -> bool:
    """Whether it is a sequence, such as one of a configuration, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _enter(net: nn.Module, name: str) -> None:
    from diffusers.hooks import hooks

    if hasattr(hooks, "_set_cache_context"):
        hooks._set_cache_context(net, hooks.CacheContext(name))
    else:  # before diffusers 0.42
        hooks.HookRegistry.check_if_exists_or_initialize(net)._set_context(name)


def _hooked(net: nn.Module) -> set[tuple[str, str]]:
    # (module, hook) of all hooks that are on it.
    found = ((name, getattr(module, "_diffusers_hook", None)) for name, module in net.named_modules())
    return {(name, hook) for name, registry in found if registry is not None for hook in registry.hooks}


def _kept_by_hooks(net: nn.Module) -> list[Any]:
    # What hooks of diffusers' keep: PAB a `state`, the others a `state_manager` with a state for each context, which
    # hooks of several blocks share.
    registries = [r for module in net.modules() if (r := getattr(module, "_diffusers_hook", None)) is not None]
    hooks = [hook for registry in registries for hook in registry.hooks.values()]
    return [getattr(hook, name, None) for hook in hooks for name in ("state", "state_manager")]


@contextmanager
def _called_once(net: nn.Module, hook: str) -> Iterator[None]:
    """IncompatibleError at the second call of a module with hooks, until the context ends."""
    called: set[str] = set()

    def count(name: str) -> None:
        if name in called:
            raise IncompatibleError(
                f"{type(net).__name__} calls its module {name} twice in one evaluation, and diffusers' {hook} cache "
                "would return the second output for the first; use cache=fora or cache=taylorseer, or cache=none."
            )
        called.add(name)

    own = {name for name, _ in _hooked(net)} - {""}
    handles = [net.get_submodule(n).register_forward_pre_hook(lambda *_, n=n: count(n)) for n in own]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _raised_in_hooks(error: BaseException) -> bool:
    # Whether diffusers' hooks raised it, and not the network that they call.
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and "hooks" in Path(last.tb_frame.f_code.co_filename).parts


@contextmanager
def _without_traces(net: nn.Module) -> Iterator[None]:
    """Restore what hooks leave: the instance attributes `forward` and registry of modules, and what is in a registry
    that was there before (offloading has one)."""
    names = ("forward", "_diffusers_hook")
    before = [(m, {k: m.__dict__[k] for k in names if k in m.__dict__}) for m in net.modules()]
    for module, kept in before:  # a registry that a pipeline left behind would not know of the new ones below it
        if "_diffusers_hook" in kept and not kept["_diffusers_hook"].hooks:
            del module.__dict__["_diffusers_hook"]
    registries = [kept["_diffusers_hook"] for _, kept in before if "_diffusers_hook" in kept]
    states = [(vars(r), {k: copy.copy(v) for k, v in vars(r).items() if k != "_module_ref"}) for r in registries]
    states += [(vars(ref), dict(vars(ref))) for registry in registries for ref in registry._fn_refs]
    for registry in registries:
        registry._child_registries_cache = None  # which would not hold the new ones
    try:
        yield
    finally:
        for module, kept in before:
            for name in names:
                module.__dict__.pop(name, None)
            module.__dict__.update(kept)
        for own, kept in states:
            for name in own.keys() - kept.keys() - {"_module_ref"}:
                del own[name]
            own.update(kept)
