"""DBCache of the package cache-dit, as a baseline: blocks between the first Fn and the last Bn are skipped where what
the first Fn add to the hidden states has changed little (vipshop, cache-dit 1.5; the idea is FirstBlockCache's).

With r_t = h_Fn - h_0 of an evaluation at step t, and r_s of the last one that ran whole, the blocks between are skipped
(their residual of step s is added again) if mean|r_s - r_t| / mean|r_s| < threshold, over the whole batch. `mask` (SCM)
says for each step whether it must run whole (1) or may be skipped (0); `policy`: whether those of 0 ask the threshold
(`dynamic`) or not (`static`).

Driven from accel's seam: of the package nothing is used but its blocks and contexts (`enable_cache` wraps classes of
pipelines and forwards, and counts calls). Each list of transformer blocks becomes one of its `UnifiedBlocks` while the
network is called, and is itself again after it. Contexts are per stage, call and set of rows, begin with each
trajectory, and are told the clock's step, where the package counts calls, so that a sampler with two evaluations a
step, guidance in two calls or guidance that ends in mid-trajectory mixes nothing; the first evaluation of a context
always runs whole. Flux has two lists of blocks, each with a decision of its own (the package's default there rewrites
the network into one).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from accel.caching.diffusers_blocks import BLOCK_LISTS, refuse_between_blocks
from accel.core.denoiser import Denoise, Inputs, Node
from accel.core.method import Method
from accel.errors import ConfigError, IncompatibleError, check_float, check_int, unknown

PACKAGE = "cache_dit"
POLICIES = ("dynamic", "static")
# The package's number of a block's contract, by where it returns (hidden states, text); no text: they alone.
PATTERNS = {(0, 1): "Pattern_0", (1, 0): "Pattern_1", (0, None): "Pattern_3"}
ELSE = "use cache=diffusers_first_block or cache=fora, or cache=none."


@dataclass(frozen=True)
class CacheDiT(Method):
    """`first`, `last`: Fn and Bn, the blocks that always run. `threshold`: 0 never skips. `warmup`: steps at the
    beginning that run whole. `in_a_row`: at most so many skipped steps one after another (-1: any number)."""

    first: int = 1
    last: int = 0
    threshold: float = 0.08
    warmup: int = 2
    in_a_row: int = -1
    mask: Sequence[int] | None = None
    policy: str = "dynamic"

    def __post_init__(self) -> None:
        check_int("cache.first", self.first, 1)
        check_int("cache.last", self.last, 0)
        check_float("cache.threshold", self.threshold, 0.0)
        check_int("cache.warmup", self.warmup, 0)
        check_int("cache.in_a_row", self.in_a_row, -1)
        if self.policy not in POLICIES:
            raise unknown("cache.policy", str(self.policy), POLICIES)
        if self.mask is not None:
            object.__setattr__(self, "mask", tuple(self.mask))
            if not self.mask or self.mask[0] != 1 or {*self.mask} - {0, 1}:
                raise ConfigError(
                    f"cache.mask is {list(self.mask)}; allowed: a 1 (runs whole) or 0 for each step, 1 first."
                )
        elif self.policy == "static":
            raise ConfigError("cache.policy=static skips the steps of a mask, and cache.mask is empty; give one.")

    @property
    def label(self) -> str:
        masked = "" if self.mask is None else f",{self.policy}{''.join(map(str, self.mask))}"
        row = "" if self.in_a_row < 0 else f",r{self.in_a_row}"
        return f"cache_dit(F{self.first}B{self.last},{self.threshold:g},w{self.warmup}{row}{masked})"

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            for own, blocks in block_lists(name, net).items():
                if len(blocks) < self.first + self.last:
                    raise IncompatibleError(
                        f"cache_dit runs {self.first} first and {self.last} last blocks, and {own} of {name!r} has "
                        f"{len(blocks)}; use a smaller cache.first and cache.last."
                    )
        if self.mask is not None and recipe.sampler and recipe.sampler.steps != len(self.mask):
            raise IncompatibleError(
                f"cache.mask is for {len(self.mask)} steps, and the sampler has {recipe.sampler.steps}; give as many."
            )

    def check_beside(self, nets, beside) -> None:
        refuse_between_blocks("cache_dit", nets, beside)

    def check_machine(self, nets: Mapping[str, nn.Module]) -> None:
        if find_spec(PACKAGE) is None:
            raise IncompatibleError(
                "cache_dit needs the package cache-dit, which is not installed; install it with pip install cache-dit, "
                f"or {ELSE}"
            )

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        self.check_machine({node.name: node.net})
        net, clock = node.net, node.clock
        manager, united = self._united(node.name, net)
        clock.on_reset(manager.clear_contexts)
        node.undo.callback(manager.clear_contexts)
        node.state.append(lambda: [context.buffers for context in manager._cached_context_manager.values()])

        def denoise(inputs: Inputs) -> torch.Tensor:
            own = ",".join(map(str, inputs.members or ()))
            key = f"{clock.slot}.{clock.call}.{'+'.join(inputs.parts)}.{inputs.rows}.{own}"
            for name, blocks in united.items():
                context = blocks.one.cache_context = self._context(manager, f"{name}|{key}", clock.step)
                context.executed_steps = context.transformer_executed_steps = clock.step
            with _instead(net, united):
                return inner(inputs)

        return denoise

    def _context(self, manager: Any, name: str, step: int) -> Any:
        known = manager._cached_context_manager
        fresh = name not in known
        context = manager.new_context(name=name) if fresh else known[name]
        # What a context has not seen yet it cannot reuse: without a mask, and whole up to this step.
        context.cache_config = self._config(step + 1, None) if fresh else self._config(self.warmup, self.mask)
        return context

    def _config(self, warmup: int, mask: Sequence[int] | None) -> Any:
        package = _package()
        return package.DBCacheConfig(
            Fn_compute_blocks=self.first,
            Bn_compute_blocks=self.last,
            residual_diff_threshold=self.threshold,
            max_warmup_steps=warmup,
            max_continuous_cached_steps=self.in_a_row,
            enable_separate_cfg=False,
            steps_computation_mask=None if mask is None else list(mask),
            steps_computation_policy=self.policy,
        )

    def _united(self, name: str, net: nn.Module) -> tuple[Any, dict[str, Blocks]]:
        """The package's manager of contexts, and for each list of blocks by name the one that stands for it."""
        package, united = _package(), {}
        kind = package.CacheType.DBCache
        manager = import_module(f"{PACKAGE}.caching.cache_contexts").ContextManager(cache_type=kind, name=name)
        wrap = import_module(f"{PACKAGE}.caching.cache_blocks").UnifiedBlocks
        for own, blocks in block_lists(name, net).items():
            pattern = getattr(package.ForwardPattern, pattern_of(blocks[0]))
            how = {"forward_pattern": pattern, "cache_prefix": own, "cache_context": own, "cache_type": kind}
            try:
                made = wrap(blocks, transformer=net, context_manager=manager, check_num_outputs=False, **how)
            except (AssertionError, ValueError) as error:
                raise IncompatibleError(f"cache-dit cannot wrap {own} of {name!r}: {error}. U{ELSE[1:]}") from error
            made.transformer = None  # it would hold the network that holds it
            united[own] = Blocks(blocks, made)
        return manager, united


class Blocks(nn.ModuleList):
    """Blocks of a network that are run as `one`: looping over them gives that, an index a block (some networks look
    into the first)."""

    def __init__(self, blocks: nn.ModuleList, one: nn.Module) -> None:
        super().__init__(blocks)
        object.__setattr__(self, "one", one)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self.one])


def block_lists(name: str, net: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of transformer blocks of `net` by name. IncompatibleError if it has none, or some whose contract is not
    one of PATTERNS."""
    found = {n: m for n, m in net.named_children() if n in BLOCK_LISTS and isinstance(m, nn.ModuleList) and len(m)}
    if not found:
        raise IncompatibleError(
            f"cache_dit works on transformers, and {name!r} is a {type(net).__name__}; use cache=deepcache, or "
            "cache=none."
        )
    for own, blocks in found.items():
        if len({pattern_of(block) for block in blocks} - {None}) != 1 or pattern_of(blocks[0]) is None:
            raise IncompatibleError(
                f"cache_dit cannot tell what the {type(blocks[0]).__name__} in {own} of {name!r} takes and returns; "
                f"{ELSE}"
            )
        if any(getattr(block, "context_pre_only", False) for block in blocks):
            raise IncompatibleError(
                f"cache_dit fails on {own} of {name!r} ({type(net).__name__}), whose last block returns no text; {ELSE}"
            )
    return found


def pattern_of(block: nn.Module) -> str | None:
    """The name of the package's ForwardPattern of a block, by what diffusers says of its class; None: not known."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        known = TransformerBlockRegistry.get(type(block))
    except ValueError:  # not registered
        return None
    text = known.return_encoder_hidden_states_index
    taken = list(inspect.signature(type(block).forward).parameters)[1:]
    wanted = ["hidden_states", *(["encoder_hidden_states"] if text is not None else [])]
    return PATTERNS.get((known.return_hidden_states_index, text)) if taken[: len(wanted)] == wanted else None


@contextmanager
def _instead(net: nn.Module, united: Mapping[str, nn.ModuleList]) -> Iterator[None]:
    """Until the context ends, the lists of blocks of `net` are those of `united`."""
    before = {name: net._modules[name] for name in united}
    net._modules.update(united)
    try:
        yield
    finally:
        net._modules.update(before)


@cache
def _package() -> Any:
    package = import_module(PACKAGE)
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == PACKAGE:  # each reports whatever is made, at a level of its own
            logging.getLogger(name).setLevel(logging.ERROR)
    return package
