"""Feature inheritance: blocks, layers or units of the denoiser take over what they computed at the preceding step.

The tuning-free half of A-SDM: Zhang et al. 2024, "A-SDM: Accelerating Stable Diffusion through Model Assembly and
Feature Inheritance Strategies" (arXiv:2406.00210). Only its abstract was at hand: it inherits at the levels of blocks,
layers and units, in several modes of time steps. Our reading of the levels:

    block   a whole down, mid or up block of a UNet, or a transformer block
    layer   a residual block or a transformer of a UNet (for a transformer: the block)
    unit    attn1, attn2 or ff of a transformer block, conv1 or conv2 of a residual block: what is inherited is the
            branch before the residual is added, so that the current input passes by (accel/caching/parts.py)

and of the modes: any of accel/caching/schedules.py (the steps at which everything runs), within the steps from `begin`
to `end`, fractions of the trajectory. `match` names the modules that inherit by a regular expression, on
their names or, where a network has names of its own for attention and feed-forward, on `attn` and `ff` in their place.

FORA (Selvaraju et al. 2024, "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration", arXiv:2407.01425) is
the level of units on a DiT, attn1 and ff of every block, uniform 1:N. Its released code counts steps down to 0 and so
has two full steps in a row at the start where N does not divide the last index; here full steps are 0, N, 2 N, ... The
gates of adaptive normalisation are computed at each step. With `order` > 0 outputs are forecast instead: TaylorSeer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from accel.caching.module_cache import ModuleCache
from accel.caching.parts import LEVELS, role
from accel.caching.schedules import Schedule, Uniform
from accel.core.window import Window
from accel.errors import ConfigError, IncompatibleError, check_int, unknown


@dataclass(frozen=True)
class FeatureInheritance(ModuleCache):
    """`level` and `match` say which modules inherit, `schedule` at which steps they run; `order`: Taylor forecast."""

    level: str = "unit"
    match: str = ""
    schedule: Schedule = field(default_factory=lambda: Uniform(2))
    begin: float = 0.0
    end: float = 1.0
    order: int = 0
    name: str = "inherit"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise unknown("cache.level", str(self.level), LEVELS)
        check_int("cache.order", self.order, 0, 4)
        _ = self.window  # whose making checks it
        try:
            re.compile(self.match)
        except re.error as error:
            raise ConfigError(f"cache.match {self.match!r} is no regular expression: {error}.") from error

    @property
    def window(self) -> Window:
        return Window(self.begin, self.end, "cache")

    @property
    def label(self) -> str:
        what = "" if self.name != "inherit" else f"({self.level}{f',{self.match}' if self.match else ''})"
        return f"{self.name}{self.schedule.label}{what}{self.window.label}" + (f"o{self.order}" if self.order else "")

    def modules(self, net: nn.Module, name: str) -> list[str]:
        there = LEVELS[self.level](net)
        found = [n for n in there if re.search(self.match, n) or re.search(self.match, role(n))]
        if not there:
            raise IncompatibleError(
                f"{name} ({type(net).__name__}) has no modules of cache.level={self.level}; use another level of "
                f"{', '.join(LEVELS)}, or cache=none."
            )
        if not found:
            raise IncompatibleError(
                f"cache.match={self.match!r} names none of the {len(there)} modules of level {self.level} of {name}, "
                f"such as {there[0]} and {there[-1]}; use another cache.match, or cache=none."
            )
        return found

    def runs(self, modules: Sequence[str], num_steps: int) -> list[frozenset[str]]:
        full, every, window = self.schedule.full(num_steps), frozenset(modules), self.window
        return [frozenset() if inherits(k, num_steps, full, window) else every for k in range(num_steps)]


def inherits(step: int, num_steps: int, full: frozenset[int], window: Window) -> bool:
    """Whether modules inherit at solver step `step` of `num_steps`: within the window, but at its `full` steps."""
    return step not in full and window.holds(step, num_steps)
