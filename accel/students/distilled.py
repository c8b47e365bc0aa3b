"""Students of a suite in a recipe, and what each family of them can be driven by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.core.student import Contract, Student, contract_of
from accel.errors import ConfigError, IncompatibleError, unknown
from accel.samplers.grids import ExplicitGrid
from accel.samplers.noise import adds_noise


@dataclass(frozen=True)
class Kind:
    """What a family of students can be driven by. `schedulers`: classes of one evaluation a step that treat its output
    as a prediction of x_0 on its own times; `refused`: what is wrong with others, in words."""

    schedulers: tuple[str, ...]
    refused: str


# Multistep solvers of a step-halving student extrapolate from endpoints, which no theory covers; measured here, they
# help (results/tables/students_digits.md), and their name in the label says what runs.
KINDS: Mapping[str, Kind] = {
    "endpoint": Kind(
        ("DEISScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
         "IPNDMScheduler"),
        "it predicts where the trajectory of a whole segment ends, so re-noising and solvers of several evaluations a "
        "step, which ask what it predicts elsewhere, do not apply",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Distilled(Student):
    """The student `model` of the suite, at the timesteps `times` of its contract. `on_top`: allow classifier-free
    guidance on top of it, which multiplies with what is built in and was never trained."""

    model: str = ""
    times: tuple[float, ...] = ()
    on_top: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("student.model is empty; give the name of a student of the suite, or student=none.")
        object.__setattr__(self, "times", ExplicitGrid(timesteps=self.times).timesteps)

    @property
    def grid(self) -> ExplicitGrid:
        return ExplicitGrid(name=self.model, timesteps=self.times)

    @property
    def label(self) -> str:
        return self.model + ("(guided)" if self.on_top else "")

    def check_contract(self, contract, recipe) -> None:
        if contract.kind not in KINDS:
            raise unknown(f"kind of student {self.model!r}", str(contract.kind), KINDS)
        self._check_times(contract, recipe)
        self._check_guidance(contract, recipe)
        if recipe.cache is not None and contract.steps == 1:
            raise IncompatibleError(
                f"cache {recipe.cache.label} keeps features from one step to the next, and student {self.model!r} has "
                "one step; use cache=none."
            )

    def _check_times(self, contract: Contract, recipe: Any) -> None:
        times = ", ".join(f"{time:g}" for time in contract.times)
        trained = f"student {self.model!r} was trained for {contract.steps} steps, at the timesteps {times}"
        if not _same(self.times, contract.times):
            said = ", ".join(f"{time:g}" for time in self.times) or "none"
            raise IncompatibleError(f"{trained}, and student.times are {said}; use student.times=[{times}].")
        if recipe.sampler is None or recipe.sampler.steps != contract.steps:
            found = "the pipeline's own scheduler" if recipe.sampler is None else f"{recipe.sampler.steps} steps"
            raise IncompatibleError(f"{trained}, and this recipe has {found}; use sampler.steps={contract.steps}.")
        if not _same(getattr(recipe.grid, "timesteps", ()), contract.times):
            raise IncompatibleError(f"{trained}, and this recipe has grid {recipe.grid.name!r}; use grid=none.")

    def _check_guidance(self, contract: Contract, recipe: Any) -> None:
        guidance = recipe.guidance
        if guidance is None or (guidance.plain and self.on_top):
            return
        built = f"guidance of scale {contract.guidance:g} is" if contract.guidance != 1 else "no guidance was"
        raise IncompatibleError(
            f"student {self.model!r} is guided by {guidance.label}, and {built} built into it: it was never trained "
            "with more on top. Use guidance=none; student.on_top=true allows guidance=cfg all the same."
        )

    def check_around(self, scheduler, models) -> None:
        kind = KINDS[contract_of(models[self.model]).kind]
        name, noisy = type(scheduler).__name__, adds_noise(scheduler)
        several = scheduler.config.get("variant") == "rhork"
        if name not in kind.schedulers or noisy or several:
            how = " by Runge-Kutta" if several else " with noise" * (name in kind.schedulers)
            raise IncompatibleError(
                f"student {self.model!r} cannot be driven by {name}{how}: {kind.refused}; "
                "use sampler=ddim_accel, dpmpp_2m or deis_tab."
            )


def _same(times: Sequence[float], others: Sequence[float]) -> bool:
    return len(times) == len(others) and np.allclose(times, others)
