"""A GPU that is not there: `cuda:1` keeps its values on the CPU, refuses what a GPU refuses, and counts its waits.

    with Elsewhere() as device:
        pipe.to(DEVICE)
        ...
    print(device.waits)

An operation of a tensor that was moved there with one of another place raises RuntimeError; so do its `numpy()` and
a CPU generator that is to fill it. Copies, CPU numbers (of no dimension) and CPU indices are allowed, as CUDA does. So
what runs to its end there forgets no move, and its numbers are the CPU's, bit for bit. A bare "cuda" is `cuda:0`,
another place. Nothing is said of kernels, streams or speed.

Counted is what makes the host wait for the device: a value that it reads (`item`, `float`, `bool`, `tolist`, a branch),
a copy to it, a result whose size depends on values (`nonzero`, boolean indices, `unique`), and a copy to the device
that is not `non_blocking`. Each wait says the innermost line of Python outside torch where it happens.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from accel.core.macs import tensors
from accel.testing.waits import WAITING, line_of_caller

DEVICE = "cuda:1"
FREE = 24 * 2**30  # bytes that it says it has
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
WHOLE = (torch.int64, torch.int32, torch.bool, torch.uint8)
READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__complex__", "equal", "is_nonzero")
SIZED = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
MADE_OF_VALUES = ("tensor", "as_tensor", "new_tensor", "asarray", "from_numpy")


class Elsewhere(ExitStack):
    """The context in which the device exists. A tensor is where its storage is, which its views share.

    `waits`: Counter of (kind, "module:line"), kind one of read, copy, size (device to host), send (host to device).
    """

    def __enter__(self) -> Elsewhere:
        super().__enter__()
        self._places: dict[int, str] = {}
        self.current = 0  # the index that a bare "cuda" means
        self.waits: Counter[tuple[str, str]] = Counter()
        self.debug = 0  # torch's mode: above 0 each wait is a warning, too
        for name, value in _cuda(self).items():
            self.enter_context(mock.patch.object(torch.cuda, name, value))
        self.enter_context(_Said(self))
        self.enter_context(_Done(self))
        return self

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return self.place(tensor) != "cpu"

    def place(self, tensor: torch.Tensor) -> str:
        """Where a tensor is: cpu, cuda:0 or cuda:1."""
        return self._places.get(tensor.untyped_storage()._cdata, "cpu") if _stored(tensor) else "cpu"

    def named(self, device: Any) -> str | None:
        """What `device` means: cpu or cuda:<number>; None for another kind, which is torch's own business."""
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type == "cpu":
            return "cpu"
        return f"cuda:{self.current if device.index is None else device.index}" if device.type == "cuda" else None

    def put(self, made: Any, place: str) -> Any:
        """`made`, with its tensors in `place`."""
        places = self._places
        for tensor in tensors(made):
            if not _stored(tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if places.get(key, "cpu") != place:
                places.pop(key, None)
                if place != "cpu":
                    places[key] = place
                    weakref.finalize(storage, places.pop, key, None)
        return made

    def note(self, kind: str) -> None:
        """Count one wait of the host."""
        self.waits[kind, line_of_caller(__name__)] += 1
        if self.debug:
            warnings.warn(f"called a {WAITING}: {kind}", stacklevel=2)

    @property
    def total(self) -> int:
        """How often the host has waited since the device is there."""
        return sum(self.waits.values())


def _stored(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


class _Said(TorchFunctionMode):
    """What Python asks and says about places: `device`, moves, reads, and factories with a device."""

    def __init__(self, device: Elsewhere) -> None:
        super().__init__()
        self.there = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, there = kwargs or {}, getattr(func, "__name__", ""), self.there
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        place = "cpu" if first is None else there.place(first)
        if func == torch.Tensor.device.__get__:
            return func(*args) if place == "cpu" else torch.device(place)
        if func == torch.Tensor.is_cuda.__get__:
            return place != "cpu"
        if func == torch.Tensor.is_cpu.__get__:
            return place == "cpu"
        if func == torch.Tensor.grad.__get__:
            return there.put(func(*args), place)
        if name == "get_device" and place != "cpu":
            return torch.device(place).index
        if name == "numpy" and place != "cpu":
            raise RuntimeError(f"can't convert {place} device type tensor to numpy. Use Tensor.cpu() first.")
        if name == "pin_memory":
            return first.clone()
        if name in READS and place != "cpu":
            there.note("read")
        asked = self._asked(name, args, kwargs)
        if asked is None:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if asked != "cpu" and generator is not None and generator.device.type == "cpu":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        self._wait(name, first, place, asked, kwargs)
        args = tuple(torch.device("cpu") if self._is_device(a) else a for a in args)
        made = func(*args, **kwargs | ({"device": torch.device("cpu")} if "device" in kwargs else {}))
        if first is not None and name != "new_tensor" and place != asked:
            # A move is a copy, also where the CPU would need none.
            same = made.untyped_storage()._cdata == first.untyped_storage()._cdata
            made = made.clone() if same else made
        return there.put(made, asked)

    def _is_device(self, value: Any) -> bool:
        return isinstance(value, torch.device) or (
            isinstance(value, str) and value.partition(":")[0] in ("cuda", "cpu")
        )

    def _wait(self, name: str, first: torch.Tensor | None, place: str, asked: str, kwargs: dict[str, Any]) -> None:
        moved = first is not None and name not in ("new_tensor", *MADE_OF_VALUES) and not name.endswith("_like")
        if moved and place != asked and not name.startswith("new_"):
            if asked == "cpu":
                self.there.note("copy")
            elif place == "cpu" and not kwargs.get("non_blocking"):
                self.there.note("send")
        elif name in MADE_OF_VALUES and asked != place and asked != "cpu":
            self.there.note("send")

    def _asked(self, name: str, args: tuple, kwargs: dict[str, Any]) -> str | None:
        """Where the result is to be; None if nothing is said of it."""
        if name in ("cpu", "cuda"):
            said = (args[1:] and args[1]) or kwargs.get("device") or name
            return self.there.named(f"cuda:{said}" if isinstance(said, int) else said)
        if name == "new_tensor" and kwargs.get("device") is None:
            return self.there.place(args[0])
        for value in (*(args[1:] if name == "to" else ()), kwargs.get("device"), kwargs.get("other")):
            if isinstance(value, torch.Tensor):
                return self.there.place(value)
            if self._is_device(value):
                return self.there.named(value)
        return None


class _Done(TorchDispatchMode):
    """What operations do: they refuse tensors of two places, and their results stay in the place of their inputs."""

    def __init__(self, device: Elsewhere) -> None:
        super().__init__()
        self.there = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, there = kwargs or {}, self.there
        own = [(x, there.place(x)) for x in tensors((args, kwargs))]
        place = next((p for _, p in own if p != "cpu"), None)
        if place is None:
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name == "copy_" and torch._C._current_graph_task_id() == -1:
            self._copied(*args[:2])
            return func(*args, **kwargs)
        if torch._C._current_graph_task_id() != -1:  # gradients: torch itself makes tensors, with the options of others
            return there.put(func(*args, **kwargs), place)
        for x, at in own:
            index = name in INDEXING and x.dtype in WHOLE and x is not own[0][0]
            if at != place and (at != "cpu" or x.dim()) and not (index and at == "cpu"):
                raise RuntimeError(f"Expected all tensors to be on the same device, but found {place} and {at}: {name}")
            if index and at == "cpu" and x.dim():
                there.note("send")
            elif index and x.dtype in (torch.bool, torch.uint8):
                there.note("size")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if name in SIZED:
            there.note("size")
        return there.put(func(*args, **kwargs), place)

    def _copied(self, to: torch.Tensor, source: torch.Tensor) -> None:
        before, after = self.there.place(source), self.there.place(to)
        if before == "cpu" != after and source.dim():
            self.there.note("send")
        elif after == "cpu" != before:
            self.there.note("copy")


class _Event:
    """A CUDA event: a time on the stream of the device that is current when it is recorded."""

    def __init__(self, there: Elsewhere) -> None:
        self.there = there

    def record(self, stream: Any = None) -> None:
        self.device, self.seconds = self.there.current, time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        if self.device != end.device:
            raise RuntimeError(f"events of two devices: cuda:{self.device} and cuda:{end.device}")
        return 1000 * (end.seconds - self.seconds)

    def synchronize(self) -> None: ...


def _cuda(there: Elsewhere) -> dict[str, Any]:
    """What torch.cuda answers while the device is there: two GPUs."""

    @contextmanager
    def device(index):
        before, there.current = there.current, torch.device(there.named(index)).index
        try:
            yield
        finally:
            there.current = before

    def synchronize(device=None) -> None:
        there.note("read")

    def set_sync_debug_mode(mode) -> None:
        there.debug = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)

    return {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: there.current,
        "device": device,
        "set_device": lambda index: setattr(there, "current", torch.device(there.named(index)).index),
        "synchronize": synchronize,
        "set_sync_debug_mode": set_sync_debug_mode,
        "get_sync_debug_mode": lambda: there.debug,
        "Event": lambda **settings: _Event(there),
        "get_device_name": lambda device=None: "pretended GPU",
        "get_device_properties": lambda index: SimpleNamespace(uuid=f"pretended-{index}"),
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *args, **kwargs: True,
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (FREE, FREE),
    }
