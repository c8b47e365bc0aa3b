"""Run or reuse a whole evaluation, decided while sampling: what dynamic step caches (TeaCache and the like) share.

Before each evaluation an *indicator* e_t >= 0 estimates how much the network's answer has changed since the last one.
It is added up, and while the sum stays below the threshold what was kept of the last run is reused:

    E_t = E_(t-1) + e_t;   E_t < threshold: reuse;   else run, keep, E_t = 0

So 0 is the plain pipeline, and a threshold below every e_t never hits. The `first` and the `last` steps always run, and
so does a row of which nothing is kept. What is reused, and how: accel/caching/step_reuse.py. e_t is a function of mean
absolute values, each over

    per_sample   a sample, all its parts in the call (both halves of a guided batch) together: an image does not
                 depend on its batch, and a guided difference is never one of a fresh and a stale half. The samples
                 that run do so in one call, of fewer rows
    batch        all rows of the call, as released codes do: one call or none, but an image depends on its batch

Where an evaluation reaches the network in several calls (guidance by two of them; the halves of a batch of which some
samples are guided no more) the first one decides for all, so that a guided difference is not of that kind either.

All state is by slot of the solver step, call, part and sample, and dropped with every trajectory. What is decided by
lies on the device, which the host waits for once an evaluation, but at steps that always run. A trace calls an
evaluation `full`, `partial` (of some samples) or `reused` (of no rows where no part of the network runs); `Run.events`
says of which samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from accel.caching.step_reuse import BLOCKS, KEEPERS, REUSE, Keeper, check_blocks, resolved
from accel.caching.step_rows import Key, Past, Rows, chosen, gathered, merged, parted, picked
from accel.caching.step_watch import ALWAYS, LONGEST, Below, Told, Watching
from accel.core.denoiser import Denoise, Inputs, Node
from accel.core.devices import send
from accel.core.macs import count_macs
from accel.core.method import Method
from accel.core.threshold import Learned, ThresholdRule, Watched
from accel.core.trajectory import REUSED
from accel.errors import IncompatibleError, check_float, check_int, unknown

Mean = Callable[[torch.Tensor], torch.Tensor]


def of_samples(inputs: Inputs) -> Mean:
    """Over the rows of each sample."""
    if not inputs.uneven:
        count = len(inputs.parts)
        return lambda values: values.reshape(count, -1).mean(0).repeat(count)
    samples, device = inputs.samples, inputs.sample.device
    place = {sample: i for i, sample in enumerate(dict.fromkeys(samples))}
    own = [(block, send([place[sample] for sample in block.samples], device)) for block in inputs.blocks]
    counts, rows = (send(v, device) for v in ([samples.count(s) for s in place], [place[s] for s in samples]))

    def mean(values: torch.Tensor) -> torch.Tensor:
        total = values.new_zeros(len(place))
        for block, places in own:  # each place once, so that the order of the sum is fixed
            total = total.index_add(0, places, values[block.start : block.stop])
        return (total / counts)[rows]

    return mean


# For a call: what makes of numbers of its rows (B,) the means over what is decided together, in each of its rows.
DECISIONS: Mapping[str, Callable[[Inputs], Mean]] = {
    "per_sample": of_samples,
    "batch": lambda inputs: lambda values: values.mean().expand(len(values)),
}


class Signal:
    """What the indicator of a call is made of: here its sample, which is known before the network runs.

    costs: whether `before` runs a part of the network, which is to be counted.
    """

    costs: ClassVar[bool] = False

    def before(self, inputs: Inputs) -> torch.Tensor:
        """The signal of each row (B, ...), a copy, before the network runs."""
        return inputs.sample.clone()

    def during(self, inputs: Inputs, run: Callable[[], Any]) -> tuple[torch.Tensor, Any]:
        """The same where the network runs in any case, and what `run` returns."""
        return self.before(inputs), run()


class StepCache(Method):
    """Base: a subclass says its signal, the indicator, and what else it keeps of a run."""

    varies: ClassVar[bool] = True
    uneven: ClassVar[bool] = True
    threshold: float
    decision: str
    first: int
    last: int
    reuse: str

    def __post_init__(self) -> None:
        check_float("cache.threshold", self.threshold, 0.0)
        check_int("cache.first", self.first, 1)
        check_int("cache.last", self.last, 0)
        for name, allowed in (("decision", DECISIONS), ("reuse", REUSE)):
            if (found := getattr(self, name)) not in allowed:
                raise unknown(f"cache.{name}", str(found), allowed)

    @property
    def joins_parts(self) -> bool:
        return True  # whether a sample runs is one decision

    @property
    @abstractmethod
    def indicator(self) -> str:
        """What e_t is, in words."""

    def signal(self, node: Node, inner: Denoise) -> Signal:
        """Where the indicator looks."""
        return Signal()

    @abstractmethod
    def change(self, past: Rows, now: torch.Tensor, mean: Mean) -> torch.Tensor:
        """e_t (B,) of the signal `now` (B, ...) and of what is kept; nan: nothing can be said, so it runs.

        past: `seen`, the signal of the last evaluation, and what `learned` gave of the last run. mean: over what is
        decided together.
        """

    def learned(self, past: Rows | None, now: torch.Tensor, prediction: torch.Tensor, mean: Mean) -> Rows:
        """What else is kept of rows that ran; `past`: what was, if anything."""
        return {}

    def check(self, nets: Mapping[str, nn.Module], recipe: Any) -> None:
        for name, net in nets.items():
            if self.reuse == BLOCKS:
                check_blocks(net, name)

    def said(self, *more: str) -> str:
        """For a label: the threshold, and what is not usual in the settings."""
        usual = type(self)()
        found = [
            str(getattr(self, name)) for name in ("decision", "reuse") if getattr(self, name) != getattr(usual, name)
        ]
        found += [f"{self.first}+{self.last}"] * ((self.first, self.last) != (usual.first, usual.last))
        return ",".join([f"{self.threshold:g}", *more, *found])

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        words = f"{self.indicator}, by step and {self.decision.removeprefix('per_')}, and its sums over {LONGEST} steps"
        return Below(
            "threshold", self.threshold, words, True, ALWAYS, lambda value: replace(self, threshold=value), None,
            self._watched,
        )  # fmt: skip

    def _watched(self, recipe: Any, artefact: Learned) -> Watched:
        watched = Watching(self.with_numbers(artefact))
        return watched, watched.found

    def with_numbers(self, artefact: Learned) -> StepCache:
        """The method with the numbers of its artefact, whatever it was made for; ConfigError if they are missing."""
        return self

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        return self.attached(node, inner, None)

    def attached(self, node: Node, inner: Denoise, told: Told | None) -> Denoise:
        """`attach`, where `told`, if given, is told every indicator, and everything runs."""
        states: dict[Key, Past] = {}
        node.clock.on_reset(states.clear)
        node.state.append(states)
        keep = KEEPERS[resolved(self.reuse, node.net)](node, inner)
        deciding = _Deciding(self, node, keep, self.signal(node, inner), states, told)
        node.clock.on_reset(deciding.forget)
        return deciding


@dataclass
class _Deciding:
    """A step cache on one network: the denoiser."""

    cache: StepCache
    node: Node
    keep: Keeper
    signal: Signal
    states: dict[Key, Past]
    told: Told | None
    at: tuple[int, int, int] | None = None  # the evaluation that `ran` is of
    ran: dict[int, bool] = field(default_factory=dict)  # whether a sample ran in the first of its calls

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        clock, cache = self.node.clock, self.cache
        if not isinstance(inputs.sample, torch.Tensor):
            raise IncompatibleError(
                f"cache {cache.label} compares samples, and {type(self.node.net).__name__} takes a list of them; use "
                "cache=none."
            )
        keys = [(clock.slot, clock.call, part) for part in inputs.parts]
        past = gathered(self.states, keys, inputs)
        mean = DECISIONS[cache.decision](inputs)
        if past is None or always_runs(clock.step, clock.num_steps, cache.first, cache.last):
            now, (prediction, kept) = self.signal.during(inputs, lambda: self.keep.run(inputs))
            rows = {"kept": kept} | cache.learned(past, now, prediction, mean)
            total = torch.zeros(inputs.rows, dtype=exact(now), device=now.device)
            self._followed(inputs, [False] * inputs.rows)
        else:
            now, macs = self._before(inputs)
            total = mean(past["total"] + cache.change(past, now, mean))  # one for all that is decided together
            running = self._running(inputs, total)
            prediction, rows = self._evaluated(inputs, past, now, running, mean)
            if running:
                total = total.clone()
                total[send(running, total.device)] = 0
            if macs:
                clock.trace[-1] = replace(clock.trace[-1], macs=clock.trace[-1].macs + macs)
        parted(self.states, keys, inputs, {"seen": now, "total": total} | rows)
        return prediction

    def forget(self) -> None:
        """A trajectory begins."""
        self.at = None

    @property
    def _evaluation(self) -> tuple[int, int, int]:
        clock = self.node.clock
        return clock.runs, clock.step, clock.stage

    def _before(self, inputs: Inputs) -> tuple[torch.Tensor, int]:
        if self.node.count_macs and self.signal.costs:
            return count_macs(lambda: self.signal.before(inputs))
        return self.signal.before(inputs), 0

    def _running(self, inputs: Inputs, total: torch.Tensor) -> list[int]:
        """The rows that run; samples that do not are in the events."""
        clock = self.node.clock
        if self.told is not None:
            rows = [(clock.slot, clock.call, block.part, m) for block in inputs.blocks for m in block.samples]
            self.told(rows, total.tolist())
            return list(range(inputs.rows))
        first = self.at != self._evaluation
        below = self._followed(inputs, (total < self.cache.threshold).tolist() if first else None)
        if reused := dict.fromkeys(m for m, hit in zip(inputs.samples, below, strict=True) if hit):
            clock.mark(REUSED, reused)
        return [row for row, hit in enumerate(below) if not hit]

    def _followed(self, inputs: Inputs, below: list[bool] | None) -> list[bool]:
        """Whether each row is reused: as `below` says in the first call of an evaluation (None: in a later one), as it
        was then in later ones."""
        held = inputs.samples
        if self.at != self._evaluation:
            self.at, self.ran = self._evaluation, {}
        for member, hit in zip(held, below or (), strict=False):
            self.ran.setdefault(member, not hit)
        return [not self.ran.get(member, True) for member in held]

    def _evaluated(
        self, inputs: Inputs, past: Rows, now: torch.Tensor, running: list[int], mean: Mean
    ) -> tuple[torch.Tensor, Rows]:
        """The prediction, of which the rows `running` are fresh, and all that is kept but the signal and its sum."""
        cache, keep, node = self.cache, self.keep, self.node
        old = {name: tensor for name, tensor in past.items() if name not in ("seen", "total")}
        if not running:
            if not keep.noted:
                node.clock.note(node.name, REUSED, 0, 0 if node.count_macs else None)
            return keep.reuse(inputs, past["kept"]), old
        if len(running) == inputs.rows:
            prediction, kept = keep.run(inputs)
            return prediction, {"kept": kept} | cache.learned(past, now, prediction, mean)
        resting = [row for row in range(inputs.rows) if row not in set(running)]
        reused = keep.reuse(picked(inputs, resting), chosen(past, resting)["kept"])
        before, node.mode = node.mode, "partial"
        try:
            fresh, kept = keep.run(ran := picked(inputs, running))
        finally:
            node.mode = before
        own = now[send(running, now.device)]
        new = {"kept": kept} | cache.learned(chosen(past, running), own, fresh, DECISIONS[cache.decision](ran))
        prediction = fresh.new_empty(inputs.rows, *fresh.shape[1:])
        prediction = merged(merged(prediction, reused, resting), fresh, running)
        return prediction, {name: merged(old[name], new[name], running) for name in old}


def always_runs(step: int, num_steps: int, first: int, last: int) -> bool:
    """Whether solver step `step` of `num_steps` is one of the `first` or of the `last`."""
    return step < first or step >= num_steps - last


def exact(tensor: torch.Tensor) -> torch.dtype:
    """What its means are taken in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def magnitude(tensor: torch.Tensor) -> torch.Tensor:
    """Mean absolute value of each row (B,) of a tensor (B, ...)."""
    return tensor.to(exact(tensor)).abs().flatten(1).mean(1)


def relative_change(now: torch.Tensor, before: torch.Tensor, mean: Mean) -> torch.Tensor:
    """|now - before| / |before| (B,) of tensors (B, ...), both means over what is decided together."""
    return mean(magnitude(now - before)) / mean(magnitude(before))
