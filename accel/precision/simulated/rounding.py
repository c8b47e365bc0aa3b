"""Which level each weight becomes: to the nearest, or learned so that a layer's (or block's) output changes least.

Each scheme turns a weight w, rows (G, n), with scales s (G, 1), into levels times scales, by parameters that gradient
descent moves while the network's own activations pass through. What is minimised is
|| f(x) - f^(x) ||^2 per output number, over the calibration set, plus the scheme's penalty.

* AdaRound (Nagel et al. 2020, arXiv:2004.10568): w^ = s clamp(floor(w / s) + h(v), lo, hi), each weight goes up or
  down; h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1), penalty lambda sum(1 - |2 h(v) - 1|^beta), beta from 20 to 2.
* FlexRound (Lee et al. 2023, arXiv:2306.00317): w^ = s round(w / (s e^(a + b + c))), with a for each weight, b for each
  output row and c for each input column: large weights may move by several levels. The scale s is learned, too.
* AdaQuant (Hubara et al. 2021, arXiv:2006.10518): w^ = s round((w + v) / s), offset v and scale s learned.
Deviations: inputs come from the full-precision network, not from the one quantised so far, so that units are
independent of each other; gradients of rounding are straight-through in the latter two. AdaRound takes a larger step
and lambda than the authors (1e-3 and 0.01 in 10,000 iterations), which bring it to an end in hundreds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from accel.errors import check_float, check_int, unknown
from accel.precision.simulated.levels import Levels

UNITS = ("layer", "block")
ZETA, GAMMA = 1.1, -0.1  # AdaRound's stretched sigmoid
WARM = 0.2  # share of the iterations before AdaRound's penalty sets in
BETA = (20.0, 2.0)


@dataclass(frozen=True)
class Rounding(ABC):
    """Base: `iterations` of Adam on batches of `batch` rows for each `unit`, a layer or a block."""

    iterations: int = 500
    lr: float = 1e-2
    batch: int = 16
    unit: str = "layer"
    name: ClassVar[str] = ""
    decays: ClassVar[bool] = True  # the learning rate, to zero: straight-through gradients end in oscillation otherwise

    def __post_init__(self) -> None:
        check_int("rounding.iterations", self.iterations, 1)
        check_int("rounding.batch", self.batch, 1)
        check_float("rounding.lr", self.lr, 0.0, 10.0)
        if self.unit not in UNITS:
            raise unknown("rounding.unit", str(self.unit), UNITS)

    @property
    def label(self) -> str:
        return self.name + ("/block" if self.unit == "block" else "")

    @abstractmethod
    def start(self, weight: torch.Tensor, scale: torch.Tensor, levels: Levels) -> RoundedWeight:
        """The trainable weight that begins at nearest rounding (or as near to it as the scheme allows)."""


class RoundedWeight(nn.Module, ABC):
    """A weight (G, n) on levels, differentiable in its parameters. `soft()` while training, `hard()` at the end."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, levels: Levels) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("weight", weight)
        self.register_buffer("zero", torch.zeros_like(scale))

    @abstractmethod
    def soft(self) -> torch.Tensor:
        """The weight with gradients."""

    def hard(self) -> torch.Tensor:
        return self.soft().detach()

    def penalty(self, progress: float) -> torch.Tensor | float:
        """Added to the loss; progress in [0, 1]."""
        return 0.0


@dataclass(frozen=True)
class AdaRound(Rounding):
    """Each weight goes to the level above or below; `weight`: lambda of the penalty."""

    lr: float = 3e-2
    weight: float = 0.1
    name: ClassVar[str] = "adaround"
    decays: ClassVar[bool] = False

    def start(self, weight, scale, levels) -> RoundedWeight:
        return _UpOrDown(weight, scale, levels, self.weight)


class _UpOrDown(RoundedWeight):
    def __init__(self, weight, scale, levels, strength) -> None:
        super().__init__(weight, scale, levels)
        self.strength = strength
        self.register_buffer("scale", scale)
        self.register_buffer("floor", (weight / scale).floor())
        rest = (weight / scale - self.floor).clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(torch.logit((rest - GAMMA) / (ZETA - GAMMA)))  # h(v) is the rest: the weight itself

    def up(self) -> torch.Tensor:
        return (self.v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def soft(self) -> torch.Tensor:
        return (self.floor + self.up()).clamp(self.levels.low, self.levels.high) * self.scale

    def hard(self) -> torch.Tensor:
        up = (self.up() >= 0.5).to(self.floor.dtype)
        return ((self.floor + up).clamp(self.levels.low, self.levels.high) * self.scale).detach()

    def penalty(self, progress: float) -> torch.Tensor | float:
        if progress < WARM:
            return 0.0
        beta = BETA[0] + (BETA[1] - BETA[0]) * (progress - WARM) / (1 - WARM)
        return self.strength * (1 - (2 * self.up() - 1).abs().pow(beta)).sum()


@dataclass(frozen=True)
class FlexRound(Rounding):
    """Weights are divided by learned factors before they are rounded."""

    lr: float = 3e-3
    name: ClassVar[str] = "flexround"

    def start(self, weight, scale, levels) -> RoundedWeight:
        return _Divided(weight, scale, levels)


class _Divided(RoundedWeight):
    def __init__(self, weight, scale, levels) -> None:
        super().__init__(weight, scale, levels)
        self.log_scale = nn.Parameter(scale.log())
        self.each = nn.Parameter(torch.zeros_like(weight))
        self.row = nn.Parameter(torch.zeros_like(weight[:, :1]))
        self.column = nn.Parameter(torch.zeros_like(weight[:1]))

    def soft(self) -> torch.Tensor:
        divided = self.weight / (self.each + self.row + self.column).exp()
        return self.levels.learned(divided, self.log_scale.exp(), self.zero)


@dataclass(frozen=True)
class AdaQuant(Rounding):
    """A learned offset is added to each weight before it is rounded."""

    lr: float = 1e-3
    name: ClassVar[str] = "adaquant"

    def start(self, weight, scale, levels) -> RoundedWeight:
        return _Shifted(weight, scale, levels)


class _Shifted(RoundedWeight):
    def __init__(self, weight, scale, levels) -> None:
        super().__init__(weight, scale, levels)
        self.log_scale = nn.Parameter(scale.log())
        self.offset = nn.Parameter(torch.zeros_like(weight))

    def soft(self) -> torch.Tensor:
        return self.levels.learned(self.weight + self.offset, self.log_scale.exp(), self.zero)


def fit(
    scheme: Rounding,
    weights: list[RoundedWeight],
    error: Callable[[torch.Tensor], torch.Tensor],
    rows: int,
    seed: int = 0,
) -> list[float]:
    """Minimise `error(indices of a batch of rows)`, the squared output error of the unit that holds `weights`, over
    their parameters; returns the error of every iteration."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for w in weights for p in w.parameters()], lr=scheme.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, scheme.iterations)
    errors = []
    with torch.enable_grad():
        for i in range(scheme.iterations):
            index = torch.randint(0, rows, (min(scheme.batch, rows),), generator=generator)
            found = error(index)
            errors.append(float(found.detach()))
            loss = found + sum(w.penalty(i / scheme.iterations) for w in weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if scheme.decays:
                decay.step()
    return errors
