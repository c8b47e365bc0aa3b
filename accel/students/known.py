"""Students of others: what their makers say of how they are run, as contracts that recipes are held to.

A model that was distilled for few steps keeps no contract of ours beside its weights, but it has one: numbers of steps,
timesteps, a scheduler with its settings, guidance. `KNOWN` has those of published ones, from their model cards and the
documentation of diffusers (docs/students.md says which was not seen first-hand); `known_by` finds them by the names of
files and repositories. `under` puts a contract on a pipeline, and every recipe for it is checked (`Recipe.check`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accel.core.denoiser import denoiser_name
from accel.core.guidance import Guidance
from accel.core.recipe import Recipe
from accel.core.student import Run, under_terms
from accel.errors import IncompatibleError, unknown
from accel.registry import method
from accel.samplers.grids import ExplicitGrid, trailing
from accel.samplers.noise import adds_noise
from accel.samplers.noise_schedule import noise_schedule

SAME = 1.5  # timesteps that differ by no more are the same: rounded, or one less than T


@dataclass(frozen=True)
class Known:
    """How a published student is run. `pattern`: what names it, its group `n` a number of steps; `sampler`: of accel,
    what its makers drive it by; `steps`: those allowed (empty: that number), `usual`: what it is mostly run with (0:
    the most); `schedulers`: classes that drive it; `times`: `trailing`, a list of timesteps, or None: any. `noise`:
    whether steps may add noise. `guidance`: the largest scale of classifier-free guidance (1: none). `scale`: of its
    LoRA, if it is one. `why`: in words, what it was made by."""

    name: str
    pattern: str
    sampler: str
    schedulers: tuple[str, ...]
    why: str
    steps: tuple[int, ...] = ()
    usual: int = 0
    times: str | Sequence[float] | None = None
    noise: bool = False
    guidance: float = 1.0
    scale: float | None = None

    @property
    def use(self) -> str:
        """The overrides that keep the contract."""
        steps = self.usual or max(self.steps)
        listed = None if self.times is None or isinstance(self.times, str) else ",".join(f"{t:g}" for t in self.times)
        grid = f"grid=explicit grid.timesteps=[{listed}]" if listed else "grid=none"
        return f"sampler={self.sampler} sampler.steps={steps} {grid}"

    def plain(self, guidance: Guidance | None = None) -> Recipe:
        """The plain recipe of its contract, under `guidance`."""
        listed = self.times is not None and not isinstance(self.times, str)
        grid = ExplicitGrid(timesteps=tuple(self.times)) if listed else None
        return Recipe(method("sampler", self.sampler, steps=self.usual or max(self.steps)), grid, guidance)

    def check(self, run: Run) -> None:
        """IncompatibleError where a recipe asks for what the student was not made for, with what mends it."""
        recipe, scheduler = run.recipe, run.scheduler
        if (steps := recipe.sampler.steps if recipe.sampler else None) not in self.steps:
            found = "the pipeline's own scheduler" if steps is None else f"{steps} steps"
            raise self._refusal(f"was made for {_listed(self.steps)} steps, and this recipe has {found}")
        name = type(scheduler).__name__
        if name not in self.schedulers:
            raise self._refusal(f"is driven by {' or '.join(self.schedulers)}, and this recipe has {name}")
        if adds_noise(scheduler) and not self.noise:
            raise self._refusal("was made for steps without new noise, and those of this recipe add some")
        self._check_times(scheduler, steps)
        scale = recipe.guidance_scale
        if recipe.guidance is not None and (scale > self.guidance or not recipe.guidance.plain):
            most = f"guidance of at most {self.guidance:g}" if self.guidance > 1 else "no guidance on top"
            raise self._refusal(f"takes {most}, and this recipe has {recipe.guidance.label}", "guidance=none")
        if recipe.cache is not None and steps == 1:
            raise self._refusal(f"has one step, and {recipe.cache.label} keeps features for the next", "cache=none")

    def _check_times(self, scheduler: Any, steps: int) -> None:
        if self.times is None:
            return
        if isinstance(self.times, str):
            wanted = trailing(noise_schedule(scheduler.config), steps)
        else:
            wanted = np.array(self.times, np.float64)
        found = [float(t) for t in scheduler.timesteps]
        if len(found) != len(wanted) or np.abs(np.array(found) - wanted).max() > SAME:
            one, other = (", ".join(f"{t:g}" for t in times) for times in (wanted, found))
            raise self._refusal(f"was made for the timesteps {one}, and this recipe has {other}")

    def check_scales(self, scales: Sequence[float]) -> None:
        """IncompatibleError unless the LoRAs of the pipeline, whose scales these are, have one of its own scale."""
        if self.scale is not None and scales and not any(abs(own - self.scale) < 1e-6 for own in scales):
            said = ", ".join(f"{own:g}" for own in scales)
            raise self._refusal(
                f"is a LoRA of scale {self.scale:g}, and it is added with scale {said}",
                f"suite.lora=[<file>:{self.scale:g}]",
            )

    def _refusal(self, said: str, use: str | None = None) -> IncompatibleError:
        use = use or self.use
        return IncompatibleError(
            f"this model is a student, {self.name}, which {said}: {self.why}. Use {use}, also in baseline=[...]; "
            "suite.known=none switches this off."
        )


_EULER = ("EulerDiscreteScheduler", "DDIMScheduler")  # the same map
_FLOW = ("FlowMatchEulerDiscreteScheduler",)
_RENOISED = "it predicts x_0, and new noise takes it to the next level"
FOUR = (1, 2, 3, 4)
EIGHT = (1, 2, 3, 4, 5, 6, 7, 8)
KNOWN: tuple[Known, ...] = (
    Known(
        "SDXL-Lightning", r"sdxl_lightning_(?P<n>[248])step", "euler", _EULER,
        "each of its checkpoints was distilled to trailing timesteps of its own number", times="trailing", scale=1.0,
    ),
    Known(
        "Hyper-SD (unified)", r"hyper-sd(15|xl)-1steps?-lora", "tcd", ("TCDScheduler",),
        "one LoRA is for 1 to 8 steps of TCD", steps=EIGHT, usual=4, noise=True, scale=1.0,
    ),
    Known(
        "Hyper-SD", r"hyper-sd(15|xl)-(?P<n>[248])steps?-lora", "euler", _EULER,
        "its segments of the trajectory end at trailing timesteps of its own number", times="trailing", scale=1.0,
    ),
    Known(
        "Hyper-SD (CFG)", r"hyper-sd(15|xl)-(?P<n>8|12)steps?-cfg-lora", "euler", _EULER,
        "its segments of the trajectory end at trailing timesteps of its own number", times="trailing", guidance=8.0,
        scale=1.0,
    ),
    Known(
        "Hyper-SD (1-step UNet)", r"hyper-sdxl-1step-unet", "lcm", ("LCMScheduler",),
        "it is told the timestep 800 for pure noise", steps=(1,), times=(800,), noise=True,
    ),
    Known(
        "Hyper-SD (FLUX.1 dev)", r"hyper-flux\.1-dev-(?P<n>8|16)steps?-lora", "flow_euler", _FLOW,
        "it was distilled to its own number of steps, and told the guidance scale as a number", scale=0.125,
    ),
    Known(
        "TCD-LoRA", r"tcd-sd\w+-lora", "tcd", ("TCDScheduler",),
        "it leads to any later time of the trajectory, and TCD asks for that", steps=tuple(range(1, 51)), usual=4,
        noise=True, scale=1.0,
    ),
    Known(
        "LCM-LoRA", r"lcm[-_]lora", "lcm", ("LCMScheduler",), _RENOISED, steps=EIGHT, usual=4, noise=True, guidance=2.0,
        scale=1.0,
    ),
    Known(
        "DMD2 (4 steps)", r"dmd2_sdxl_4step", "lcm", ("LCMScheduler",), _RENOISED, steps=(4,),
        times=(999, 749, 499, 249), noise=True, scale=1.0,
    ),
    Known(
        "DMD2 (1 step)", r"dmd2_sdxl_1step", "lcm", ("LCMScheduler",), "it is told the timestep 399 for pure noise",
        steps=(1,), times=(399,), noise=True,
    ),
    Known(
        "SDXL-Turbo or SD-Turbo", r"\bsd(xl)?-turbo\b", "euler", ("EulerAncestralDiscreteScheduler", *_EULER),
        "it was distilled at four trailing timesteps", steps=FOUR, times="trailing", noise=True,
    ),
    Known(
        "FLUX.1 schnell", r"\bflux\.?1-schnell\b", "flow_euler", _FLOW, "it was distilled for 1 to 4 steps", steps=FOUR,
    ),
    Known(
        "SANA-Sprint", r"\bsana_sprint", "scm", ("SCMScheduler",),
        "its noise level is an angle, and guidance a number that it is told", steps=FOUR, usual=2, noise=True,
    ),
)  # fmt: skip


def known_by(names: Iterable[str]) -> Known | None:
    """The student that one of `names` (files, folders, hub ids) is of, with its number of steps; None for no known
    one. The last two parts of a path count. Of several the first: a LoRA is named before the model that it goes into.
    """
    for name in names:
        own = "/".join(Path(name).parts[-2:])
        for one in KNOWN:
            if found := re.search(one.pattern, own, re.IGNORECASE):
                n = found.groupdict().get("n")
                return replace(one, steps=(int(n),)) if n else one
    return None


def named(name: str) -> Known:
    """The student that its maker's file or repository `name` says; ConfigError if none is known."""
    if found := known_by([name]):
        return found
    raise unknown("student in suite.known", name, [one.name for one in KNOWN])


def under(pipe: Any, known: Known) -> Any:
    """`pipe`, whose denoiser is from now on held to the contract `known`."""
    under_terms(getattr(pipe, denoiser_name(pipe)), known)
    return pipe


def _listed(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if len(steps) > 2 else " or ".join(map(str, steps))
