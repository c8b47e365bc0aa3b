"""Whether a pipeline is exactly what it was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from accel.core.denoiser import denoiser_name


def snapshot(pipe: Any, models: Iterable[nn.Module] = (), copy: bool = True) -> dict[str, Any]:
    """Everything about a pipeline, and about further networks, that attaching a method could leave changed. `copy`:
    of the weights, without which it says what they are when it is compared."""
    nets = [getattr(pipe, denoiser_name(pipe)), *models]
    weights = [net.state_dict() for net in nets]
    modules = [list(net.named_modules()) for net in nets]
    return {
        "weights": [{k: v.clone() for k, v in own.items()} for own in weights] if copy else weights,
        "dtypes": [{k: v.dtype for k, v in own.items()} for own in weights],
        "modules": [[(n, id(m)) for n, m in own] for own in modules],
        "attributes": [{n: sorted(m.__dict__) for n, m in own} for own in modules],
        "hooks": [sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for _, m in own) for own in modules],
        "scheduler": (id(pipe.scheduler), sorted(pipe.scheduler.__dict__), dict(pipe.scheduler.config)),
        "config": dict(pipe.config),
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """AssertionError, with what differs, unless two snapshots are of one state."""
    for before, after in zip(a["weights"], b["weights"], strict=True):
        for name in before:
            assert torch.equal(before[name], after[name]), f"the weights of {name} were not restored"
    for key in set(a) - {"weights"}:
        assert a[key] == b[key], f"{key} of the pipeline are not what they were: {a[key]} became {b[key]}"
