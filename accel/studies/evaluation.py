"""How the recipes of a study are evaluated: number of samples, batches, timing, device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from accel.errors import ConfigError, Refusals, check_bool, check_int
from accel.metrics.similarity import Similarity, check_metrics
from accel.metrics.verdicts import Margins
from accel.studies.calibration import CALIBRATION_SEED

MIN_N = 60
WHY_N = "20 jackknife groups of three samples, which every interval comes from"
DEVICES = re.compile(r"auto|cpu|(cuda|xpu|mps)(:\d+)?")


@dataclass(frozen=True)
class Evaluation:
    """How recipes are evaluated. `n`, `seed` and `distance_n` change numbers; the rest only how they are computed, and
    `margins` only how tables read them. `reference_metrics` (of accel.metrics.similarity) adds values to those of the
    compared samples; `lpips_weights` is AlexNet's file, which lpips needs."""

    n: int = 512
    seed: int = 0
    distance_n: int = 128
    batch: int = 64
    shard: int = 64
    controls: bool = True
    timing: bool = True
    timing_batch: int = 8
    repetitions: int = 9
    device: str = "auto"
    margins: Margins = field(default_factory=Margins)
    reference_metrics: Sequence[str] = ()
    lpips_weights: str | None = None

    def __post_init__(self) -> None:
        with Refusals() as refusals:
            for name in ("n", "distance_n"):
                refusals.ask(check_int, f"evaluation.{name}", getattr(self, name), MIN_N, why=WHY_N)
            for name in ("batch", "shard", "timing_batch"):
                refusals.ask(check_int, f"evaluation.{name}", getattr(self, name), 1)
            refusals.ask(check_int, "evaluation.repetitions", self.repetitions, 3)
            refusals.ask(check_int, "evaluation.seed", self.seed, 0)
            for name in ("controls", "timing"):
                refusals.ask(check_bool, f"evaluation.{name}", getattr(self, name))
            refusals.ask(self.resolve_device)
            names = refusals.ask(
                check_metrics, "evaluation.reference_metrics", self.reference_metrics, self.lpips_weights
            )
            object.__setattr__(self, "reference_metrics", names)
            if not isinstance(self.margins, Margins):
                refusals.add(ConfigError(f"evaluation.margins is {self.margins!r}; allowed: a margin for each value."))
            if self.seed == CALIBRATION_SEED:
                refusals.add(
                    ConfigError(f"evaluation.seed {self.seed} is the seed of calibration samples; choose another.")
                )

    @property
    def compared(self) -> int:
        """Samples compared with the converged trajectory: `distance_n` up to whole shards, at most n."""
        return min(self.n, -(-self.distance_n // self.shard) * self.shard)

    @property
    def similarity(self) -> Similarity | None:
        """What compares pictures of the same seed; None without reference metrics."""
        return Similarity(self.reference_metrics, self.lpips_weights) if self.reference_metrics else None

    def resolve_device(self) -> str:
        """The device that is meant; ConfigError if there is none of that name here."""
        if not isinstance(self.device, str) or not DEVICES.fullmatch(self.device):
            raise ConfigError(
                f"evaluation.device is {self.device!r}; allowed: auto, cpu, cuda or cuda:<number>, xpu, mps."
            )
        if self.device == "auto":
            return "cuda" if device_count("cuda") else "cpu"
        kind, _, number = self.device.partition(":")
        if kind != "cpu" and not (count := device_count(kind)):
            raise ConfigError(
                f"evaluation.device={self.device}, but torch sees no GPU of that kind; use evaluation.device=cpu."
            )
        if number and int(number) >= count:
            raise ConfigError(f"evaluation.device={self.device}; allowed: {kind}:0 to {kind}:{count - 1}.")
        return self.device


def device_count(kind: str) -> int:
    """How many devices of a kind (cuda, xpu, mps) torch can use here."""
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0
