"""Counted cost of a recipe: evaluations, multiply-accumulates and peak tensor memory of one real trajectory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.core.macs import tensors
from accel.core.precision import plain_bytes
from accel.core.recipe import Recipe, accelerate
from accel.core.run import Run
from accel.core.trajectory import REUSED
from accel.evaluation.generate import generate
from accel.precision.simulated.bits import Counted, bit_operations
from accel.suites.base import Suite

VARYING = 20  # samples over which a cost that differs from sample to sample is averaged


class PeakTensorMemory(TorchDispatchMode):
    """Peak bytes of live tensors that operations return within the context (workspaces inside kernels are not seen).

    Deterministic and the same on every machine, unlike resident memory; on CUDA use torch.cuda.max_memory_allocated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        for tensor in tensors(result):
            self._track(tensor.untyped_storage(), known)
        return result

    def _track(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in known:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def counted_cost(
    pipe: Any,
    suite: Suite,
    recipe: Recipe,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Steps, NFE, MACs an image, model bytes, peak tensor bytes (batch 1; None where a converted copy runs unseen) and
    the trace strip of one trajectory; where arithmetic is simulated also its bit operations an image (32 x 32 a MAC in
    floating point), under a cache the most bytes that it keeps from one scheduler step to the next, an image, and on a
    GPU the most that its allocator held in this process (`vram_bytes`, with all that lies there beside the recipe).

    A cache that decides while sampling has its `hits`, the share of evaluations that it reused.

    NFE, MACs, bit operations and hits are means over the first VARYING samples where a method evaluates less for some
    than for others (of a suite whose images say nothing: of one call).
    """
    nets = recipe.nets(pipe, models)
    size = sum(map(plain_bytes, nets.values()))
    if recipe.precision:
        size = sum(recipe.precision.model_bytes(net, (artefacts or {}).get(name)) for name, net in nets.items())
    with accelerate(pipe, recipe, models=models, artefacts=artefacts, count_macs=True) as run:
        weights, kept = sum(map(plain_bytes, nets.values())), [0]
        clock = run.clock
        clock.on_stage(lambda: kept.append(run.cache_bytes if clock.stage + 1 < clock.stages else 0))
        _forget_peak(pipe.device)
        with PeakTensorMemory() as memory, bit_operations(nets.values()) as bits:
            count = recipe.sampler.group(suite.period) if recipe.sampler else 1
            generate(pipe, suite, recipe, seed=0, start=0, stop=count, batch=count)
        found, vram, held = [_counts(recipe, run, bits, count)], _peak(pipe.device), max(kept) / count
        steps, strip = run.clock.num_steps, run.strip
        if suite.unscored is None and any(method.varies for method in recipe.methods()):
            for start in range(count, VARYING, count):
                with bit_operations(nets.values()) as bits:
                    generate(pipe, suite, recipe, seed=0, start=start, stop=start + count, batch=count)
                found.append(_counts(recipe, run, bits, count))
    means = {key: sum(own[key] for own in found) / len(found) for key in found[0]}
    peak = None if recipe.precision and recipe.precision.whole else weights + memory.peak
    cost = {"steps": steps, "strip": strip, **means, "model_bytes": size, "peak_bytes": peak}
    cost |= {"cache_bytes": round(held)} if run.cache_state else {}
    return cost | ({"vram_bytes": vram} if vram else {})


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    # Bytes that torch's allocator held at most since `_forget_peak`, without its own spare; 0: no GPU.
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _counts(recipe: Recipe, run: Run, bits: Counted, count: int) -> dict[str, float]:
    counts = {"nfe": run.nfe, "macs": run.macs}
    counts |= {"hits": hits(run)} if recipe.cache and recipe.cache.varies else {}
    return counts | ({"bit_operations": bits.total(run.macs * count) / count} if recipe.simulated else {})


def hits(run: Run) -> float:
    """Share of a trajectory's evaluations, sample by sample, that a cache answered with earlier ones."""
    calls = {(e.stage, e.call) for e in run.trace if e.denoiser}
    reused = sum(len(event.samples) for event in run.events if event.name == REUSED)
    return reused / max(1, len(calls) * run.clock.samples)
