"""`Recipe` (what to combine) and `accelerate` (make a pipeline run it, then restore the pipeline)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

import accel
from accel.core import pipelines
from accel.core.artefacts import moved
from accel.core.calls import Fixed, told
from accel.core.companions import companions, counted
from accel.core.compiling import check_compiled, room_to_compile
from accel.core.decoder import Decoder
from accel.core.denoiser import (
    Denoise,
    Inputs,
    Node,
    Place,
    denoiser_name,
    forward_beneath,
    shadow_forward,
)
from accel.core.guidance import CLASSIFIER, Guidance
from accel.core.guiders import check_guiders, put_plain
from accel.core.method import LATER, Method, Stitch
from accel.core.pipelines import further_denoisers
from accel.core.precision import Precision, check_stored
from accel.core.run import Run
from accel.core.sampler import Sampler, TimestepGrid
from accel.core.sharing import check_free, shared_forward
from accel.core.student import TEACHER, Student, check_students, check_terms
from accel.core.trajectory import Trajectory, attach_clock
from accel.digests import weights_hex
from accel.errors import ConfigError, IncompatibleError, unknown


@dataclass(frozen=True)
class Recipe:
    """One method, or None, for each axis. Nesting: guidance(stitch(cache(precision(skip(net))))) under the sampler;
    `net` is the pipeline's own denoiser, or the student in its place, at whose times it is without a grid. The decoder
    stands after all of them, in the place of the pipeline's own."""

    sampler: Sampler | None = None
    grid: TimestepGrid | None = None
    guidance: Guidance | None = None
    cache: Method | None = None
    stitch: Stitch | None = None
    precision: Precision | None = None
    skip: Method | None = field(default=None, metadata=LATER)
    student: Student | None = field(default=None, metadata=LATER)
    decoder: Decoder | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.student and self.sampler and not self.grid:
            object.__setattr__(self, "grid", self.student.grid)

    @property
    def guidance_scale(self) -> float:
        """What to pass to the pipeline as `guidance_scale`."""
        return self.guidance.pipeline_scale if self.guidance else 1.0

    @property
    def exact_guidance(self) -> Guidance | None:
        """The guidance of the converged trajectory that the recipe's images are compared with."""
        if self.guidance:
            return self.guidance.exact
        return self.student.built_in if self.student else None

    @property
    def label(self) -> str:
        """The recipe in one line, e.g. `dpmpp_2m-10 + deepcache3b1`."""
        parts = (self.sampler, self.guidance, self.student, self.stitch, self.cache, self.skip, self.precision)
        parts = (*parts, self.decoder)
        grid = f"@{self.grid.name}" if self.grid else ""
        names = [p.label for p in parts if p is not None]
        return (names[0] + grid + "".join(f" + {n}" for n in names[1:])) if names else "plain"

    def axes(self) -> dict[str, str | int]:
        """Name of the method on each axis, `none` where there is none."""
        return {
            "sampler": self.sampler.name if self.sampler else "none",
            "steps": self.sampler.steps if self.sampler else 0,
            "grid": self.grid.name if self.grid else "none",
            "guidance": self.guidance.label if self.guidance else "none",
            "cache": self.cache.label if self.cache else "none",
            "stitch": self.stitch.label if self.stitch else "none",
            "precision": self.precision.label if self.precision else "none",
            "skip": self.skip.label if self.skip else "none",
            "student": self.student.label if self.student else "none",
            "decoder": self.decoder.label if self.decoder else "none",
        }

    @property
    def calibrated(self) -> tuple[str, ...]:
        """The axes whose methods need what a calibration makes, in the order in which it is made."""
        found = {axis: getattr(self, axis) for axis in ("sampler", "guidance", "cache", "precision")}
        return tuple(axis for axis, method in found.items() if method is not None and method.calibrated)

    @property
    def simulated(self) -> bool:
        """Whether any part imitates its arithmetic, so that the recipe must not be timed."""
        return self.precision is not None and self.precision.kind == "simulated"

    @property
    def plain(self) -> bool:
        """Whether the recipe is a sampler and guidance only: nothing that an equal-cost control would compare."""
        return self == self.unaccelerated

    @property
    def unaccelerated(self) -> Recipe:
        """The sampler and guidance alone; for a guidance that is a shortcut, or built into a student, what it is of."""
        shortcut = self.guidance.shortcut if self.guidance else self.student is not None
        guidance = self.exact_guidance if shortcut else self.guidance
        others = dict.fromkeys(("cache", "stitch", "precision", "skip", "student", "decoder"))
        return replace(self, guidance=guidance, **others)

    def parts(self) -> dict[str, Recipe]:
        """What a recipe is composed of, at its own sampler, steps and grid: `plain`, and by axis each accelerating
        method alone (a guidance that is a shortcut, too)."""
        plain = self.unaccelerated
        found = {"plain": plain}
        for axis in (f.name for f in fields(self)):
            if (own := getattr(self, axis)) != getattr(plain, axis):
                found[axis] = replace(plain, **{axis: own})
        return found

    @property
    def combined(self) -> bool:
        """Whether two or more axes accelerate; a guidance that is a shortcut counts."""
        return len(self.parts()) > 2

    def methods(self) -> list[Method]:
        """The denoiser-seam methods, outermost first."""
        found = (self.student, self.guidance, self.stitch, self.cache, self.precision, self.skip)
        return [m for m in found if m is not None]

    def save(self, path: Any, **about: Any) -> Any:
        """Write it into the folder `path`, as `accel.load_recipe` reads it: see `accel.save_recipe`, which this is."""
        # A door: the room of recipe files lies above this one, and is loaded when it is asked for.
        return accel.save_recipe(self, path, **about)

    def check(self, pipe: Any, models: Mapping[str, nn.Module] | None = None, machine: bool = True) -> None:
        """Raise ConfigError or IncompatibleError, with the reason, if `pipe` cannot run this recipe.

        machine: also ask whether this machine has the packages and devices that its methods need.
        """
        models = models or {}
        pipelines.check_kind(pipe)
        nets, own = self.nets(pipe, models), getattr(pipe, denoiser_name(pipe))
        check_students(self, own, nets)
        self._check_further(pipe, own)
        if self.decoder:
            self.decoder.check(pipe, models)
        if self.grid and not self.sampler:
            raise IncompatibleError(f"grid={self.grid.name} needs a sampler to place it; choose one, or grid=none.")
        if self.grid and self.grid.keyed:
            self.grid.check({name: weights_hex(net) for name, net in nets.items()})
        scheduler = None
        if self.sampler:
            ready = self.sampler if self.sampler.calibrated else self.sampler.prepared(pipe, self)
            scheduler = ready.build(pipe.scheduler.config, self.grid)
        pipelines.check(pipe, own, self.guidance_scale, scheduler, self.sampler.steps if self.sampler else 1)
        check_guiders(pipe, self)
        if self.guidance:
            pipelines.check_branches(pipe, self.guidance, self.cache)
        inside = any(method is not None for method in (self.cache, self.precision, self.skip))
        for name, net in nets.items():
            check_compiled(name, net, inside)
            if self.precision:
                check_stored(name, net)
        for method in self.methods():
            method.check(nets, self)
        if beside := companions(pipe):
            for method in self.methods():
                method.check_beside(nets, beside)
        for method in self.methods():
            method.check_around(scheduler or pipe.scheduler, models)
        check_terms(self, own, scheduler or pipe.scheduler)
        for method in self.methods() if machine else ():
            method.check_machine(nets)

    def _check_further(self, pipe: Any, own: nn.Module) -> None:
        axis = "stitch" if self.stitch else "student" if self.student else None
        if axis and (others := further_denoisers(pipe, own)):
            raise IncompatibleError(
                f"{type(pipe).__name__} changes to {', '.join(others)} in mid-trajectory by itself, so that no {axis} "
                f"can say which network runs; use {axis}=none."
            )

    def nets(self, pipe: Any, models: Mapping[str, nn.Module] | None = None) -> dict[str, nn.Module]:
        """The denoisers this recipe runs by name: the pipeline's own, or the student in its place (`base`), first, then
        those that the pipeline changes to by itself, the stitched ones, and those that guide. Under a student the
        pipeline's own is another network, `teacher`."""
        given, own = models or {}, getattr(pipe, denoiser_name(pipe))
        nets = {"base": self.student.find(given) if self.student else own}
        nets |= {name: getattr(pipe, name) for name in further_denoisers(pipe, own)}
        others = [name for name in given if name != CLASSIFIER] + [TEACHER] * bool(self.student)
        wanted = [("stitch", name) for name in (self.stitch.models if self.stitch else ())]
        wanted += [("guidance", name) for name in (self.guidance.models if self.guidance else ())]
        for axis, name in wanted:
            if not others:
                task = {"stitch": "stitch with", "guidance": "guide with"}[axis]
                raise IncompatibleError(f"there is no other model to {task}, but {name!r} is named; use {axis}=none.")
            if name not in others:
                raise unknown(f"{axis} model", name, others)
            nets[name] = given.get(name, own)
        return nets

    def held(self, pipe: Any, models: Mapping[str, nn.Module] | None = None) -> list[nn.Module]:
        """Every network that runs otherwise while the recipe is on the pipeline: those of `nets`, the pipeline's own,
        and its autoencoder under a decoder."""
        found = [getattr(pipe, denoiser_name(pipe)), *self.nets(pipe, models).values()]
        found += [pipe.vae] if self.decoder and isinstance(getattr(pipe, "vae", None), nn.Module) else []
        return list({id(net): net for net in found}.values())


@dataclass(frozen=True)
class Prepared:
    """A recipe that was checked on a pipeline, with the numbers of its artefacts; `attach` may use it any time.

    An artefact belongs to the plain networks, so this is made before anything changes them.
    """

    pipe: Any
    recipe: Recipe
    models: Mapping[str, nn.Module] | None = None
    artefacts: Mapping[str, Mapping[str, torch.Tensor]] | None = None
    sampler: Sampler | None = field(init=False)
    guidance: Guidance | None = field(init=False)
    cache: Method | None = field(init=False)

    def __post_init__(self) -> None:
        self.recipe.check(self.pipe, self.models)
        for axis in ("sampler", "guidance", "cache"):
            method, found = getattr(self.recipe, axis), (self.artefacts or {}).get(axis)
            object.__setattr__(self, axis, method and method.prepared(self.pipe, self.recipe, found))

    def fixed(self, strict: bool | None = None, scale: float | None = None) -> Fixed:
        """What calls of the pipeline get from the recipe. `scale`: what a network that is told the guidance scale, in
        the place of guidance, was told (None: whatever the caller, or the pipeline's default, says)."""
        recipe, net = self.recipe, getattr(self.pipe, denoiser_name(self.pipe))
        scales = pipelines.scale_arguments(type(self.pipe), recipe.guidance_scale)
        if pipelines.distilled(net):
            scales.pop(pipelines.SCALE, None)
            scales |= {} if scale is None else {pipelines.SCALE: scale}
        steps = self.sampler.steps if self.sampler else None
        return Fixed(recipe.label, steps, self.guidance, scales, strict)

    def attach(self, undo: ExitStack, count_macs: bool = False, place: Place | None = None) -> Run:
        """Put the recipe onto the pipeline; the way back goes on `undo`. `place`: see `shadow_forward`."""
        pipe, recipe, artefacts = self.pipe, self.recipe, self.artefacts
        clock = Trajectory(sign=pipelines.sign(pipe))
        run = Run(recipe, clock, count_macs, pipe, transferred=moved(artefacts))
        layout = pipelines.layout(pipe)
        plain = recipe.nets(pipe, self.models)
        double = getattr(plain["base"], "dtype", None) == torch.float64
        copies = 2 if pipelines.steps_both(pipe) and recipe.guidance_scale > 1 else 1
        denoisers, nodes = {}, {}
        undo.enter_context(room_to_compile(plain.values()))
        if recipe.precision:
            recipe.precision.prepare_pipeline(pipe, undo, artefacts)
        uneven = all(m.uneven for m in (self.cache, recipe.stitch, recipe.skip, recipe.student) if m)
        for key, net in plain.items():
            node = Node(key, net, clock, undo, count_macs, (artefacts or {}).get(key), layout, uneven=uneven)
            forward = forward_beneath(net)
            if recipe.precision:
                recipe.precision.prepare(node)
                forward = recipe.precision.forward(node, forward)
            denoise = _plain(node, forward)
            if recipe.skip:
                denoise = recipe.skip.attach(node, denoise)
            denoise = self.cache.attach(node, denoise) if self.cache else denoise
            denoisers[key] = recipe.student.attach(node, denoise) if recipe.student and key == "base" else denoise
            nodes[key] = node
        run.cache_state += [item for node in nodes.values() for item in node.state]
        run.cached_share |= {k: node.cached_share for k, node in nodes.items() if node.cached_share is not None}
        net = getattr(pipe, denoiser_name(pipe))
        own = {"base": net} | {name: plain[name] for name in further_denoisers(pipe, net)}
        called = ["base"]  # which of them the pipeline's last call was for
        if recipe.stitch:
            denoise = recipe.stitch.combine(denoisers, clock)
        else:
            denoise = denoisers["base"] if len(own) == 1 else lambda inputs: denoisers[called[0]](inputs)
        if self.guidance:
            nodes["base"].guides = {name: denoisers[name] for name in self.guidance.models}
            nodes["base"].classifier = (self.models or {}).get(CLASSIFIER)
            denoise = self.guidance.attach(nodes["base"], denoise)
            put_plain(pipe, self.guidance.pipeline_scale, undo)
        for key, net in own.items():
            enter = denoise if len(own) == 1 else _calling(key, called, denoise)
            undo.enter_context(shadow_forward(net, enter, clock, place))

        if recipe.decoder:
            recipe.decoder.attach(pipe, recipe.decoder.find(self.models or {}), undo)
        if count_macs:
            undo.enter_context(counted(pipe, clock))
        original = pipe.scheduler
        scheduler = self.sampler.build(original.config, recipe.grid) if self.sampler else copy.deepcopy(original)
        if self.sampler and double:
            self.sampler.in_double(scheduler)
        steps = recipe.sampler.steps if recipe.sampler else None
        attach_clock(scheduler, clock, steps, copies, recipe.grid is not None)
        for method in (self.cache, self.guidance):
            if method:
                method.follow(scheduler, nodes["base"])
        undo.callback(setattr, pipe, "scheduler", original)
        pipe.scheduler = run.scheduler = scheduler
        return run


class _Inside(AbstractContextManager["Run"]):
    """What `accelerate` returns. No generator: one that nobody holds is closed, and would restore the pipeline."""

    def __init__(self, prepare: Callable[[], Prepared], count_macs: bool) -> None:
        self._prepare, self._count_macs = prepare, count_macs

    def __enter__(self) -> Run:
        ready, undo = self._prepare(), ExitStack()
        try:
            run = ready.attach(undo, self._count_macs)
            undo.enter_context(told(ready.pipe, run.scheduler, ready.fixed(), undo))
        except BaseException:
            undo.close()
            raise
        self._undo = undo
        return run

    def __exit__(self, *error: object) -> None:
        self._undo.close()


def accelerate(
    pipe: Any,
    recipe: Recipe,
    *,
    models: Mapping[str, nn.Module] | None = None,
    artefacts: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    count_macs: bool = False,
) -> AbstractContextManager[Run]:
    """Make `pipe` run `recipe` inside the context; after it, also after an exception, `pipe` is what it was.

    `models`: the networks that `recipe.stitch` and `recipe.guidance` name, and as `classifier` one that gives logits of
    clean images. `artefacts`: what calibrations made, by network name; under `sampler` what a sampler's search found,
    under `guidance` what a guidance was fitted to, under `cache` what a cache has learned. Calls of the pipeline get
    the recipe's number of steps, and its guidance scale if they have none. `accel.apply` does the same without a
    context.
    """

    def prepare() -> Prepared:
        nets = recipe.held(pipe, models)
        if shared := next((net for net in nets if shared_forward(net)), None):
            raise IncompatibleError(
                f"a recipe is applied to this {type(shared).__name__} (accel.apply), through this pipeline or one that "
                "shares it; call .remove() of what that returned first, or apply this recipe, too: calls take turns."
            )
        check_outside(pipe)
        for net in nets:
            check_free(net)
        return Prepared(pipe, recipe, models, artefacts)

    return _Inside(prepare, count_macs)


def check_outside(pipe: Any) -> None:
    """ConfigError if the pipeline is inside `accelerate`."""
    if "set_timesteps" in vars(pipe.scheduler):
        raise ConfigError(
            "this pipeline is inside accelerate() already, or from_pipe() took along the scheduler of one that a "
            "recipe is applied to; leave that context first, or give from_pipe(..., scheduler=...) one of its own."
        )


def _calling(key: str, called: list[str], denoise: Denoise) -> Denoise:
    def denoised(inputs: Inputs) -> torch.Tensor:
        called[0] = key
        return denoise(inputs)

    return denoised


def nothing() -> None:
    """Target of every `none.yaml`: no method on this axis."""


def _plain(node: Node, forward):
    return lambda inputs: node.evaluate(inputs, forward)
