"""Training of a quantised network to give what the full one gives, on evaluations of the model's own trajectories.

Some layers have stand-ins with gradients; everything else runs quantised as it will. The loss of an iteration is
|f^(x) - f(x)|^2 of the output, f in full precision, plus the objective's own part; Adam, steps that decay to zero along
a cosine. Iteration i draws its batch by a generator seeded by (seed, i), so that an interrupted training goes on as if
it had not been.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import Node
from accel.core.job import Job
from accel.core.trajectory import Trajectory
from accel.precision.simulated.calibration import evaluate, predict
from accel.precision.simulated.calibration_sets import Call
from accel.precision.simulated.quantised import InputQuantiser, QuantisedLayer, channel_dim, swap

KEPT_EVERY = 250  # iterations
Outputs = Mapping[str, torch.Tensor]  # of modules, by name


class Objective:
    """What is asked beside the network's output. `watched`: names of the modules whose outputs it compares."""

    watched: Iterable[str] = ()

    def begin(self, wanted: Outputs, trained: Mapping[str, nn.Module]) -> None:
        """`wanted`: outputs of the full network on the first batch; `trained`: the stand-ins."""

    def step(self, progress: float) -> None:
        """Before every iteration; progress in [0, 1)."""

    def loss(self, wanted: Outputs, found: Outputs) -> torch.Tensor | float:
        """Added to the loss; outputs of the full network and of the one in training."""
        return 0.0


@dataclass(frozen=True)
class Training:
    """So many `iterations` on batches of `batch` rows; under `name` a job keeps how far it is."""

    name: str
    iterations: int
    batch: int
    seed: int = 0

    def run(
        self,
        network: str,
        net: nn.Module,
        calls: Sequence[Call],
        prepare: Callable[[Node], None],
        artefact: Mapping[str, torch.Tensor],
        stand_in: Callable[[str, QuantisedLayer], nn.Module],
        layers: Iterable[str],
        rates: Callable[[Mapping[str, nn.Module]], list[dict[str, Any]]],
        objective: Objective,
        job: Job,
    ) -> Mapping[str, nn.Module]:
        """The trained stand-ins of `layers`, by name; `rates(stand-ins)`: Adam's groups.

        `stand_in(name, layer)` makes each of the layer that `prepare` put into `net`; `net` is left as it was.
        """
        full, clock = copy.deepcopy(net), Trajectory()
        with ExitStack() as undo:
            prepare(Node(network, net, clock, undo, artefact=artefact))
            trained = {k: stand_in(k, net.get_submodule(k)) for k in layers}
            for k, module in trained.items():
                swap(net, k, module, undo)
            wanted, found = (undo.enter_context(outputs(n, objective.watched)) for n in (full, net))
            evaluate(network, full, self._drawn(calls, 0))
            objective.begin(wanted, trained)
            optimizer = torch.optim.Adam(rates(trained))
            peaks = [group["lr"] for group in optimizer.param_groups]
            name = f"{network}/{self.name}"
            for i in range(job.resume(name, optimizer), self.iterations):
                decay = 0.5 * (1 + math.cos(math.pi * i / self.iterations))
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * decay
                call = self._drawn(calls, i)
                clock.stage, clock.num_steps = call.step, call.steps
                objective.step(i / self.iterations)
                target = evaluate(network, full, call)
                with torch.enable_grad():
                    loss = (predict(network, net, call) - target).square().mean() + objective.loss(wanted, found)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                optimizer.step()
                if (i + 1) % KEPT_EVERY == 0 or i + 1 == self.iterations:
                    job.state(name, optimizer, i + 1)
                job.on_step(i + 1, self.iterations)
        return trained

    def _drawn(self, calls: Sequence[Call], iteration: int) -> Call:
        """Random rows of a random evaluation."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        call = calls[int(torch.randint(len(calls), (1,), generator=generator))]
        rows = torch.randint(call.inputs.rows, (min(self.batch, call.inputs.rows),), generator=generator)
        return call.picked(rows.tolist())


class LearnedInputs(nn.Module):
    """An input quantiser whose scales have gradients (LSQ); begins at exactly what `quantiser` does."""

    def __init__(self, quantiser: InputQuantiser, dim: int) -> None:
        super().__init__()
        self.quantiser, self.dim = quantiser, dim
        own = torch.tensor(quantiser.parameters)  # (groups, slices, 2)
        self.log_scale = nn.Parameter(own[..., 0].log())
        self.register_buffer("zero", own[..., 1])

    @classmethod
    def of(cls, quantised: QuantisedLayer) -> LearnedInputs | None:
        """That of a layer's own quantiser, if it has one."""
        return None if quantised.inputs is None else cls(quantised.inputs, channel_dim(quantised.layer))

    def limits(self) -> torch.Tensor:
        """The range that the levels cover: (groups, slices, 2), or (2,) of a single quantiser."""
        scale, top = self.log_scale.detach().exp(), self.quantiser.levels.high
        found = torch.stack([-self.zero * scale, (top - self.zero) * scale], -1)
        return found.flatten() if found.numel() == 2 else found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        group = self.quantiser.group() if len(self.zero) > 1 else 0
        scale, zero = self.log_scale[group].exp(), self.zero[group]
        parts = x.split(self.quantiser.channels, self.dim) if len(zero) > 1 else (x,)
        levels = self.quantiser.levels
        return torch.cat([levels.learned(p, s, z) for p, s, z in zip(parts, scale, zero, strict=True)], self.dim)


@contextmanager
def outputs(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The last output of each of the modules, by name."""
    seen: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name in names:

            def note(module, args, output, name=name):
                seen[name] = output

            hooks.callback(net.get_submodule(name).register_forward_hook(note).remove)
        yield seen
