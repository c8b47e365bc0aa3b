"""Few-step students: a network that was distilled from the pipeline's own, with a contract that says how to run it.

A student sits where the pipeline's denoiser does; stitches may name the original as `teacher`. What it learned holds
for one way of sampling only, so its contract travels with the network (`contracted`) and a recipe that breaks it is
refused before work: other steps or times than it was trained for, guidance on top of what is built in, a solver that
asks it for derivatives, a teacher that is not the pipeline's network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from accel.core.method import Method
from accel.digests import weights_hex
from accel.errors import ConfigError, IncompatibleError, unknown
from accel.files import load_fields, save_fields

TEACHER = "teacher"  # what a stitch calls the pipeline's own denoiser, where a student stands in its place
FILE = "student.json"
_NAME = "accel_student"
_TERMS = "accel_terms"


@dataclass(frozen=True)
class Contract:
    """How a student may be run. `kind`: of accel.students.KINDS; `times`: the timesteps that it was trained for,
    largest first (none: any, as its teacher), and `steps` their number; `guidance`: the scale that is built in (1:
    none), or the least and the greatest that it may be told; `teacher`: digest of the network that it stands for (hex,
    accel.digests.weights_hex); `bill`: what its training cost, all stages together (seconds, optimiser steps, samples,
    evaluations of each network, MACs), and what it saw (`data`)."""

    kind: str
    times: Sequence[float]
    teacher: str
    guidance: float | Sequence[float] = 1.0
    bill: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(time) for time in self.times))
        if not isinstance(self.guidance, (int, float)):
            object.__setattr__(self, "guidance", tuple(float(scale) for scale in self.guidance))

    @property
    def scales(self) -> tuple[float, float]:
        """The least and the greatest guidance scale that its images may have."""
        return self.guidance if isinstance(self.guidance, tuple) else (self.guidance, self.guidance)

    @property
    def steps(self) -> int:
        return len(self.times)

    def save(self, folder: Path) -> None:
        """Write it beside the weights in `folder`."""
        save_fields(folder / FILE, self)

    @classmethod
    def load(cls, folder: Path) -> Contract:
        """Of the student in `folder`; IntegrityError if there is none, or it is damaged."""
        return load_fields(cls, folder / FILE, "no contract of a student")


def contracted(net: nn.Module, contract: Contract) -> nn.Module:
    """`net`, which from now on is a student under `contract`."""
    setattr(net, _NAME, contract)
    return net


def contract_of(net: nn.Module) -> Contract | None:
    """The contract that `contracted` gave this network, if any."""
    return vars(net).get(_NAME)  # a module looks long for an attribute that it lacks


@dataclass(frozen=True)
class Run:
    """What is to run: a recipe, and the scheduler that it makes (its own, or the pipeline's)."""

    recipe: Any
    scheduler: Any


class Terms(Protocol):
    """How a pipeline's own denoiser, a student of others, may be run; accel.students.known has them."""

    def check(self, run: Run) -> None:
        """IncompatibleError where `run` asks for what the student was not made for."""


def under_terms(net: nn.Module, terms: Terms) -> nn.Module:
    """`net`, which recipes for a pipeline with it as its own denoiser are from now on held to `terms` of."""
    setattr(net, _TERMS, terms)
    return net


def check_terms(recipe: Any, own: nn.Module, scheduler: Any) -> None:
    """Raise with the reason if a recipe on a pipeline with the denoiser `own` breaks its terms, if it has any. The
    pipeline as it is, and the number of steps that its caller asks for, are the caller's."""
    terms, asked = vars(own).get(_TERMS), any(getattr(recipe, f.name) is not None for f in fields(recipe))
    if terms is not None and asked and not recipe.student:
        terms.check(Run(recipe, scheduler))


class Student(Method):
    """A distilled network in the place of the pipeline's denoiser: what a recipe asks of it."""

    model: str

    @property
    def built_in(self) -> Any:
        """The guidance that it was distilled with, whose images are its own: what it is held against has it. None:
        without."""
        return None

    def follows(self, steps: int) -> bool:
        """Whether its images in so many steps are those of its teacher from the same noise, so that a distance to them
        says something."""
        return True

    @property
    def grid(self) -> Any:
        """The grid of the timesteps that it was trained for, which a recipe without a grid gets; None: any."""
        raise TypeError(f"{type(self).__name__} does not say what its grid is")

    def find(self, models: Mapping[str, nn.Module]) -> nn.Module:
        """Its network among `models`; ConfigError or IncompatibleError if it is not there, or is no student."""
        if self.model in models and contract_of(models[self.model]):
            return models[self.model]
        students = [name for name, net in models.items() if contract_of(net)]
        if not students:
            raise IncompatibleError(f"this suite has no student, but {self.model!r} is named; use student=none.")
        raise ConfigError(f"{unknown('student', self.model, students)} Some are to be trained first: see accel train.")

    def check_contract(self, contract: Contract, recipe: Any) -> None:
        """IncompatibleError where `recipe` asks for what the student was not trained for."""

    def check_teacher(self, net: nn.Module, contract: Contract) -> None:
        """IncompatibleError unless `net`, the pipeline's own denoiser, is what the student was distilled from."""
        if (found := weights_hex(net)) != contract.teacher:
            raise IncompatibleError(
                f"student {self.model!r} was distilled from a network with the digest {contract.teacher[:12]}..., and "
                f"this pipeline's has {found[:12]}...: another teacher. Distil it anew from this one, or use "
                "student=none."
            )


def check_students(recipe: Any, own: nn.Module, nets: Mapping[str, nn.Module]) -> None:
    """Raise with the reason if a recipe on a pipeline with the denoiser `own`, which runs `nets`, breaks the contract
    of its student, or lets another part of the trajectory be a student's."""
    if recipe.student:
        contract = contract_of(nets["base"])
        recipe.student.check_contract(contract, recipe)
        recipe.student.check_teacher(own, contract)
    if wrong := [name for name, net in nets.items() if name != "base" and contract_of(net)]:
        raise IncompatibleError(
            f"{wrong[0]!r} is a student, whose contract holds in the place of the denoiser alone; use "
            f"student={wrong[0]} and name the pipeline's own as stitch.models=[{TEACHER}]."
        )
