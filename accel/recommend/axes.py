"""Which choices of each axis a search on this model is offered: by what its pipeline is, and by what the methods' own
checks accept, asked before anything is sampled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accel.config import recipe_by, recipe_from
from accel.core.pipelines import usual_scale
from accel.core.recipe import Recipe
from accel.errors import ConfigError, IncompatibleError
from accel.recommend.precisions import CHOICES, Rates, unfit
from accel.registry import groups, load
from accel.samplers.noise_schedule import is_flow
from accel.studies.runner import Runner

STEPS = (4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
FIRST = 20  # steps of the plain recipe that a search begins with
SAMPLERS = {"flow": ("flow_euler", "rf_solver", "deis_tab", "unipc_accel"), "other": ("dpmpp_2m", "unipc", "deis_tab")}
CONVENTIONAL = {"flow": "sampler=flow_euler", "other": "sampler=ddim"}
GRIDS = {"flow": (), "other": ("karras", "t_quadratic")}
CACHES = {
    "unet": (
        "cache=deepcache cache.interval=2 cache.branch=1",
        "cache=deepcache cache.interval=3 cache.branch=1",
        "cache=encoder_propagation cache.schedule.interval=2",
        "cache=easycache cache.threshold=0.1",
    ),
    "transformer": (
        "cache=fora cache.schedule.interval=2",
        "cache=easycache cache.threshold=0.1",
        "cache=taylorseer cache.schedule.interval=3",
        "cache=diffusers_first_block cache.options.threshold=0.1",
    ),
}
FRACTIONS = ("0.2", "0.4", "0.6")


@dataclass(frozen=True)
class Proposal:
    """`baseline`: what is run today, as overrides. `axes`: for each axis its choices, the plain one first; `refused`:
    why others are not offered, by choice; `rates`: what a MAC costs in each precision that is offered, in that of the
    plain one, once that was measured."""

    baseline: tuple[str, ...]
    axes: Mapping[str, Sequence[str]]
    refused: Mapping[str, str]
    rates: Mapping[str, float] = field(default_factory=dict)

    def narrowed(self, found: Rates) -> Proposal:
        """Without the precisions that do not run here, or save nothing."""
        plain = self.axes["precision"][0]
        axes = {**self.axes, "precision": [plain, *found.rates]}
        return replace(self, axes=axes, refused={**self.refused, **found.refused}, rates=found.rates)


def propose(runner: Runner, steps: int | None = None, scale: float | None = None) -> Proposal:
    """The choices for the suite of `runner`. `steps`, `scale`: of today's recipe; None: the pipeline's own defaults.
    ConfigError if not even plain sampling can run."""
    pipe = runner.pipe
    steps = steps or _default(pipe, "num_inference_steps") or 50
    kind = "flow" if is_flow(pipe.scheduler.config) else "other"
    guidance = _guidance(runner, scale, kind)
    today = (*_todays_sampler(type(pipe.scheduler).__name__, kind), f"sampler.steps={steps}", *guidance[0].split())
    wanted = {
        "sampler": [f"sampler={name}" for name in SAMPLERS[kind]],
        "steps": [f"sampler.steps={n}" for n in _steps(steps)],
        "grid": ["grid=none", *(f"grid={name}" for name in GRIDS[kind])],
        "guidance": guidance,
        "cache": ["cache=none", *CACHES["unet" if hasattr(pipe, "unet") else "transformer"]],
        "stitch": ["stitch=none", *(f"stitch=tstitch stitch.fractions=[{f}]" for f in FRACTIONS if runner.models)],
        "precision": ["precision=none"],
    }
    runner.check(_recipe(own[0] for own in wanted.values()))
    guidances = [recipe_from(tuple(own.split())).guidance for own in guidance]
    reasons = {choice: unfit(choice, runner, guidances) for choice in CHOICES}
    wanted["precision"] += [choice for choice, why in reasons.items() if why is None]
    axes, refused = {}, {choice: why for choice, why in reasons.items() if why}
    for axis, own in wanted.items():
        axes[axis] = [own[0]]
        for choice in own[1:]:
            try:
                runner.check(_recipe(choice if name == axis else others[0] for name, others in wanted.items()))
                axes[axis].append(choice)
            except (IncompatibleError, ConfigError) as error:
                refused[choice] = str(error)
    return Proposal(today, axes, refused)


def _recipe(choices: Any) -> Recipe:
    return recipe_by([word for choice in choices for word in choice.split()])


def _steps(today: int) -> list[int]:
    """Fewer steps than today's, the plain recipe's first."""
    fewer = [n for n in STEPS if n < today] or [today]
    first = min(fewer, key=lambda n: abs(n - FIRST))
    return [first, *(n for n in fewer if n != first)]


def _todays_sampler(scheduler: str, kind: str) -> tuple[str, ...]:
    """The registered sampler that is the pipeline's own scheduler; DDIM, or Euler of a flow, where none is."""
    for name in groups()["sampler"]:
        if name != "none" and load("sampler", name).get("scheduler") == scheduler:
            return (f"sampler={name}",)
    return (CONVENTIONAL[kind],)


def _guidance(runner: Runner, scale: float | None, kind: str) -> list[str]:
    """Classifier-free guidance as today and its shortcuts, where the pipeline has it."""
    scale = usual_scale(type(runner.pipe)) if scale is None else scale
    if scale is None or scale <= 1:
        return ["guidance=none"]
    found = [f"guidance={name} guidance.scale={scale:g}" for name in ("cfg", "ag", "interval")]
    try:
        runner.check(_recipe([CONVENTIONAL[kind], found[0]]))
    except (IncompatibleError, ConfigError):
        return ["guidance=none"]  # what is distilled, or knows no condition
    return found


def _default(pipe: Any, name: str) -> Any:
    """A default of the pipeline's call; None where it has no such argument."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
