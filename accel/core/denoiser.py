"""The denoiser seam: how guidance, stitching, caching and precision wrap a network, and how the wrap comes off.

`pipe.unet` (or `pipe.transformer`) stays the very same object: only its instance attribute `forward` is shadowed while
methods are attached, so its config, dtype, device and hooks keep working. Methods see normalised `Inputs` and return
the prediction as one tensor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from accel.core.attention import in_pytorch
from accel.core.conditioning import conditioning_of
from accel.core.devices import send
from accel.core.trajectory import Trajectory
from accel.errors import IncompatibleError


class Block(NamedTuple):
    """The rows of one part of the batch in a call: those from `start` to before `stop`. `members`: which samples of the
    part they are; None: all of it, in order."""

    part: str
    members: tuple[int, ...] | None
    start: int
    stop: int

    @property
    def samples(self) -> Sequence[int]:
        """The sample of each row."""
        return range(self.stop - self.start) if self.members is None else self.members


@dataclass(frozen=True)
class Inputs:
    """One denoiser call: all arguments by name. `parts` names the row blocks of the batch, in order.

    `members`: which samples of each part are here, if not all; what is kept of a row is found by them. `uneven`: the
    blocks of a call whose parts hold different samples, and so may differ in size (`members` says nothing then); such
    calls come to methods that say that they take them (`Method.uneven`), and `blocks` tells of every call which rows
    are whose. `listed`: the network takes and returns lists of tensors, one a row (Z-Image): the sample is stacked
    here, and other lists as long are of rows, too. `joint`: rows of several parts can be one call.
    """

    kwargs: dict[str, Any]
    sample_name: str
    parts: tuple[str, ...] = ("all",)
    members: tuple[int, ...] | None = None
    listed: bool = False
    uneven: tuple[Block, ...] = ()
    joint: ClassVar[bool] = True

    @property
    def sample(self) -> torch.Tensor:
        return self.kwargs[self.sample_name]

    @property
    def rows(self) -> int:
        return len(self.sample)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Whose rows these are, part by part."""
        if self.uneven:
            return self.uneven
        size = self.rows // len(self.parts)
        return tuple(Block(part, self.members, i * size, (i + 1) * size) for i, part in enumerate(self.parts))

    @property
    def samples(self) -> list[int]:
        """The sample of each row; the same number in several parts is the same sample."""
        return [sample for block in self.blocks for sample in block.samples]

    def take(self, part: str) -> Inputs:
        """Only the rows of one part; every batched argument is sliced alike."""
        block = self.blocks[self.parts.index(part)]
        own = slice(block.start, block.stop)
        taken = self._batched(lambda tensor: tensor[own], lambda row_list: row_list[own])
        return replace(taken, parts=(part,), members=block.members, uneven=())

    def only(self, members: Mapping[str, Sequence[int] | None]) -> Inputs:
        """The rows of these samples of each part (None: of all that are here); parts that are not named, or of no
        sample, are left out. KeyError for a sample that is not here."""
        places = []
        for block in self.blocks:
            place = {sample: block.start + i for i, sample in enumerate(block.samples)}
            asked = members.get(block.part, ())
            places += place.values() if asked is None else [place[sample] for sample in asked]
        return self.chosen(places)

    def chosen(self, places: Sequence[int]) -> Inputs:
        """The rows at these places, part by part; whose they are goes with them."""
        blocks: list[Block] = []
        order: list[int] = []
        for part, members, start, stop in self.blocks:
            if own := [place - start for place in places if start <= place < stop]:
                held = range(stop - start) if members is None else members
                whole = own == list(range(stop - start))
                left = members if whole else tuple(held[place] for place in own)
                blocks.append(Block(part, left, len(order), len(order) + len(own)))
                order += [start + place for place in own]
        parts, even = tuple(block.part for block in blocks), len({block.members for block in blocks}) == 1
        laid = {"members": blocks[0].members, "uneven": ()} if even else {"members": None, "uneven": tuple(blocks)}
        return replace(self.at(order), parts=parts, **laid)

    def pick(self, members: Sequence[int]) -> Inputs:
        """Only these rows of inputs that have a single part, all of it."""
        return replace(self.at(members), members=tuple(members))

    def at(self, places: Sequence[int]) -> Inputs:
        """The rows at these places; `parts` and `members` are left as they are."""
        rows = send(list(places), self.sample.device)
        return self._batched(lambda tensor: tensor[rows], lambda row_list: [row_list[i] for i in places])

    def tiled(self, times: int) -> Inputs:
        """The whole batch `times` times over; every batched argument is repeated alike."""
        return self._batched(lambda tensor: torch.cat([tensor] * times), lambda row_list: row_list * times)

    def cloned(self) -> Inputs:
        """The same call on copies of all tensors."""
        return replace(self, kwargs=mapped(self.kwargs, torch.clone))

    def given(self, **kwargs: Any) -> Inputs:
        """The same call with some arguments replaced."""
        return replace(self, kwargs=self.kwargs | kwargs)

    def _batched(
        self, change: Callable[[torch.Tensor], torch.Tensor], change_list: Callable[[list[Any]], list[Any]]
    ) -> Inputs:
        # Tensors with a row for each sample are changed, and lists of rows where the network takes such; others kept.
        rows = self.rows

        def changed(name: str, value: Any) -> Any:
            if self.listed and isinstance(value, list) and len(value) == rows:
                return change_list(value)
            if name in ALONG_SECOND:
                return mapped(value, lambda t: change(t.transpose(0, 1)).transpose(0, 1))
            if name in FRAMED and isinstance(value, torch.Tensor) and self._of_frames(value):
                return change(value.unflatten(0, (rows, -1))).flatten(0, 1)
            least = 3 if name in POSITIONS else 1
            return mapped(value, lambda t: change(t) if t.dim() >= least and len(t) == rows else t)

        return replace(self, kwargs={name: changed(name, value) for name, value in self.kwargs.items()})

    def _of_frames(self, value: torch.Tensor) -> bool:
        # Whether a tensor has a row for each frame of each video of a sample (B, C, F, H, W), one after the other.
        return self.sample.dim() == 5 and self.sample.shape[2] > 1 and len(value) == self.rows * self.sample.shape[2]

    def with_parts(self, parts: tuple[str, ...]) -> Inputs:
        """The same rows as equal blocks of these parts."""
        return replace(self, parts=parts, uneven=())


POSITIONS = ("image_rotary_emb", "img_ids", "txt_ids", "freqs_cis")  # of tokens: (N, D), whatever the number of rows
FRAMED = ("encoder_hidden_states",)  # arguments that may have rows of frames (AnimateDiff)
ALONG_SECOND = ("encoder_hidden_states_llama3",)  # arguments whose rows are along their second dimension (HiDream)

Denoise = Callable[[Inputs], torch.Tensor]
Place = Callable[[nn.Module, Callable[..., Any]], AbstractContextManager[None]]
Sample = Callable[[Any, int, int], torch.Tensor]  # (recipe, start, stop) -> images of those samples


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor in it changed, however dicts, lists and tuples nest."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    return type(value)(mapped(v, change) for v in value) if isinstance(value, (list, tuple)) else value


def stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows (...) as one tensor (B, ...); IncompatibleError where they differ in shape."""
    if len(shapes := {tuple(row.shape) for row in rows}) > 1:
        raise IncompatibleError(
            f"the denoiser is called with images of several shapes at once, {sorted(shapes)[:3]}; allowed: one. Call "
            "the pipeline for each size by itself."
        )
    return torch.stack(list(rows))


def held_bytes(state: Iterable[Any]) -> int:
    """Bytes of all tensors in `state`: containers that nest however they like (mappings, sequences, objects with
    attributes), or functions that give such. What several tensors share counts once, and whole."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [item() if callable(item) else item for item in state]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        elif id(value) not in seen and not isinstance(value, (str, bytes, nn.Module, type)):
            seen.add(id(value))
            if isinstance(value, Mapping):
                waiting += value.values()
            elif isinstance(value, (list, tuple, set)):
                waiting += value
            else:
                waiting += vars(value).values() if hasattr(value, "__dict__") and not callable(value) else ()
    return sum(storages.values())


def first_output(output: Any) -> torch.Tensor:
    """The tensor that a module is for, of whatever it returned: a tuple's first, an output object's `sample`."""
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", output)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        # The timestep keeps its precision: its embedding is computed in float32 whatever the weights are.
        return {k: v if k == "timestep" else _cast(v, dtype) for k, v in value.items()}
    return type(value)(_cast(v, dtype) for v in value) if isinstance(value, (list, tuple)) else value


@dataclass
class Node:
    """One network within a recipe: its module, its name in traces, the clock and the undo stack.

    `dtype` is what floating-point inputs (not the timestep) are cast to for the network; predictions are cast back.
    `evaluating` tells whether the network runs now, `within()` is entered for as long, `mode` is what the trace calls
    an evaluation of it. A cache puts what it keeps from step to step into `state` (containers of tensors, or functions
    that give such), to be weighed. `uneven`: whether all methods on it take calls whose parts hold different samples.
    For the guidance, which sits on the pipeline's own network: `guides` are the denoisers of the further networks that
    it names, `classifier` gives logits of a clean image, and what it remembers while sampling is in `memory`, emptied
    with every trajectory. `cached_share`: the part of its blocks' weights that a cache passes by.
    """

    name: str
    net: nn.Module
    clock: Trajectory
    undo: ExitStack
    count_macs: bool = False
    artefact: dict[str, torch.Tensor] | None = None
    layout: str = "uncond_first"
    dtype: torch.dtype | None = None
    evaluating: bool = False
    guides: dict[str, Denoise] = field(default_factory=dict)
    classifier: nn.Module | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    mode: str = "full"
    cached_share: float | None = None
    state: list[Any] = field(default_factory=list)
    uneven: bool = True
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    _return_dict: bool = False
    _names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._return_dict = _takes_return_dict(self.net)
        self._names = list(signature_of(self.net).parameters)[1:]

    def evaluate(self, inputs: Inputs, forward: Callable[..., Any], mode: str | None = None) -> torch.Tensor:
        """Run `forward` on `inputs`, note it in the trace as `mode` (the node's own) and return the prediction."""
        prediction, macs = self._counted(lambda: self.predict(inputs, forward))
        self.clock.note(self.name, mode or self.mode, inputs.rows, macs)
        return prediction

    def predict(self, inputs: Inputs, forward: Callable[..., Any]) -> torch.Tensor:
        """What `forward` predicts for `inputs`; nothing is noted."""
        kwargs = self.arguments(inputs)
        self.evaluating = True
        try:
            with self.within():
                output = forward(**kwargs)
        finally:
            self.evaluating = False
        prediction = first_output(output)
        prediction = torch.stack(prediction) if inputs.listed else prediction
        return prediction if self.dtype is None else prediction.to(inputs.sample.dtype)

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        """What the network's own forward is called with for `inputs`: tensors of the node's dtype, by name."""
        kwargs = self._own_arguments(inputs)
        kwargs = kwargs if self.dtype is None else _cast(kwargs, self.dtype)
        if inputs.listed:
            kwargs = kwargs | {self._names[0]: list(kwargs[self._names[0]].unbind())}
        return kwargs | {"return_dict": False} if self._return_dict else kwargs

    def _own_arguments(self, inputs: Inputs) -> dict[str, Any]:
        # The call came for the pipeline's network. Another may be told its condition in its own way; another class has
        # other names, and a DiT wants a time for each row.
        translate = conditioning_of(self.net)
        if translate is not None:
            inputs = replace(inputs, kwargs=inputs.kwargs | dict(translate(inputs.kwargs)))
        if inputs.sample_name == self._names[0]:
            return inputs.kwargs
        kwargs = {k: v for k, v in inputs.kwargs.items() if k in self._names} | {self._names[0]: inputs.sample}
        time = send(kwargs["timestep"], inputs.sample.device)
        return kwargs | {"timestep": time.expand(inputs.rows) if time.dim() == 0 else time}

    def aside(self, name: str, mode: str, rows: int, work: Callable[[], Any]) -> Any:
        """Do `work` of a network that is no denoiser on `rows` samples; its MACs count, its rows are no NFE."""
        result, macs = self._counted(work)
        self.clock.note(name, mode, rows, macs, denoiser=False)
        return result

    def _counted(self, work: Callable[[], Any]) -> tuple[Any, int | None]:
        if not self.count_macs:
            return work(), None
        from accel.core.macs import count_macs

        with in_pytorch(self.net):  # other kernels would not be seen
            return count_macs(work)


def denoiser_name(pipe: Any) -> str:
    """Attribute name of the pipeline's denoiser: `unet` or `transformer`."""
    for name in ("unet", "transformer"):
        if isinstance(getattr(pipe, name, None), nn.Module):
            return name
    raise IncompatibleError(f"{type(pipe).__name__} has neither `unet` nor `transformer`; nothing to accelerate.")


def signature_of(net: nn.Module) -> inspect.Signature:
    """Signature of the class's own forward, whatever shadows it on the instance."""
    target = getattr(net, "_orig_mod", net)  # torch.compile's wrapper
    return inspect.signature(type(target).forward)


def _takes_return_dict(net: nn.Module) -> bool:
    return "return_dict" in signature_of(net).parameters


@contextmanager
def shadow_forward(net: nn.Module, denoise: Denoise, clock: Trajectory, place: Place | None = None) -> Iterator[None]:
    """Route calls of `net` through `denoise` until the context ends, then restore `net` exactly. `place`: what puts a
    function in the place of the network's forward (None: `replaced_forward`)."""
    signature, return_dict = signature_of(net), _takes_return_dict(net)
    names = [p.name for p in list(signature.parameters.values())[1:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    sample_name = names[0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
            signature.bind(net, *args, **kwargs)  # raises what the network's own forward would
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        wrapped = kwargs.pop("return_dict", True)
        listed = isinstance(kwargs[sample_name], list)
        if listed:
            kwargs[sample_name] = stacked(kwargs[sample_name])
        inputs = Inputs(kwargs, sample_name, listed=listed)
        clock.enter(inputs.rows, kwargs.get("timestep"))
        prediction = denoise(inputs)
        prediction = list(prediction.unbind()) if listed else prediction
        if return_dict and wrapped:
            from diffusers.models.modeling_outputs import Transformer2DModelOutput

            return Transformer2DModelOutput(sample=prediction)
        return (prediction,) if return_dict else prediction

    forward.beneath = forward_beneath(net)
    with (place or replaced_forward)(net, forward):
        yield


def forward_beneath(net: nn.Module) -> Callable[..., Any]:
    """The network's own forward, other libraries' hooks included, whether or not `shadow_forward` shadows it."""
    return getattr(net.forward, "beneath", net.forward)


def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> AbstractContextManager[None]:
    """`module.forward` is another function until the context ends, then what it was."""
    return replaced(module, "forward", forward)


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The method `name` of an object is another function until the context ends, then what it was."""
    had, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
