"""What of a recipe diffusers runs by itself, as lines of Python; and what needs accel, with the reason.

A recipe is plain if its scheduler is a class of diffusers, its guidance the pipeline's own (none, or CFG), its cache
one of diffusers' hooks, and its precision none, a cast, TF32 or torch.compile (accel.deploy.plain_precision). The lines
make the images that accel makes: settings of the scheduler are those of what the sampler builds, timesteps those of its
grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from accel.caching.diffusers_hooks import HOOKS, DiffusersCache
from accel.core import pipelines
from accel.core.denoiser import denoiser_name
from accel.deploy.opened import Opened
from accel.deploy.plain_precision import lines_of
from accel.samplers.noise import adds_noise

HOOKED = """\
hooks.{function}(pipe.{net}, hooks.{config}({options}))
"""
OFFLOADED = {
    "model": "pipe.enable_model_cpu_offload()",
    "group": "pipe.{net}.enable_group_offload(\n"
    "    torch.device('cuda'), offload_type='block_level', num_blocks_per_group=1\n)",
}
TIMED = """

times = []  # of the evaluations since images() began, one a step


def arrive(net, args):
    times.append(int(pipe.scheduler.timesteps[len(times)]))


pipe.{net}.register_forward_pre_hook(arrive)
"""
FRESH = """\
    registry = hooks.HookRegistry.check_if_exists_or_initialize(pipe.{net})
    registry.reset_stateful_hooks()  # nothing is reused from the images before
    {context}
"""


@dataclass
class Plain:
    """A recipe in diffusers' own words: `setup`, lines after `pipe` is loaded; `execution`, lines that the suite's own
    settings need, with or without accel; `begin`, lines before each call of it; `call`, its arguments;
    `imports`, names of diffusers; `modules`, those of Python; `further`, whole lines that import; `reasons`: what needs
    accel, nothing if the recipe is plain."""

    setup: list[str] = field(default_factory=list)
    execution: list[str] = field(default_factory=list)
    begin: list[str] = field(default_factory=list)
    call: dict[str, Any] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def plain_of(opened: Opened) -> Plain:
    """`opened`, whose recipe was checked on its pipeline, in diffusers' words."""
    recipe, found = opened.saved.recipe, Plain()
    if opened.suite.origin() is None:
        found.reasons.append(f"the pipeline, a {type(opened.pipe).__name__} of accel")
    _scheduler(opened, found)
    if recipe.guidance is not None and not recipe.guidance.plain:
        found.reasons.append(f"guidance {recipe.guidance.label}")
    for axis in ("student", "stitch", "skip", "decoder"):
        if (method := getattr(recipe, axis)) is not None:
            found.reasons.append(f"{axis} {method.label}")
    _cache(opened, found)
    _precision(opened, found)
    _execution(opened, found)
    return found


def source(value: Any) -> str:
    """Python that makes a plain value, a dtype of torch among them."""
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(source, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {source(own)}" for key, own in value.items()) + "}"
    return repr(value)


def arguments(values: Mapping[str, Any]) -> str:
    """The same as keyword arguments."""
    return ", ".join(f"{name}={source(value)}" for name, value in values.items())


def _scheduler(opened: Opened, found: Plain) -> None:
    recipe, pipe = opened.saved.recipe, opened.pipe
    sampler = recipe.sampler
    if sampler is None:
        return
    if sampler.calibrated or not hasattr(sampler, "scheduler_class"):
        found.reasons.append(f"sampler {sampler.label}")
        return
    built = sampler.build(pipe.scheduler.config, recipe.grid)
    cls = type(built)
    if not cls.__module__.startswith("diffusers."):
        found.reasons.append(f"sampler {sampler.label}, whose scheduler {cls.__name__} is not of diffusers")
        return
    plain = dict(cls.from_config(pipe.scheduler.config).config)
    own = {k: v for k, v in built.config.items() if not k.startswith("_") and (k not in plain or plain[k] != v)}
    found.imports.append(cls.__name__)
    found.setup.append(f"pipe.scheduler = {cls.__name__}.from_config({_joined('pipe.scheduler.config', own)})")
    found.call["num_inference_steps"] = sampler.steps
    asked = inspect.signature(type(pipe).__call__).parameters
    fixed, told = getattr(built.set_timesteps, "fixed", {}), getattr(built.step, "fixed", {})
    if fixed is None:
        found.reasons.append(f"grid {recipe.grid.name}, which no call of a {type(pipe).__name__} can ask for")
    if adds_noise(built) and not hasattr(pipe, "prepare_extra_step_kwargs"):  # by which pipelines hand generators on
        found.reasons.append(f"the noise of {sampler.label}, which a {type(pipe).__name__} draws by no sample's seed")
    for name, value in told.items():
        if name in asked:
            found.call[name] = value
        else:
            found.reasons.append(f"{name}={value:g} at each step, which a {type(pipe).__name__} does not pass on")
    for name, values in (fixed or {}).items():
        if pipelines.gives_sigmas(pipe) and not hasattr(recipe.grid, "timesteps"):  # which gives the same by itself
            continue
        if name in asked:
            found.call[name] = values
            continue
        found.setup += [
            "set_timesteps = pipe.scheduler.set_timesteps",
            "pipe.scheduler.set_timesteps = lambda *steps, device=None, **more: "
            f"set_timesteps({name}={source(values)}, device=device, **more)",
        ]


def _cache(opened: Opened, found: Plain) -> None:
    recipe, name = opened.saved.recipe, denoiser_name(opened.pipe)
    cache = recipe.cache
    if cache is None:
        return
    several = recipe.sampler is not None and recipe.sampler.evaluations != recipe.sampler.steps
    if not isinstance(cache, DiffusersCache) or several:
        found.reasons.append(f"cache {cache.label}")
        return
    ready = cache.prepared(opened.pipe, recipe, (opened.saved.artefacts or {}).get("cache"))
    config, function, _ = HOOKS[cache.hook]
    options = arguments(ready.options)
    if cache.contextless:
        found.setup.append(TIMED.format(net=name).rstrip())
        found.begin.append("    times.clear()")
        options = f"{options}{', ' * bool(options)}current_timestep_callback=lambda: times[-1]"
    found.setup.append(HOOKED.format(net=name, function=function, config=config, options=options).rstrip())
    found.begin.append(FRESH.format(net=name, context=_context(name)).rstrip())
    found.imports.append("hooks")


def _context(name: str) -> str:
    from diffusers.hooks import hooks

    if hasattr(hooks, "_set_cache_context"):
        return f'hooks.hooks._set_cache_context(pipe.{name}, hooks.hooks.CacheContext("all"))'
    return 'registry._set_context("all")'  # before diffusers 0.42


def _precision(opened: Opened, found: Plain) -> None:
    precision, name = opened.saved.recipe.precision, denoiser_name(opened.pipe)
    if precision is None:
        return
    lines = lines_of(precision, getattr(opened.pipe, name), name)
    if lines is None or (precision.whole and opened.suite.execution().get("compile")):
        found.reasons.append(f"precision {precision.label}")
        return
    found.setup += [lines.setup.rstrip()] if lines.setup else []
    found.modules += lines.modules
    found.further += lines.further


def _execution(opened: Opened, found: Plain) -> None:
    name, used = denoiser_name(opened.pipe), opened.suite.execution()
    if used.get("vae_slicing"):
        found.execution.append("pipe.vae.enable_slicing()")
    if used.get("channels_last"):
        parts = [name, *(["vae"] if getattr(opened.pipe, "vae", None) is not None else [])]
        found.execution += [f"pipe.{part}.to(memory_format=torch.channels_last)" for part in parts]
    if used.get("compile"):
        found.execution.append(f"pipe.{name}.compile_repeated_blocks()")
    if used.get("offload"):
        found.execution.append(OFFLOADED[used["offload"]].format(net=name))
    if used.get("attention"):
        found.execution.append(f"pipe.{name}.set_attention_backend({used['attention']!r})")


def _joined(first: str, options: Mapping[str, Any]) -> str:
    return f"{first}, {arguments(options)}" if options else first
