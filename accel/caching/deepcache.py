"""DeepCache: reuse the deep features of a UNet over neighbouring steps.

Paper: Ma, Fang & Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024 (arXiv:2312.00858), sec. 3.3-3.4.
At a full step the whole UNet runs and the hidden state that enters the up layer consuming skip `branch` is stored,
before the concatenation; at the other steps only the layers outside that point run, on the current x_t.
`branch` follows the paper's Table 12 (the number of live skip connections); other numberings by name, see NUMBERINGS.
Schedules: uniform 1:interval, ceil(T / interval) full steps, or any of accel/caching/schedules.py, the paper's
non-uniform one among them. `BranchTable` gives each step a branch of its own, as a search finds them.
Deviations: the decision is made for each solver step, not for each call, and every stage of a multi-stage solver keeps
a cache of its own (the original's counter collapses on such samplers); a step whose guidance needs rows that are not
stored is full. At the deepest branch a ControlNet's mid residual is the stored one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from accel.caching.rows import Kept, parted, rows_of
from accel.caching.schedules import Schedule, Uniform
from accel.caching.unet_view import ShallowView, capture, skip_count
from accel.core.denoiser import Denoise, Inputs, Node
from accel.core.method import LATER, Method
from accel.errors import ConfigError, check_int, unknown

# What has to be added to a branch number to give live skip connections: Table 12 of the paper, the `cache_branch_id` of
# the PyPI package, and `--branch` of the released DDPM code, whose first branch has two.
NUMBERINGS = {"paper": 0, "pypi": 1, "ddpm_code": 2}
FULL = 0


class BranchCache(Method):
    """What DeepCache's variants share: `plan` says for every step how many skips are live, or FULL."""

    uneven: ClassVar[bool] = True

    @abstractmethod
    def plan(self, num_steps: int) -> Sequence[int]:
        """FULL or the live skips of each of `num_steps` solver steps; the first is FULL."""

    @property
    @abstractmethod
    def branches(self) -> frozenset[int]:
        """The live skips of all steps that are not full."""

    def check(self, nets, recipe) -> None:
        for name, net in nets.items():
            skips = skip_count(net, name)
            if (deepest := max(self.branches, default=FULL)) > skips:
                raise ConfigError(
                    f"cache.branch is {deepest}, but {name!r} has {skips} skip connections; allowed: 1..{skips}."
                )
        if recipe.sampler and recipe.sampler.steps > 1:
            self.plan(recipe.sampler.steps)

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock = node.clock
        views = {branch: ShallowView(node.net, branch) for branch in self.branches}
        for view in views.values():
            node.undo.enter_context(view.watched())
        plan: list[int] = []
        stored: dict[tuple[int, int, str, int], Kept] = {}
        clock.on_reset(stored.clear)
        clock.on_reset(plan.clear)
        node.state.append(stored)

        def denoise(inputs: Inputs) -> torch.Tensor:
            if not plan:
                # Samplers may evaluate beside their steps, each time as a trajectory of one step.
                plan.extend(self.plan(clock.num_steps) if clock.num_steps > 1 else [FULL])
            branch, keys = plan[clock.step], [(clock.slot, clock.call, part) for part in inputs.parts]
            kept = [stored[key] for k in keys if (key := (*k, branch)) in stored]
            if len(kept) == len(keys) and (entry := rows_of(kept, inputs)):
                return node.evaluate(inputs, lambda **kwargs: views[branch].forward(*entry, **kwargs), "shallow")
            branches = needed(plan, clock.step)
            prediction, entries = capture([views[b] for b in branches], lambda: inner(inputs))
            for b, entry in zip(branches, entries, strict=True):
                parts = parted((entry,), inputs, f"the UNet's decoder at skip {b}")
                stored.update(((*k, b), part) for k, part in zip(keys, parts, strict=True))
            return prediction

        return denoise


def branch_at(step: int, full: frozenset[int], live: int) -> int:
    """What runs at solver step `step`: FULL, the whole UNet, at the steps `full`, elsewhere `live` skips' layers."""
    return FULL if step in full else live


def needed(plan: Sequence[int], step: int) -> list[int]:
    """Branches that reuse what is stored at `step`: those of this step and the next ones up to a full step."""
    found = {plan[step]}
    for branch in plan[step + 1 :]:
        if branch == FULL:
            break
        found.add(branch)
    return sorted(found - {FULL})


@dataclass(frozen=True)
class DeepCache(BranchCache):
    """DeepCache of one branch: a UNet's features below skip `branch`, made at every `interval`-th step, reused between.

    interval >= 1 (1: no caching); `schedule`, if given, takes the interval's place.
    """

    interval: int = 3
    branch: int = 1
    schedule: Schedule | None = field(default=None, metadata=LATER)
    numbering: str = field(default="paper", metadata=LATER)

    def __post_init__(self) -> None:
        check_int("cache.interval", self.interval, 1)
        if self.numbering not in NUMBERINGS:
            raise unknown("cache.numbering", str(self.numbering), NUMBERINGS)
        check_int("cache.branch", self.branch, 0 if self.numbering != "paper" else 1)

    @property
    def label(self) -> str:
        return f"deepcache{self._schedule.label}b{self._live}"

    @property
    def _schedule(self) -> Schedule:
        return self.schedule or Uniform(self.interval)

    @property
    def _live(self) -> int:
        return self.branch + NUMBERINGS[self.numbering]

    @property
    def branches(self) -> frozenset[int]:
        return frozenset({self._live})

    def plan(self, num_steps: int) -> list[int]:
        full = self._schedule.full(num_steps)
        return [branch_at(step, full, self._live) for step in range(num_steps)]


@dataclass(frozen=True)
class BranchTable(BranchCache):
    """DeepCache by a table: for each solver step 0 (full) or the number of live skips; the first is 0."""

    table: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        for entry in self.table:
            check_int("cache.table", entry, 0)
        table = tuple(int(entry) for entry in self.table)
        object.__setattr__(self, "table", table)
        if not table or table[0] != FULL:
            raise ConfigError(
                f"cache.table is {list(table)}; allowed: one number a step, 0 (full) or live skips, beginning with 0."
            )

    @property
    def label(self) -> str:
        return "deepcache[" + ",".join(map(str, self.table)) + "]"

    @property
    def branches(self) -> frozenset[int]:
        return frozenset(self.table) - {FULL}

    def plan(self, num_steps: int) -> list[int]:
        if len(self.table) != num_steps:
            raise ConfigError(
                f"cache.table has {len(self.table)} steps, but the sampler has {num_steps}; give one number for each."
            )
        return list(self.table)
