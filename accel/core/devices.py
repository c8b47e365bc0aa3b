"""Devices: numbers sent there without a wait, and the lock of whoever times on one."""

from __future__ import annotations

import getpass
import os
import platform
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from accel.errors import ConfigError

PINNING = ("cuda", "xpu")  # from page-locked memory these copy while the host goes on
DEVICES = re.compile(r"auto|cpu|(cuda|xpu|mps)(:\d+)?")
LOCKS = "ACCEL_LOCKS"  # the environment variable that names the folder of locks


def send(values: Any, device: torch.device | str | None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor, array or list `values` of the host on `device`; the host does not wait for the copy."""
    tensor, device = torch.as_tensor(values, dtype=dtype), torch.device(device or "cpu")
    if device.type not in PINNING or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def resolved(device: Any, name: str) -> str:
    """The device that is meant by `auto`, a kind or a numbered one; ConfigError, which calls it `name`, if it is not
    here."""
    if not isinstance(device, str) or not DEVICES.fullmatch(device):
        raise ConfigError(f"{name} is {device!r}; allowed: auto, cpu, cuda or cuda:<number>, xpu, mps.")
    if device == "auto":
        return "cuda" if device_count("cuda") else "cpu"
    kind, _, number = device.partition(":")
    if kind != "cpu" and not (count := device_count(kind)):
        raise ConfigError(f"{name}={device}, but torch sees no GPU of that kind; use {name}=cpu.")
    if number and int(number) >= count:
        raise ConfigError(f"{name}={device}; allowed: {kind}:0 to {kind}:{count - 1}.")
    return device


def check_devices(devices: Any) -> tuple[str, ...]:
    """The setting `devices`, a list of different devices of one kind, each here; ConfigError otherwise."""
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise ConfigError(f"devices is {devices!r}; allowed: a list, such as devices=[cuda:0,cuda:2].")
    found = tuple(resolved(device, "devices") for device in devices)
    if len({*found}) < len(found) or len({device.partition(":")[0] for device in found}) > 1:
        raise ConfigError(
            f"devices is {[*devices]}; allowed: different devices of one kind. Several workers share each where "
            "workers= is a multiple of their number."
        )
    return found


def assigned(place: int, device: str, devices: Sequence[str] = ()) -> str:
    """The device of the worker at a place, 0, 1, ...: of `devices`, or else of all of the kind of `device` if that has
    no number; one after the other, and round again."""
    if not devices and ":" not in device and device != "cpu":
        devices = [f"{device}:{number}" for number in range(device_count(device))]
    return devices[place % len(devices)] if devices else device


def settle(device: str) -> None:
    """Make `device` the current one of this process: what a library puts on "cuda" lands there, and nowhere else."""
    kind, _, number = device.partition(":")
    if number and hasattr(module := torch.get_device_module(kind), "set_device"):
        module.set_device(int(number))


def device_count(kind: str) -> int:
    """How many devices of a kind (cuda, xpu, mps) torch can use here."""
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def device_lock(device: torch.device | str) -> Path:
    """The file that whoever times on `device` locks, and whoever generates there shares, in whatever results folder.

    One for each GPU of this machine (by its own id, whatever it is called in this process), one for its CPU. It lies in
    the user's part of the system's temporary folder, or in $ACCEL_LOCKS: for several users or containers, one that all
    of them see.
    """
    folder = os.environ.get(LOCKS) or Path(tempfile.gettempdir()) / f"accel-locks-{_user()}"
    return Path(folder) / (re.sub(r"[^\w.-]", "_", f"{platform.node()}-{_identity(torch.device(device))}") + ".lock")


def _identity(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    found = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return f"cuda-{index if found is None else found}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return "user"
