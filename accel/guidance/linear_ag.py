"""LinearAG: every other unconditional prediction is a linear combination of earlier predictions.

Castillo et al. 2023, "Adaptive Guidance", AAAI 2025 (arXiv:2312.12487). The paper's: unconditional evaluations of the
first half of the trajectory are "replaced by simple affine transformations of past score estimates"; the coefficients,
scalars, come from ordinary least squares on the trajectories of about 200 generated images; evaluations with true CFG
(two rows) and with the estimate (one row) alternate; 25 evaluations in place of 40 for 20 steps. That count leaves one
row for each evaluation of the second half, which is therefore conditional. The equations were not at hand; ours are,
for an evaluation j that estimates,

    u_j = sum_{i <= j} a_ij c_i + sum_{i < j, i evaluated} b_ij u_i

with c_i, u_i the conditional and unconditional eps of evaluation i. Earlier estimates are no regressors: they are
linear combinations of the others already. There is no constant term. `space` fits x_0 or v instead of eps.

Fit: trajectories with CFG at every evaluation, of `samples` generated samples; all elements of all samples are
equations of one least-squares problem for each j, solved by an incremental QR decomposition in float64, so that memory
does not grow with the samples. `held_out` further samples measure the error. The numbers belong to the weights, the
sampler, grid and number of steps, the guidance scale and the null condition: another negative prompt has another u,
about which they know nothing. Shapes: predictions (2 B, C, ...), coefficients (J, 2 K) for K evaluations in the part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from accel.core.artefacts import unlike
from accel.core.denoiser import denoiser_name
from accel.core.guidance import Guidance, Scaled, halves, joined
from accel.core.recipe import accelerate
from accel.digests import settings_digest, weights_digest
from accel.errors import AccelError, ConfigError, check_float, check_int, unknown
from accel.guidance.cfg import CFG
from accel.guidance.spaces import SPACES, latents, level, own, replaced

AFTER = ("conditional", "cfg")
FIT_BATCH = 16
Past = dict[int, tuple[torch.Tensor, torch.Tensor | None]]  # evaluation -> (c, u), u None where it was estimated


@dataclass(frozen=True)
class Coefficients:
    """A fit: (a_0, ..., a_j, b_0, b_2, ...) for each estimating evaluation j, and the timesteps it belongs to."""

    rows: Mapping[int, tuple[float, ...]]
    timesteps: tuple[float, ...]


@dataclass(frozen=True)
class LinearAG(Scaled):
    """CFG of `scale` that estimates every other unconditional prediction in the first `part` of the evaluations.

    `after`: what the rest does, `conditional` or `cfg`. `samples` and `held_out`: generated samples to fit and to
    measure the fit. `fitted`: the coefficients; None takes them from an artefact.
    """

    part: float = 0.5
    after: str = "conditional"
    space: str = "eps"
    samples: int = 64
    held_out: int = 32
    fitted: Coefficients | None = None
    remembers: ClassVar[bool] = True
    changes_conditional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("guidance.part", self.part, 0.0, 1.0)
        check_int("guidance.samples", self.samples, 1)
        check_int("guidance.held_out", self.held_out, 1)
        if self.after not in AFTER:
            raise unknown("guidance.after", str(self.after), AFTER)
        if self.space not in SPACES:
            raise unknown("guidance.space", str(self.space), SPACES)

    @property
    def label(self) -> str:
        return f"linear_ag{self.scale:g}({self.part:g},{self.after})"

    @property
    def exact(self) -> Guidance:
        return CFG(self.scale)

    @property
    def calibrated(self) -> bool:
        return self.fitted is None and self.scale > 1 and self.part > 0

    def first(self, evaluations: int) -> int:
        """How many evaluations the first part has, of which each second one estimates."""
        return round(self.part * evaluations)

    def guide(self, inputs, inner, node):
        j, first = node.clock.stage, self.first(node.clock.stages)
        if j == 0 and first > 1:
            self._check_timesteps(node.clock.timesteps.tolist())
        if j >= first and self.after == "cfg":
            return inner(inputs)
        if j >= first:
            cond = inner(inputs.take("cond"))
            return joined(cond, cond, inputs)
        past: Past = node.memory.setdefault("past", {})
        if j not in estimating(first):
            prediction = inner(inputs)
            past[j] = observed(prediction, inputs, self.space, node.clock)
            return prediction
        cond, at = inner(inputs.take("cond")), level(node.clock)
        x = latents(inputs.take("cond"), cond)
        past[j] = (at.to(self.space, own(cond, x), x), None)
        estimate = linear_ag(self.fitted.rows[j], regressors(past, j))
        return joined(replaced(cond, at.back(self.space, estimate, x)), cond, inputs)

    def _check_timesteps(self, found: list[float]) -> None:
        wanted = list(self.fitted.timesteps)
        if len(found) != len(wanted) or any(abs(a - b) > 1e-6 for a, b in zip(found, wanted, strict=True)):
            raise AccelError(
                f"LinearAG was fitted for the timesteps {_few(wanted)}, this trajectory has {_few(found)}; fit it for "
                "this sampler, grid and number of steps, and start from pure noise."
            )

    # fit -----------------------------------------------------------------------------------------------------------

    def calibrate(self, pipe: Any, recipe: Any, sample: Callable[[Any, int, int], Any]) -> dict[str, torch.Tensor]:
        """The artefact: coefficients, what they belong to, and their errors.

        `sample(recipe, start, stop)` generates those samples of `pipe`, which runs that recipe meanwhile. Errors are
        relative, root mean square, for each estimating evaluation: `fit` and `held_out` against u, `missed` against
        u - c on held-out samples, where 1 is as far off as no guidance.
        """
        recorder = _Recorder(self.scale, self.space)
        plain = replace(recipe, guidance=recorder)
        systems: dict[int, LeastSquares] = defaultdict(LeastSquares)
        squares: dict[int, torch.Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
        with accelerate(pipe, plain) as run:

            def equations(start: int, stop: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
                for a in range(start, stop, FIT_BATCH):
                    recorder.trajectories.clear()
                    sample(plain, a, min(a + FIT_BATCH, stop))
                    for past in recorder.trajectories:
                        for j in estimating(self.first(run.clock.stages)):
                            cond, uncond = (_column(v) for v in past[j])
                            yield j, torch.cat([_column(v) for v in regressors(past, j)], 1), uncond, cond

            for j, features, uncond, _ in equations(0, self.samples):
                systems[j].add(features, uncond)
            rows = {j: system.solution() for j, system in systems.items()}
            for j, features, uncond, cond in equations(self.samples, self.samples + self.held_out):
                errors = (features @ rows[j][:, None] - uncond, uncond, uncond - cond)
                squares[j] += torch.stack([e.square().sum() for e in errors])
            timesteps, width = run.clock.timesteps.double(), 2 * self.first(run.clock.stages)
        coefficients = torch.zeros(len(rows), width, dtype=torch.float64)
        for out, row in zip(coefficients, rows.values(), strict=True):
            out[: len(row)] = row
        return {
            "evaluations": torch.tensor(list(rows), dtype=torch.int64),
            "coefficients": coefficients,
            "fit": torch.tensor([system.error() for system in systems.values()], dtype=torch.float64),
            "held_out": torch.tensor([float((e[0] / e[1]).sqrt()) for e in squares.values()], dtype=torch.float64),
            "missed": torch.tensor([float((e[0] / e[2]).sqrt()) for e in squares.values()], dtype=torch.float64),
            "timesteps": timesteps,
            **self._made_for(pipe, recipe),
        }

    def prepared(self, pipe: Any, recipe: Any, artefact: Mapping[str, torch.Tensor] | None = None) -> LinearAG:
        """This guidance with its coefficients; ConfigError if they are missing or belong to something else."""
        if not self.calibrated:
            return self
        if artefact is None:
            raise ConfigError(
                "the coefficients of LinearAG are still to be fitted; run the recipe through `python -m accel` (the "
                "artefact is then below results/artefacts/), or pass artefacts={'guidance': guidance.calibrate(...)}."
            )
        if other := unlike(artefact, self._made_for(pipe, recipe)):
            raise ConfigError(
                f"the coefficients of LinearAG were fitted for another {other}; fit them again for this recipe."
            )
        pairs = zip(artefact["evaluations"].tolist(), artefact["coefficients"].tolist(), strict=True)
        rows = {j: tuple(row[: j + 1 + (j + 1) // 2]) for j, row in pairs}
        return replace(self, fitted=Coefficients(rows, tuple(artefact["timesteps"].tolist())))

    def _made_for(self, pipe: Any, recipe: Any) -> dict[str, torch.Tensor]:
        settings = {"scale": self.scale, "part": self.part, "space": self.space}
        parts = {"sampler": recipe.sampler, "grid": recipe.grid, "guidance": settings}
        model = weights_digest(getattr(pipe, denoiser_name(pipe)))
        return {name: settings_digest(part) for name, part in parts.items()} | {"model": model}


def observed(prediction: torch.Tensor, inputs: Any, space: str, clock: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(c, u) in `space` of a doubled batch's prediction."""
    uncond, cond = halves(prediction, inputs)
    x, at = latents(inputs.take("cond"), cond), level(clock)
    return at.to(space, own(cond, x), x), at.to(space, own(uncond, x), x)


def estimating(first: int) -> range:
    """Which evaluations of the `first` ones estimate u: 1, 3, 5, ...; the others evaluate it."""
    return range(1, first, 2)


def linear_ag(weights: Sequence[float], values: Sequence[torch.Tensor]) -> torch.Tensor:
    """u_j = sum_i w_i v_i: the weights (a_0, ..., a_j, b_0, b_2, ...) of one row of the fit, v its `regressors`."""
    return sum(w * v for w, v in zip(weights, values, strict=True))


def regressors(past: Past, j: int) -> list[torch.Tensor]:
    """What the unconditional prediction of evaluation j is made of: c_0, ..., c_j, then u_0, u_2, ... before j."""
    return [past[i][0] for i in range(j + 1)] + [past[i][1] for i in range(0, j, 2)]


class LeastSquares:
    """min |A w - y| over equations that come in blocks: only the triangle of a QR decomposition of [A y] is kept."""

    def __init__(self) -> None:
        self.triangle: torch.Tensor | None = None

    def add(self, features: torch.Tensor, target: torch.Tensor) -> None:
        """Equations `features` (M, K) w = `target` (M, 1)."""
        block = torch.cat([features, target], 1)
        block = block if self.triangle is None else torch.cat([self.triangle, block])
        self.triangle = torch.linalg.qr(block, mode="r").R

    def solution(self) -> torch.Tensor:
        """w (K,), the shortest where it is not unique."""
        features, target = self.triangle[:, :-1], self.triangle[:, -1:]
        return torch.linalg.lstsq(features, target, driver="gelsd").solution[:, 0]

    def error(self) -> float:
        """|A w - y| / |y| of the solution."""
        features, target = self.triangle[:, :-1], self.triangle[:, -1]
        return float((features @ self.solution() - target).norm() / target.norm())


@dataclass(frozen=True)
class _Recorder(CFG):
    # CFG that keeps both predictions of every evaluation, a trajectory at a time.
    space: str = "eps"
    trajectories: list[Past] = field(default_factory=list)
    remembers: ClassVar[bool] = True

    def guide(self, inputs, inner, node):
        prediction, j = inner(inputs), node.clock.stage
        if j == 0:
            self.trajectories.append({})
        self.trajectories[-1][j] = observed(prediction, inputs, self.space, node.clock)
        return prediction


def _column(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().double().reshape(-1, 1)


def _few(values: list[float]) -> str:
    shown = [f"{v:g}" for v in values]
    return "[" + ", ".join(shown if len(shown) < 7 else [*shown[:3], "...", *shown[-2:]]) + "]"
