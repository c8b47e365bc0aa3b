"""Which kernel computes the denoiser's attention: diffusers' backends (`set_attention_backend`), by their names there.

What a backend is part of, by one rule: one that computes softmax(Q K^T / sqrt(d)) V in the type of Q, K and V differs
from another such in the order of its sums, which is rounding, and is of a timing's identity alone; one that quantises
Q, K, V or the probabilities (SageAttention, Zhang et al. 2024, arXiv:2410.02367: int8 and fp8) changes images, and is
of theirs. `EXACT` says which are the former, by families, so that a backend of later days counts as the latter. Before
work the rule is held against numbers: on the device, in the suite's type, such a backend's error against float64 must
be at most `ROUNDING` times that of the formula itself in that type.

diffusers also keeps the last backend that was set as the default of all other networks; here that is put back.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from accel.core.attention import processors
from accel.core.devices import send
from accel.errors import ConfigError, IncompatibleError, unknown

EXACT = re.compile(r"_?(native|flash|flex|xformers|aiter)(_\w+)?")
ROUNDING = 4.0
SHAPE = (1, 64, 2)  # batch, tokens, heads of the measured attention; the width of a head is the model's
WIDTH = 64  # where its config tells none


def exact(backend: str) -> bool:
    """Whether a backend changes numbers by rounding alone."""
    return EXACT.fullmatch(backend) is not None


def check_name(backend: str) -> None:
    """ConfigError unless diffusers has such a backend, and it is no code that is fetched when it is used."""
    from diffusers.models import attention_dispatch as dispatch

    names = {each.value: each for each in dispatch.AttentionBackendName}
    fetched = {each.value for each in dispatch._HUB_KERNELS_REGISTRY}
    if backend not in names:
        raise unknown("suite.attention", str(backend), sorted({*names} - fetched))
    if backend in fetched:
        raise ConfigError(
            f"suite.attention={backend} fetches its kernel from the hub when it is used, code that no record could "
            "name; use a backend of an installed package (flash, sage, xformers), or of PyTorch (flex, _native_flash)."
        )


def check(backend: str, device: str, dtype: torch.dtype, width: int = WIDTH) -> None:
    """ConfigError unless `backend` computes attention of heads of `width` in `dtype` on `device`, and as its rule says.

    Runs it once on SHAPE (some ms).
    """
    check_name(backend)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without")
            error = measured(lambda q, k, v: _run(backend, q, k, v), device, dtype, width)
    except Exception as failed:  # each package has errors of its own
        reason = " ".join(str(failed).split())[:300].rstrip(".") or type(failed).__name__
        raise ConfigError(
            f"suite.attention={backend} does not run on {device} in {_short(dtype)}: {reason}. Use another backend, "
            "device or suite.dtype, or leave suite.attention out."
        ) from failed
    if exact(backend) and not error <= (bound := ROUNDING * measured(formula, device, dtype, width)):
        raise IncompatibleError(
            f"suite.attention={backend} counts as one that changes rounding alone, and on {device} in {_short(dtype)} "
            f"its error is {error:.2g}, above {bound:.2g}; use another backend or suite.dtype."
        )


def measured(attend: Callable[..., torch.Tensor], device: str, dtype: torch.dtype, width: int) -> float:
    """|attend(Q, K, V) - exact| / |exact|, Euclidean, of unit Gaussians (B, N, H, d) that are of `dtype`; `exact`: the
    formula in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(*SHAPE, width, generator=generator).to(dtype) for _ in range(3)]
    found = attend(*(send(each, device) for each in factors)).cpu().double()
    wanted = formula(*(each.double() for each in factors))
    return float((found - wanted).norm() / wanted.norm())


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) V of (B, N, H, d), as it is written, in the type of its factors."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return (torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v).transpose(1, 2)


def use(net: nn.Module, backend: str) -> None:
    """The attention of `net` is computed by `backend` from now on. ConfigError if it asks for none."""
    if not processors(net):
        raise ConfigError(
            f"the attention layers of a {type(net).__name__} ask for no backend (diffusers hands it on in its later "
            "transformers alone), so suite.attention would change nothing; leave it out."
        )
    with _default_kept():
        net.set_attention_backend(backend)


def line(name: str, backend: str) -> str:
    """The line of Python that does as `use` to the part `name` of `pipe` by diffusers alone."""
    return f"pipe.{name}.set_attention_backend({backend!r})"


def _run(backend: str, *factors: torch.Tensor) -> torch.Tensor:
    from diffusers.models import attention_dispatch as dispatch

    name = dispatch.AttentionBackendName(backend)
    dispatch._check_attention_backend_requirements(name)
    q, k, v = factors
    for constraint in dispatch._AttentionBackendRegistry._constraints.get(name, ()):
        constraint(query=q, key=k, value=v, attn_mask=None, is_causal=False)
    return dispatch.dispatch_attention_fn(q, k, v, backend=name)


@contextmanager
def _default_kept() -> Iterator[None]:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    before: Any = Registry.get_active_backend()[0]
    try:
        yield
    finally:
        Registry.set_active_backend(before)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
