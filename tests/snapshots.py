"""Whether a pipeline is exactly what it was."""

from __future__ import annotations

import torch

from accel.core.denoiser import denoiser_name


def snapshot(pipe, models=()) -> dict:
    """Everything about a pipeline that attaching a method could leave changed."""
    nets = [getattr(pipe, denoiser_name(pipe)), *models]
    return {
        "weights": [{k: v.clone() for k, v in net.state_dict().items()} for net in nets],
        "dtypes": [{k: v.dtype for k, v in net.state_dict().items()} for net in nets],
        "modules": [[(n, id(m)) for n, m in net.named_modules()] for net in nets],
        "attributes": [{n: sorted(m.__dict__) for n, m in net.named_modules()} for net in nets],
        "hooks": [sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) for net in nets],
        "scheduler": (id(pipe.scheduler), sorted(pipe.scheduler.__dict__), dict(pipe.scheduler.config)),
        "config": dict(pipe.config),
    }


def assert_same(a: dict, b: dict) -> None:
    for before, after in zip(a["weights"], b["weights"], strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before)
    for key in set(a) - {"weights"}:
        assert a[key] == b[key], key
