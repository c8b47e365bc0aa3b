"""Trajectories whose inputs are known beforehand, and a guidance that evaluates whichever rows a script names.

The pipeline runs its own loop, but steps with x itself in place of the prediction, so that no input depends on what
the network, or a cache around it, returned. An input can then be disturbed at chosen rows, and everything that changes
elsewhere has been mixed up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch

from accel.core.guidance import Guidance
from accel.registry import method
from accel.testing.bench import Bench, Case, prepared

SAMPLES = 4
Call = dict[str, tuple[int, ...] | None]  # the samples of each part, in the order of the rows; None: all
Row = tuple[str, int]  # part and sample
Log = dict[tuple[int, int, str, int], torch.Tensor]  # prediction by stage, slot, part and sample
BOTH, EVERY = ("uncond", "cond"), tuple(range(SAMPLES))


def _both(step: int) -> list[Call]:
    return [dict.fromkeys(BOTH)]


def _but_one(step: int) -> tuple[int, ...]:
    return tuple(i for i in EVERY if i != SAMPLES - 1 - step % SAMPLES)


def _without(uncond: tuple[int, ...]) -> list[Call]:
    return [{"cond": None}, {"uncond": None if uncond == EVERY else uncond}]


# Which calls of the network one evaluation of the pipeline becomes, by solver step.
SCRIPTS: dict[str, Callable[[int], list[Call]]] = {
    "the conditional rows alone": lambda step: [{"cond": None}],
    "both halves in one call": _both,
    "both halves in one call, in turns in either order": lambda step: [dict.fromkeys(BOTH[:: 1 if step % 2 else -1])],
    "each half in a call of its own": lambda step: [{"uncond": None}, {"cond": None}],
    "both halves, then the conditional one alone": lambda step: _both(step) if step % 2 == 0 else [{"cond": None}],
    "ever fewer samples guided": lambda step: _without(EVERY[min(step, SAMPLES - 1) :]),
    "another sample left unguided at each step": lambda step: _without(_but_one(step)),
    "one call, another sample left unguided in it at each step": lambda step: (
        [{"uncond": _but_one(step), "cond": None}] if step else _both(step)
    ),
}


@dataclass(frozen=True)
class Scripted(Guidance):
    """Evaluates what SCRIPTS[script] names and keeps every predicted row in `log`; see the module.

    `slot`: the evaluation of a solver step at which rows are disturbed (None: all).
    """

    script: str
    scale: float = 2.0

    def __post_init__(self) -> None:
        # No settings: what a method has learned under this guidance holds whatever is disturbed.
        object.__setattr__(self, "log", {})
        object.__setattr__(self, "disturbed", frozenset())
        object.__setattr__(self, "slot", None)

    @property
    def pipeline_scale(self) -> float:
        return self.scale

    @property
    def neutral(self) -> bool:
        return False

    def guide(self, inputs, inner, node):
        clock, size = node.clock, inputs.rows // len(inputs.parts)
        first = {part: place * size for place, part in enumerate(inputs.parts)}
        channels = 0
        for call in SCRIPTS[self.script](clock.step):
            order = (*call, *(part for part in inputs.parts if part not in call))
            whole = inputs.at([first[part] + i for part in order for i in range(size)])
            own = replace(whole, parts=order).only(call)
            rows = [(block.part, i) for block in own.blocks for i in block.samples]
            if self.slot in (None, clock.slot):
                own = own.given(**{own.sample_name: self._moved(own.sample, rows, clock.stage)})
            predicted = inner(own)
            assert len(predicted) == len(rows), f"{len(rows)} rows were to be predicted, {len(predicted)} came back"
            channels = predicted.shape[1]
            for row, prediction in zip(rows, predicted, strict=True):
                self.log[(clock.stage, clock.slot, *row)] = prediction.clone()
        x = inputs.sample
        step_with = x.new_zeros(len(x), channels, *x.shape[2:])
        step_with[:, : x.shape[1]] = x
        return step_with

    def _moved(self, x: torch.Tensor, rows: list[Row], stage: int) -> torch.Tensor:
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(stage)).to(x)
        where = torch.tensor([float(row in self.disturbed) for row in rows]).to(x)
        return x + where.reshape(-1, *[1] * (x.dim() - 1)) * noise


def predictions(
    case: Case, on: Bench, script: str, disturbed: Collection[Row] = (), slot: int | None = None, sampler: str = ""
) -> Log:
    """What the method under contract predicts for every row of SAMPLES samples, under `script`."""
    guidance = Scripted(script, 1.0 if script == "the conditional rows alone" else 2.0)
    object.__setattr__(guidance, "disturbed", frozenset(disturbed))
    object.__setattr__(guidance, "slot", slot)
    made = replace(case.recipe, guidance=None)
    if sampler:
        made = replace(made, sampler=method("sampler", sampler, steps=made.sampler.steps))
    made = replace(prepared(made, on), guidance=guidance)
    on.images(made, 0, SAMPLES, SAMPLES)
    return guidance.log
