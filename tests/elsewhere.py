"""A device that is not there: `xpu:0` keeps its values on the CPU, and refuses what a GPU would refuse.

    with Elsewhere():
        pipe.to(DEVICE)

An operation of a tensor that was moved there with one on the CPU raises RuntimeError, and so does its `numpy()`.
Copies, CPU numbers (of no dimension) and CPU indices are allowed, as CUDA does. So what runs to its end there forgets
no move, and its numbers are the CPU's, bit for bit. Nothing is said of kernels, streams or speed.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "xpu:0"
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
WHOLE = (torch.int64, torch.int32, torch.bool, torch.uint8)


class Elsewhere(ExitStack):
    """The context in which the device exists. A tensor is where its storage is, which its views share."""

    def __enter__(self) -> Elsewhere:
        super().__enter__()
        self._there: set[int] = set()
        self.enter_context(_Said(self))
        self.enter_context(_Done(self))
        return self

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._there

    def put(self, made: Any, there: bool = True) -> Any:
        """`made`, with its tensors on the device, or on the CPU."""
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (tensor in self) != there:
                storage = tensor.untyped_storage()
                (self._there.add if there else self._there.discard)(storage._cdata)
                weakref.finalize(storage, self._there.discard, storage._cdata)
        return made


class _Said(TorchFunctionMode):
    """What Python asks and says about places: `device`, moves, and factories with a device."""

    def __init__(self, place: Elsewhere) -> None:
        super().__init__()
        self.place = place

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return torch.device(DEVICE) if args[0] in self.place else func(*args)
        if name == "numpy" and args[0] in self.place:
            raise RuntimeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")
        there = self._there(name, args, kwargs)
        if there is None:
            return func(*args, **kwargs)
        args = tuple(torch.device("cpu") if isinstance(a, (str, torch.device)) else a for a in args)
        made = func(*args, **kwargs | ({"device": torch.device("cpu")} if "device" in kwargs else {}))
        for tensor in args[:1]:  # a move is a copy, also where the CPU would need none
            if isinstance(tensor, torch.Tensor) and (tensor in self.place) != there:
                same = made.untyped_storage()._cdata == tensor.untyped_storage()._cdata
                made = made.clone() if same else made
        return self.place.put(made, there)

    def _there(self, name: str, args: tuple, kwargs: dict[str, Any]) -> bool | None:
        """Whether the result is to be on the device (True) or on the CPU (False); None if nothing is said of it."""
        if name == "cpu":
            return False
        if name == "new_tensor" and kwargs.get("device") is None:
            return args[0] in self.place
        said = [*(args[1:] if name == "to" else ()), kwargs.get("device"), kwargs.get("other")]
        for value in said:
            if isinstance(value, torch.Tensor):
                return value in self.place
            if isinstance(value, (str, torch.device)):
                return {"cpu": False, DEVICE: True}.get(str(value))
        return None


class _Done(TorchDispatchMode):
    """What operations do: they refuse tensors of two places, and their results stay in the place of their inputs."""

    def __init__(self, place: Elsewhere) -> None:
        super().__init__()
        self.place = place

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if name == "copy_" or not any(x in self.place for x in tensors):
            return func(*args, **(kwargs or {}))
        for x in tensors:
            if x not in self.place and x.dim() and not (name in INDEXING and x.dtype in WHOLE):
                raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu: {name}")
        return self.place.put(func(*args, **(kwargs or {})))
