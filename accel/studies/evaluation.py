"""How the recipes of a study are evaluated: number of samples, batches, timing, device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from accel.core.devices import resolved
from accel.errors import ConfigError, Refusals, check_bool, check_float, check_int
from accel.evaluation.intervals import LEAST
from accel.metrics.similarity import Similarity, check_metrics
from accel.metrics.statistics import MIN_N
from accel.metrics.verdicts import Margins
from accel.studies.calibration import CALIBRATION_SEED

WHY_N = "20 jackknife groups of three samples, or 6 of a period of ten classes, which every interval comes from"
WHY_ROUNDS = "fewer rounds have no 95 % interval of the median: even their range covers it with 1 - 2^(1-n)"
AUTO = "auto"


@dataclass(frozen=True)
class Evaluation:
    """How recipes are evaluated. `n`, `seed` and `distance_n` change numbers; the rest only how they are computed, and
    `margins` only how tables read them. `reference_metrics` (of accel.metrics.similarity) adds values to those of the
    compared samples; `lpips_weights` is AlexNet's file, which lpips needs. `held_out` adds the FID to held-out images.

    Times: rounds of recipe and baseline, at least `repetitions`, until half the width of the speed-up's interval is at
    most `timing_precision` of it, at most `most_repetitions`. `timing_batch`: images in one call, or several such
    numbers, for a record each; tables show the speed-up at each, the first one as the study's own.

    `seed`: a base seed, or several, whose `n` samples each are pooled as more samples of one estimate. `n` may be
    `auto`: `pilot` samples first, then as many as the verdicts need (`accel.studies.enough`), at most `most`.
    """

    n: int | str = 512
    pilot: int = 500
    most: int = 5000
    seed: int | Sequence[int] = 0
    distance_n: int = 128
    batch: int = 64
    shard: int = 64
    converged: bool = True
    controls: bool = True
    timing: bool = True
    timing_batch: int | Sequence[int] = (8, 1)
    repetitions: int = 9
    most_repetitions: int = 25
    timing_precision: float = 0.05
    device: str = "auto"
    margins: Margins = field(default_factory=Margins)
    reference_metrics: Sequence[str] = ()
    lpips_weights: str | None = None
    held_out: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "auto", self.n == AUTO)
        if self.auto:
            object.__setattr__(self, "n", self.pilot)
        with Refusals() as refusals:
            for name in ("pilot", "n", "distance_n", "most"):
                refusals.ask(check_int, f"evaluation.{name}", getattr(self, name), MIN_N, why=WHY_N)
            for name in ("batch", "shard"):
                refusals.ask(check_int, f"evaluation.{name}", getattr(self, name), 1)
            refusals.ask(self._check_batches)
            refusals.ask(check_int, "evaluation.repetitions", self.repetitions, LEAST, why=WHY_ROUNDS)
            least = self.repetitions if isinstance(self.repetitions, int) else LEAST
            refusals.ask(check_int, "evaluation.most_repetitions", self.most_repetitions, max(least, LEAST),
                         why="evaluation.repetitions, the least number of rounds")  # fmt: skip
            refusals.ask(check_float, "evaluation.timing_precision", self.timing_precision, 0.0, 1.0)
            refusals.ask(self._check_seeds)
            for name in ("converged", "controls", "timing", "held_out"):
                refusals.ask(check_bool, f"evaluation.{name}", getattr(self, name))
            refusals.ask(self.resolve_device)
            names = refusals.ask(
                check_metrics, "evaluation.reference_metrics", self.reference_metrics, self.lpips_weights
            )
            object.__setattr__(self, "reference_metrics", names)
            if not isinstance(self.margins, Margins):
                refusals.add(ConfigError(f"evaluation.margins is {self.margins!r}; allowed: a margin for each value."))

    def _check_seeds(self) -> None:
        several = not isinstance(self.seed, int)
        if several and (isinstance(self.seed, str) or not isinstance(self.seed, Sequence) or not self.seed):
            raise ConfigError(f"evaluation.seed is {self.seed!r}; allowed: a whole number, or a list of them.")
        if several:  # hashable, and one value for one meaning
            seeds = tuple(self.seed)
            object.__setattr__(self, "seed", seeds if len(seeds) > 1 else seeds[0])
        for seed in self.seeds:
            check_int("evaluation.seed", seed, 0)
            if seed == CALIBRATION_SEED:
                raise ConfigError(f"evaluation.seed {seed} is the seed of calibration samples; choose another.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"evaluation.seed is {list(self.seeds)}; allowed: different seeds.")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The base seeds, whose samples are pooled."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    @property
    def seed_text(self) -> int | str:
        """The base seed; of several their list, as text."""
        return self.seed if isinstance(self.seed, int) else ", ".join(map(str, self.seed))

    @property
    def samples(self) -> int:
        """All samples of a cell: `n` of each seed."""
        return self.n * len(self.seeds)

    @property
    def elsewhere(self) -> Evaluation:
        """The same evaluation on as many other seeds, the next ones, untimed."""
        first = max(self.seeds) + 1
        return replace(self, seed=tuple(range(first, first + len(self.seeds))), timing=False)

    def _check_batches(self) -> None:
        found = self.timing_batch
        several = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        whole = all(isinstance(b, int) and not isinstance(b, bool) and b >= 1 for b in several)
        if not several or not whole or len({*several}) < len(several):
            raise ConfigError(
                f"evaluation.timing_batch is {found!r}; allowed: an integer >= 1, or several different ones, such as "
                "[8, 1]."
            )

    @property
    def timing_batches(self) -> tuple[int, ...]:
        """The batches that are timed, the study's own first."""
        return (self.timing_batch,) if isinstance(self.timing_batch, int) else tuple(self.timing_batch)

    @property
    def compared(self) -> int:
        """Samples of each seed compared with the converged trajectory: `distance_n` up to whole shards, at most n."""
        return min(self.n, -(-self.distance_n // self.shard) * self.shard)

    @property
    def similarity(self) -> Similarity | None:
        """What compares pictures of the same seed; None without reference metrics."""
        return Similarity(self.reference_metrics, self.lpips_weights) if self.reference_metrics else None

    def resolve_device(self) -> str:
        """The device that is meant; ConfigError if there is none of that name here."""
        return resolved(self.device, "evaluation.device")
