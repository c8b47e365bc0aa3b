"""What happens while a pipeline runs a recipe: the counts of its last trajectory, and the call itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accel.core.denoiser import held_bytes
from accel.core.trajectory import Event, NetworkCall, Trajectory
from accel.errors import ConfigError


@dataclass
class Run:
    """What happens inside `accelerate`: the clock, and the counts of its last trajectory.

    `cached_share`: for each network whose modules a cache passes by, their part of the weights in its blocks.
    `transferred`: whose artefacts (by axis, or by network for a precision) are those of other weights, on purpose.
    """

    recipe: Any
    clock: Trajectory
    count_macs: bool = False
    pipe: Any = field(default=None, repr=False)
    scheduler: Any = field(default=None, repr=False)
    cached_share: dict[str, float] = field(default_factory=dict)
    transferred: tuple[str, ...] = ()
    cache_state: list[Any] = field(default_factory=list, repr=False)

    @property
    def trace(self) -> list[NetworkCall]:
        """Every network evaluation of the last trajectory."""
        return self.clock.trace

    @property
    def nfe(self) -> float:
        """Network evaluations for each image: batch rows evaluated / images (CFG counts 2 an evaluation)."""
        return sum(e.rows for e in self._evaluations if e.denoiser) / max(1, self.clock.samples)

    @property
    def macs(self) -> float:
        """Multiply-accumulates for each image that really executed in the denoisers, and in a guiding classifier."""
        if not self.count_macs:
            raise ConfigError("MACs were not counted; use accelerate(pipe, recipe, count_macs=True).")
        return sum(e.macs for e in self._evaluations) / max(1, self.clock.samples)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the tensors that caches keep now, of all networks and the whole batch; 0 outside of a trajectory."""
        return held_bytes(self.cache_state)

    @property
    def events(self) -> list[Event]:
        """What methods decided in the last trajectory, such as where adaptive guidance ended for which samples."""
        return self.clock.events

    @property
    def _evaluations(self) -> list[NetworkCall]:
        return self.clock.prelude + self.trace

    def __call__(self, **call: Any) -> Any:
        """What the pipeline returns for the arguments `call`, with what the sampler prepares beforehand."""
        return run_pipeline(self.pipe, self.recipe, call)

    @property
    def strip(self) -> str:
        """One word an evaluation: model initial and mode, e.g. `b:full b:shallow`."""
        return " ".join(f"{e.model}:{e.mode}" for e in self.trace)


def run_pipeline(pipe: Any, recipe: Any, call: dict[str, Any]) -> Any:
    """The result of the pipeline accelerated with `recipe`; its sampler may prepare the initial noise."""
    if recipe.sampler is None:
        return pipe(**call)
    clock = pipe.scheduler.clock
    clock.prelude.clear()
    clock.generator = call.get("generator")
    try:
        return recipe.sampler.run(pipe, clock, call)
    finally:
        clock.generator = None
