"""What accel must know of a diffusers pipeline beyond its two seams: how it guides, and what it asks of a scheduler.

`layout`, how the denoiser is called for guidance: most pipelines stack (null, conditional) in one batch and step one of
them, DiTPipeline and Z-Image stack (conditional, null), and DiTPipeline steps both. InstructPix2Pix (arXiv:2211.09800,
eq. 3) stacks a third branch, told the image alone, and its code says in which order; perturbed attention is a third,
too. Others call the denoiser twice a step, conditional first (accel/core/branches.py): those that tell its caches so,
have a `true_cfg_scale`, or guide by objects (accel/core/guiders.py). Where the pipeline's code calls it in several
places the first call tells: a doubled batch has equal halves.

`scale_arguments`: a pipeline with a `true_cfg_scale` guides by that, and its `guidance_scale` is a number that a
distilled network is told. Some pipelines weigh c + w (c - u), w = s - 1.

`sign`: the networks of some flow pipelines predict x_0 - eps, which the pipelines negate before they step.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from accel.core.guiders import guider_parts, guiders
from accel.errors import IncompatibleError

DENOISER_CALL = re.compile(r"\b(self\.unet|self\.transformer|current_model)\(")
THREE = re.compile(r"\bnoise_pred_(\w+), noise_pred_(\w+), noise_pred_(\w+) = noise_pred\.chunk\(3\)")
BLOCKS = {"uncond_first": ("uncond", "cond"), "cond_first": ("cond", "uncond")}  # layout: parts of the batch, in order
PERTURBED = ("uncond", "cond", "perturbed")  # of perturbed attention, whose layers look for all three
SCALE, TRUE_SCALE = "guidance_scale", "true_cfg_scale"
DISTILLED_SCALE = "distilled_guidance_scale"  # what a distilled network is told, of pipelines with guider objects
IMAGE_SCALE = "image_guidance_scale"  # of a third branch, which sees the image that is edited and no prompt
CONDITIONAL_FIRST = ("DiTPipeline", "ZImage")
OFFSET = ("ZImage", "Krea2")
NEGATING = ("HiDreamImage", "Lumina", "NucleusMoEImage", "ZImage")


def layout(pipe: Any) -> str:
    """How a guided evaluation reaches the denoiser: `uncond_first` or `cond_first` in one batch, `separate` in two
    calls, the names of a batch's three parts in their order, with commas, or `unseen`: its first call tells (see
    `seen`)."""
    if type(pipe).__name__.startswith(CONDITIONAL_FIRST):
        return "cond_first"
    if TRUE_SCALE in arguments(type(pipe)) or guiders(pipe):
        return "separate"
    source = _source(type(pipe))
    if 'cache_context("uncond"' in source:
        return "separate"
    if "pag_scale" in arguments(type(pipe)):
        return ",".join(PERTURBED)
    if three := THREE.search(source):
        return ",".join("cond" if name == "text" else name for name in three.groups())
    return "uncond_first" if len(DENOISER_CALL.findall(source)) == 1 else "unseen"


def blocks(layout: str) -> tuple[str, ...]:
    """The parts of the batch of a layout that stacks them, in order; `cond` and `uncond` are among them."""
    return BLOCKS.get(layout) or tuple(layout.split(","))


def check_branches(pipe: Any, guidance: Any, cache: Any) -> None:
    """IncompatibleError if the pipeline guides by a third branch, and `guidance` (a method), or `cache` (or None),
    would have to know what it is for."""
    parts, name = blocks(layout(pipe)), type(pipe).__name__
    if len(parts) < 3 or guidance.neutral:
        return
    if parts == PERTURBED:
        for axis, method in (("guidance", guidance), ("cache", cache)):
            if not (method.plain if axis == "guidance" else method is None or not method.drops_parts):
                raise IncompatibleError(
                    f"{name} guides by perturbed attention, too, whose layers need all three rows of each image at "
                    f"every evaluation, where this {axis} leaves some out or changes them. Use "
                    f"{axis}={'cfg' if axis == 'guidance' else 'none'}, or the class without it "
                    f"({name.replace('PAG', '')})."
                )
    elif not (guidance.plain or guidance.branchwise):
        raise IncompatibleError(
            f"{name} guides by {len(parts)} predictions ({', '.join(parts)}), and guidance {guidance.label} combines "
            "two. Use guidance=cfg, interval or ag, or guidance=none."
        )


def seen(sample: torch.Tensor) -> str:
    """The layout of an `unseen` pipeline by the first sample (R, ...) that its denoiser is called with: the halves of a
    doubled batch are equal. Waits for the device."""
    half, odd = divmod(len(sample), 2)
    return "separate" if odd or not torch.equal(sample[:half], sample[half:]) else "uncond_first"


def steps_both(pipe: Any) -> bool:
    """Whether both halves of the doubled batch reach the scheduler."""
    return type(pipe).__name__ == "DiTPipeline"


def scale_arguments(cls: type, scale: float, embedded: float | None = None) -> dict[str, float]:
    """What a call of a pipeline of class `cls` is told so that it steps with u + scale (c - u). `embedded`: what a
    network is told that is distilled from guided predictions (None: it is no such, or the caller says)."""
    if TRUE_SCALE in arguments(cls):
        return {TRUE_SCALE: scale} | ({} if embedded is None else {SCALE: embedded})
    if guider_parts(cls):  # no argument tells it
        return {} if embedded is None or DISTILLED_SCALE not in arguments(cls) else {DISTILLED_SCALE: embedded}
    return {SCALE: scale - weight_offset(cls) if embedded is None else embedded}


def usual_scale(cls: type) -> float | None:
    """The s of u + s (c - u) that calls of a pipeline of class `cls` ask for where they say nothing; None for one that
    does not guide."""
    asked = arguments(cls)
    parameter = asked.get(TRUE_SCALE) or asked.get(SCALE)
    said = isinstance(getattr(parameter, "default", None), (int, float))
    if not said:
        return None
    return float(parameter.default) + (0 if TRUE_SCALE in asked else weight_offset(cls))


def weight_offset(cls: type) -> float:
    """s minus what `guidance_scale` says of it: 1 for pipelines that step with c + w (c - u)."""
    return 1.0 if cls.__name__.startswith(OFFSET) else 0.0


def sign(pipe: Any) -> float:
    """-1 where the pipeline steps with the negative of its network's output, else 1."""
    return -1.0 if type(pipe).__name__.startswith(NEGATING) else 1.0


def distilled(net: Any) -> bool:
    """Whether the network is told the guidance scale (Flux dev, latent consistency models), in place of guidance."""
    return distilled_config(getattr(net, "config", {}))


def distilled_config(config: Mapping[str, Any]) -> bool:
    """`distilled` of a denoiser's config."""
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def further_denoisers(pipe: Any, net: nn.Module) -> list[str]:
    """Names of the networks of a pipeline that predict, too, beside its denoiser `net` (Wan 2.2's transformer_2)."""
    parts = {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module) and part is not net}
    alike = re.compile(r"(unet|transformer)(_\w+)?")
    return [name for name, part in parts.items() if isinstance(part, type(net)) or alike.fullmatch(name)]


def check_kind(pipe: Any) -> None:
    """IncompatibleError for a pipeline that is made of blocks (diffusers' modular ones)."""
    if any(cls.__name__ == "ModularPipeline" for cls in type(pipe).__mro__):
        raise IncompatibleError(
            f"{type(pipe).__name__} is a modular pipeline: its blocks hand number of steps, timesteps and guidance to "
            "each other, past its call and its scheduler, where a recipe says them. Use the pipeline class of the same "
            "model (such as StableDiffusionXLPipeline), with its components."
        )


def check(pipe: Any, net: Any, guidance_scale: float, scheduler: Any = None, steps: int = 1) -> None:
    """IncompatibleError, with the reason, if `pipe` cannot guide its denoiser `net`, or cannot drive `scheduler`."""
    name = type(pipe).__name__
    if guidance_scale > 1 and distilled(net) and TRUE_SCALE not in arguments(type(pipe)):
        raise IncompatibleError(
            f"the denoiser of this {name} is distilled from guided predictions: it is told the scale and gets no "
            "doubled batch. Use guidance=none; suite hub gives it the number suite.distilled_guidance."
        )
    if guidance_scale > 1:
        _check_guided(pipe)
    if scheduler is not None and gives_sigmas(pipe):
        _check_driven(name, scheduler, steps)


def _check_guided(pipe: Any) -> None:
    # Whether the pipeline asks its network for a null prediction.
    name = type(pipe).__name__
    asks = getattr(type(pipe), "do_classifier_free_guidance", None)
    distilled_steps = getattr(pipe, "config", {}).get("is_distilled", False)
    if distilled_steps and isinstance(asks, property) and "is_distilled" in _source_of(asks.fget):
        raise IncompatibleError(
            f"this {name} is distilled for few steps (is_distilled in its model_index.json) and is never guided, "
            "whatever scale it is told. Use guidance=none, or the base model, which is not distilled."
        )


def gives_sigmas(pipe: Any) -> bool:
    """Whether the pipeline hands its scheduler sigmas of its own and `mu` (Flux, Qwen-Image)."""
    return TRUE_SCALE in arguments(type(pipe))


def _check_driven(name: str, scheduler: Any, steps: int) -> None:
    # Flux hands its scheduler `mu`, and sigmas of its own unless the scheduler makes those of a flow itself.
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    needed = ["mu"] if scheduler.config.get("use_flow_sigmas") else ["mu", "sigmas"]
    missing = [argument for argument in needed if argument not in accepted]
    reason = f"its set_timesteps takes no {missing[0]}" if missing else None
    if reason is None:
        try:
            copy.deepcopy(scheduler).set_timesteps(steps, mu=1.0)
        except (AssertionError, TypeError, ValueError) as error:
            reason = str(error) or "it does not take the pipeline's mu"
    if reason:
        raise IncompatibleError(
            f"{name} cannot drive {type(scheduler).__name__}: {reason}. Use flow_euler or one of accel's own samplers "
            "of flows, such as rf_solver."
        )


def arguments(cls: type) -> Mapping[str, inspect.Parameter]:
    """The arguments of a call of a pipeline class by name, `self` first."""
    return inspect.signature(inspect.unwrap(cls.__call__)).parameters


@functools.cache
def draws_by_itself(cls: type) -> bool:
    """Whether a pipeline class draws the latents of an image by no generator that a caller gives."""
    return "latent_dist.sample()" in _source_of(cls)


@functools.cache
def _source(cls: type) -> str:
    return _source_of(inspect.unwrap(cls.__call__))


def _source_of(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # made without a file: nothing is known
        return ""
