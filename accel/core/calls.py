"""What a caller passes to a pipeline that the recipe decides, too: the pipeline is told, or the call is refused.

A pipeline computes with its own `num_inference_steps` before and after it asks the scheduler: where image-to-image
begins (strength), the exponent of dynamic shifting, the timesteps that it makes itself. So it must be the recipe's
number. Only a subclass can see a call of an object, and that is what the pipeline is of for as long.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

from accel.core.guidance import Guidance, Scaled
from accel.core.pipelines import TRUE_SCALE, arguments
from accel.errors import AccelError, ConfigError, IncompatibleError

RESCALE, STEPS = "guidance_rescale", "num_inference_steps"
SECOND_SCALE = "guidance_scale_2"  # of a pipeline's second denoiser (Wan 2.2); None: the first one's
OWN_TIMES = ("timesteps", "sigmas")
MIDDLE = "intermediate_timesteps"  # the second of two times, which SANA-Sprint refuses at any other number by default
# What makes another trajectory of the same steps: the value that leaves it whole, or the pipeline's own default.
DEFAULT = object()
PARTIAL = {
    "strength": 1.0,
    "denoising_start": None,
    "denoising_end": None,
    "eta": DEFAULT,
    RESCALE: DEFAULT,
    SECOND_SCALE: DEFAULT,
}
NULL = ("negative_prompt", "negative_prompt_embeds")


@dataclass(frozen=True)
class Fixed:
    """What a recipe fixes of the calls of a pipeline: `steps` (None: the caller's own) and `scales`, the arguments by
    which its `guidance` is asked for.

    `strict`: whatever else a caller passes is refused (true), or said in one warning (false). None, for measurements:
    another number of steps is replaced without a word, and where a trajectory begins and ends is the caller's.
    """

    label: str
    steps: int | None
    guidance: Guidance | None
    scales: Mapping[str, float]
    strict: bool | None = None


@dataclass(frozen=True)
class Calls:
    """The calls of pipelines of class `cls` under a recipe."""

    cls: type
    fixed: Fixed

    @property
    def accepted(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of a call by name, `self` first."""
        return arguments(self.cls)

    def arguments(self, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, with what the recipe fixes. ConfigError or IncompatibleError for what it
        cannot go with; TypeError, as of any call, for arguments that the pipeline does not take."""
        accepted = self.accepted
        names = list(accepted)[1:]
        if len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
            inspect.signature(inspect.unwrap(self.cls.__call__)).bind(pipe, *args, **kwargs)  # raises what a call would
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        fixed = self.fixed
        if fixed.strict is None:
            if fixed.steps is not None:
                check_steps(given)
        elif said := differences(given, accepted, fixed):
            text = f"this call differs from what the recipe {fixed.label} runs: {'; '.join(said)}"
            if fixed.strict:
                raise ConfigError(
                    f"{text}. {_remedy(said, accepted)}; or apply it with strict=False, which warns in place of this "
                    "error."
                )
            warnings.warn(f"{text}.", stacklevel=5)
            given |= {name: None for name in OWN_TIMES if name in given and fixed.steps is not None}
            given = {name: value for name, value in given.items() if name not in fixed.scales}
        if fixed.steps is not None and STEPS in accepted:
            given[STEPS] = fixed.steps
            given |= {MIDDLE: None} if MIDDLE in accepted else {}
        for name, scale in fixed.scales.items():
            if name in accepted and given.get(name) is None:
                given[name] = scale
        if fixed.guidance is not None:
            check_call(given, accepted, fixed)
            given |= _null_prompt(given, accepted, fixed.guidance)
        return given

    def drive(self, pipe: Any, given: Mapping[str, Any]) -> Any:
        """What the pipeline's own call returns; IncompatibleError if it cannot drive its scheduler."""
        try:
            return self.cls.__call__(pipe, **given)
        except (AssertionError, TypeError, ValueError) as error:
            if isinstance(error, AccelError) or not _asked_for_timesteps(error):
                raise
            said = " ".join(str(error).split())[:300].rstrip(".")
            raise IncompatibleError(
                f"{self.cls.__name__} cannot drive {type(pipe.scheduler).__name__}: {said}. Use the pipeline's own "
                "kind of scheduler (sampler=flow_euler for flows), or one of accel's own samplers."
            ) from error


@contextmanager
def told(pipe: Any, scheduler: Any, fixed: Fixed, keep: Any) -> Iterator[None]:
    """Until the context ends calls of `pipe`, while it runs `scheduler`, get what the recipe fixes, one at a time. The
    pipeline keeps `keep` for as long."""
    calls, lock = Calls(type(pipe), fixed), RLock()

    def calling(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lock:
            if self is not pipe or self.scheduler is not scheduler:  # whatever runs another one asks for what it needs
                return calls.cls.__call__(self, *args, **kwargs)
            return calls.drive(self, calls.arguments(self, args, kwargs))

    with of_class(pipe, calling, "inside accelerate(); leave that context first", keep):
        yield


@contextmanager
def of_class(pipe: Any, calling: Callable[..., Any], why: str, keep: Any) -> Iterator[None]:
    """Until the context ends `pipe` is of a subclass whose objects are called by `calling`.

    Copies of it, pickled ones too, would share the state of a trajectory with it, or lose the recipe without a word;
    and what it saved would be a scheduler and weights of the recipe's. Both are refused: it is `why`.
    """
    cls = type(pipe)

    def refuse(doing: str) -> Callable[..., Any]:
        def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
            raise ConfigError(
                f"this {cls.__name__} cannot be {doing} while it is {why}. A recipe is saved by recipe.save(folder)."
            )

        return refusing

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return calling(self, *args, **kwargs)

    def from_pipe(_: type, *args: Any, **kwargs: Any) -> Any:
        return cls.from_pipe(*args, **kwargs)  # what is made of it is no pipeline under a recipe

    own = {
        "__call__": call,
        "__module__": cls.__module__,
        "__deepcopy__": refuse("copied"),
        "__copy__": refuse("copied"),
        "__reduce_ex__": refuse("pickled"),
        "save_pretrained": refuse("saved"),
        "_accel_keeps": keep,  # else what is undone when it goes would be undone when nobody holds the context
    }
    if hasattr(cls, "from_pipe"):
        own["from_pipe"] = classmethod(from_pipe)
    pipe.__class__ = type(cls.__name__, (cls,), own)
    try:
        yield
    finally:
        pipe.__class__ = cls


def differences(given: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter], fixed: Fixed) -> list[str]:
    """In words, each argument of a call by which it is another trajectory than the recipe's."""
    said = []
    if fixed.steps is not None:
        if (steps := given.get(STEPS)) not in (None, fixed.steps):
            said.append(f"{STEPS}={steps!r}, and it has {fixed.steps}")
        said += [
            f"{name} of its own, which sampler and grid decide" for name in OWN_TIMES if given.get(name) is not None
        ]
    for name, own in fixed.scales.items():
        scale = given.get(name)
        off = isinstance(scale, (int, float)) and max(scale, own) <= 1  # at 1 and below nothing is guided
        if scale is not None and scale != own and not off:
            said.append(f"{name}={scale}, and its own is {own:g}")
    for name, whole in PARTIAL.items():
        if name not in accepted:
            continue
        default = accepted[name].default
        value, wanted = given.get(name, default), default if whole is DEFAULT else whole
        if value is not None and value != wanted:
            by = "" if name in given else ", the pipeline's default"
            said.append(f"{name}={value!r}{by}, and it was measured with {wanted!r}")
    return said


def _remedy(said: list[str], accepted: Mapping[str, inspect.Parameter]) -> str:
    """How a call is made that differs in what was `said`. Where the pipeline's default is not what was measured, to
    leave the argument out would be refused again."""
    whole = {name: whole for name, whole in PARTIAL.items() if whole is not DEFAULT and name in accepted}
    passed = [
        f"{name}={value!r}"
        for name, value in whole.items()
        if accepted[name].default != value and any(text.startswith(f"{name}=") for text in said)
    ]
    if not passed:
        return "Leave these arguments out, for the recipe gives them"
    others = ". Leave the others out, for the recipe gives them" if len(said) > len(passed) else ""
    return f"Pass {', '.join(passed)}{others}"


def _asked_for_timesteps(error: BaseException) -> bool:
    # Whether it was raised where a pipeline gets its timesteps: what it asks of a scheduler is told by no signature.
    at, names = error.__traceback__, []
    while at is not None:
        names.append(at.tb_frame.f_code.co_name)
        at = at.tb_next
    return "set_timesteps" in str(error) or any(
        name.endswith(("set_timesteps", "retrieve_timesteps")) for name in names
    )


def check_steps(given: Mapping[str, Any]) -> None:
    """ConfigError for timesteps of the caller's own, which the recipe's sampler and grid decide."""
    if found := [name for name in OWN_TIMES if given.get(name) is not None]:
        raise ConfigError(
            f"the pipeline is called with {found[0]}, which the recipe's sampler and grid decide; leave them out, or "
            "give the recipe grid=ExplicitGrid(timesteps=...)."
        )


def check_call(given: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter], fixed: Fixed) -> None:
    """ConfigError or IncompatibleError for arguments `given` that the recipe's guidance cannot go with."""
    guidance = fixed.guidance
    scales = dict(fixed.scales) | ({SECOND_SCALE: guidance.pipeline_scale} if SECOND_SCALE in accepted else {})
    for name, wanted in scales.items() if isinstance(guidance, Scaled) else ():
        scale = given.get(name)
        if isinstance(scale, (int, float)) and min(scale, wanted) > 1 and scale != wanted:
            raise ConfigError(
                f"the pipeline is called with {name}={scale:g}, and the recipe's guidance {guidance.label} is made "
                f"for {wanted:g}; call the pipeline with {name}={wanted:g}."
            )
    default = accepted[RESCALE].default if RESCALE in accepted else 0.0
    rescale = given.get(RESCALE, default)
    if isinstance(rescale, (int, float)) and rescale and not guidance.keeps_conditional:
        raise IncompatibleError(
            f"{RESCALE}={rescale:g} measures the network's conditional prediction, and guidance {guidance.label} gives "
            f"the pipeline a changed one; call the pipeline with {RESCALE}=0, or use guidance=cfg."
        )


def _null_prompt(
    given: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter], guidance: Guidance
) -> dict[str, Any]:
    # Pipelines with a true_cfg_scale guide where there is a negative prompt, too; without one it is the empty one.
    unsaid = all(given.get(name) is None for name in NULL)
    if TRUE_SCALE not in accepted or NULL[0] not in accepted or guidance.pipeline_scale <= 1 or not unsaid:
        return {}
    prompt = given.get("prompt")
    if prompt is None:
        raise ConfigError(
            f"guidance {guidance.label} needs a negative prompt, and the pipeline is called with prompt_embeds alone; "
            f"pass {NULL[1]}, too."
        )
    return {NULL[0]: "" if isinstance(prompt, str) else [""] * len(prompt)}
