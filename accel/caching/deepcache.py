"""DeepCache: reuse the deep features of a UNet over neighbouring steps.

Paper: Ma, Fang & Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024 (arXiv:2312.00858), sec. 3.3-3.4.
At a full step the whole UNet runs and the hidden state that enters the up layer consuming skip `branch` is stored,
before the concatenation; at the other steps only the layers outside that point run, on the current x_t.
`branch` follows the paper's Table 12 (the number of live skip connections); the PyPI package's `cache_branch_id` is
branch - 1. Schedule: uniform 1:interval, full iff step % interval == 0, so ceil(T / interval) full steps.
Deviations: the decision is made for each solver step, not for each call, and every stage of a multi-stage solver keeps
a cache of its own (the original's counter collapses on such samplers); a step whose guidance needs rows that are not
stored is full. At the deepest branch a ControlNet's mid residual is the stored one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from accel.caching.unet_view import ShallowView, skip_count
from accel.denoiser import Denoise, Inputs, Method, Node
from accel.errors import ConfigError, check_int

Stored = tuple[torch.Tensor, tuple[int, ...] | None]  # features, and the members of the part that they are of


@dataclass(frozen=True)
class DeepCache(Method):
    """Uniform 1:N DeepCache. interval >= 1 (1: no caching), branch in 1..number of skips of the UNet."""

    interval: int = 3
    branch: int = 1

    def __post_init__(self) -> None:
        check_int("cache.interval", self.interval, 1)
        check_int("cache.branch", self.branch, 1)

    @property
    def label(self) -> str:
        return f"deepcache{self.interval}b{self.branch}"

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            skips = skip_count(net, name)
            if self.branch > skips:
                raise ConfigError(
                    f"cache.branch is {self.branch}, but {name!r} has {skips} skip connections; allowed: 1..{skips}."
                )

    def full(self, step: int) -> bool:
        """Whether solver step `step` runs the whole UNet."""
        return step % self.interval == 0

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        if self.interval == 1:
            return inner
        view, clock = ShallowView(node.net, self.branch), node.clock
        stored: dict[tuple[int, int, str], Stored] = {}
        clock.on_reset(stored.clear)

        def denoise(inputs: Inputs) -> torch.Tensor:
            keys = [(clock.slot, clock.call, part) for part in inputs.parts]
            if not self.full(clock.step) and all(k in stored for k in keys):
                found = [_rows(stored[k], inputs.members) for k in keys]
                entry = torch.cat(found) if len(found) > 1 else found[0]
                if len(entry) == inputs.rows:
                    return node.evaluate(inputs, lambda **kwargs: view.forward(entry, **kwargs), "shallow")
            prediction, entry = view.capture(lambda: inner(inputs))
            stored.update((k, (part, inputs.members)) for k, part in zip(keys, entry.chunk(len(keys)), strict=True))
            return prediction

        return denoise


def _rows(stored: Stored, wanted: tuple[int, ...] | None) -> torch.Tensor:
    # The stored rows of the wanted members, fewer than wanted if some are not there; None stands for all of a part.
    entry, held = stored
    if wanted in (held, None):
        return entry
    places = {member: place for place, member in enumerate(range(len(entry)) if held is None else held)}
    return entry[[places[m] for m in wanted if m in places]]
