"""Students of a suite in a recipe, and what each family of them can be driven by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from accel.core.denoiser import Denoise, Node
from accel.core.method import LATER
from accel.core.student import Contract, Student, contract_of
from accel.errors import ConfigError, IncompatibleError, check_float, unknown
from accel.guidance import CFG
from accel.samplers.grids import ExplicitGrid
from accel.samplers.noise import adds_noise
from accel.students.told import telling, width_of

# One evaluation a step, and the output a prediction of x_0 at its own time.
PREDICTING = (
    "DEISScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
    "IPNDMScheduler", "FlowMatchEulerDiscreteScheduler",
)  # fmt: skip
RENOISING = ("LCMScheduler", "FlowMatchLCMScheduler")


@dataclass(frozen=True)
class Kind:
    """What a family of students can be driven by. `schedulers`: classes of one evaluation a step that do; `refused`:
    what is wrong with others, in words; `use`: samplers that do; `renoised`: whether new noise between its steps is
    what it was made for; `free`: whether it runs at other times than its contract's, too; `alike`: whether it does what
    its teacher does, under whatever drives that, and has no times of its own; `told`: whether it is told the guidance
    scale, in a range; `follows`: whether it leads where its teacher's trajectories do."""

    schedulers: tuple[str, ...]
    refused: str
    use: tuple[str, ...]
    renoised: bool = False
    free: bool = False
    alike: bool = False
    told: bool = False
    follows: bool = True

    def drives(self, name: str, noisy: bool, steps: int) -> bool:
        """Whether a scheduler of the class `name`, which adds noise or does not, drives a student of `steps` steps. At
        a single one each that asks for x_0 there ends at it, so that they are all the same."""
        single = steps == 1 and name in PREDICTING and not noisy
        return single or (name in self.schedulers and (self.renoised or not noisy))


# Multistep solvers of a step-halving student extrapolate from endpoints, which no theory covers; measured here, they
# help (results/tables/students_digits.md), and their name in the label says what runs.
KINDS: Mapping[str, Kind] = {
    "endpoint": Kind(
        PREDICTING,
        "it predicts where the trajectory of a whole segment ends, so re-noising and solvers of several evaluations a "
        "step, which ask what it predicts elsewhere, do not apply",
        ("ddim_accel", "dpmpp_2m", "deis_tab"),
    ),
    "distribution": Kind(
        RENOISING,
        "it makes an image of whatever it is given, of which only new noise makes an input of its next step again; it "
        "follows no trajectory",
        ("lcm", "flow_lcm"),
        renoised=True,
        follows=False,
    ),
    "consistency": Kind(
        RENOISING,
        "it predicts where a trajectory ends, and a step to anywhere else is none that it learned: new noise leads to "
        "its next time",
        ("lcm", "flow_lcm"),
        renoised=True,
        free=True,
    ),
    "guided": Kind((), "", ("ddim",), free=True, alike=True),
    "told": Kind((), "", ("ddim",), free=True, alike=True, told=True),
    "straightened": Kind((), "", ("flow_euler",), free=True, alike=True),
}


@dataclass(frozen=True)
class Distilled(Student):
    """The student `model` of the suite, at the timesteps `times` of its contract. `on_top`: allow classifier-free
    guidance on top of it, which multiplies with what is built in and was never trained. `kind` and `guidance`, the
    scale that is built in: those of its contract, or one of a range there, which the network is told."""

    uneven: ClassVar[bool] = True
    model: str = ""
    times: tuple[float, ...] = ()
    on_top: bool = False
    kind: str = field(default="endpoint", metadata=LATER)
    guidance: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("student.model is empty; give the name of a student of the suite, or student=none.")
        if self.kind not in KINDS:
            raise unknown("student.kind", str(self.kind), KINDS)
        check_float("student.guidance", self.guidance, 0.0)
        if self.times or not KINDS[self.kind].alike:
            object.__setattr__(self, "times", ExplicitGrid(timesteps=self.times).timesteps)
        object.__setattr__(self, "times", tuple(self.times))

    @property
    def built_in(self) -> CFG | None:
        return CFG(self.guidance) if self.guidance != 1 else None

    def follows(self, steps: int) -> bool:
        kind = KINDS[self.kind]
        return kind.follows and (steps == 1 or not kind.renoised)

    @property
    def grid(self) -> ExplicitGrid | None:
        return ExplicitGrid(name=self.model, timesteps=self.times) if self.times else None

    @property
    def label(self) -> str:
        told = f"(s{self.guidance:g})" if KINDS[self.kind].told else ""
        return self.model + told + ("(guided)" if self.on_top else "")

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        return telling(node, inner, self.guidance) if KINDS[self.kind].told else inner

    def check(self, nets, recipe) -> None:
        if KINDS[self.kind].told:
            width_of(nets["base"])

    def check_contract(self, contract, recipe) -> None:
        if contract.kind not in KINDS:
            raise unknown(f"kind of student {self.model!r}", str(contract.kind), KINDS)
        if contract.kind != self.kind:
            raise IncompatibleError(
                f"student {self.model!r} is a {contract.kind} student, and student.kind is {self.kind!r}; use "
                f"student.kind={contract.kind}."
            )
        low, high = contract.scales
        if not low <= self.guidance <= high:
            made = f"of scale {low:g}" if low == high else f"from {low:g} to {high:g}"
            use = f"{low:g}" if low == high else "one of these"
            raise IncompatibleError(
                f"student {self.model!r} was distilled at guidance {made}, and student.guidance is "
                f"{self.guidance:g}; use student.guidance={use}."
            )
        self._check_times(contract, recipe)
        self._check_guidance(contract, recipe)
        if self.built_in is not None and recipe.stitch is not None:
            raise IncompatibleError(
                f"student {self.model!r} is guided by itself, and the networks that stitch {recipe.stitch.label} takes "
                "for a part of the trajectory would not be guided there; use stitch=none."
            )
        if recipe.cache is not None and recipe.sampler is not None and recipe.sampler.steps == 1:
            raise IncompatibleError(
                f"cache {recipe.cache.label} keeps features from one step to the next, and student {self.model!r} has "
                "one step; use cache=none."
            )

    def _check_times(self, contract: Contract, recipe: Any) -> None:
        times = ", ".join(f"{time:g}" for time in contract.times)
        trained = f"student {self.model!r} was trained for {contract.steps} steps, at the timesteps {times}"
        kind = KINDS[contract.kind]
        if kind.alike or (kind.free and recipe.sampler is not None):
            return
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
        built = f"guidance of scale {self.guidance:g} is" if self.built_in else "no guidance was"
        raise IncompatibleError(
            f"student {self.model!r} is guided by {guidance.label}, and {built} built into it: it was never trained "
            "with more on top. Use guidance=none; student.on_top=true allows guidance=cfg all the same."
        )

    def check_around(self, scheduler, models) -> None:
        contract = contract_of(models[self.model])
        kind, name, noisy = KINDS[contract.kind], type(scheduler).__name__, adds_noise(scheduler)
        several = scheduler.config.get("variant") == "rhork"
        if not kind.alike and (several or not kind.drives(name, noisy, contract.steps)):
            how = " by Runge-Kutta" if several else " with noise" * (name in kind.schedulers)
            use = kind.use[0] if len(kind.use) == 1 else f"{', '.join(kind.use[:-1])} or {kind.use[-1]}"
            raise IncompatibleError(
                f"student {self.model!r} cannot be driven by {name}{how}: {kind.refused}; use sampler={use}."
            )


def _same(times: Sequence[float], others: Sequence[float]) -> bool:
    return len(times) == len(others) and np.allclose(times, others)
