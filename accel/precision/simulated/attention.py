"""Attention's own matrix products, quantised: softmax(Q K^T / sqrt(d)) V with Q, K, V and the probabilities on levels.

Q, K and V have an affine range for each attention (and group of steps), probabilities cover [0, 1] (Q-Diffusion, Li et
al. 2023, arXiv:2302.04304, sec. 4.2, leaves the latter at 16 bits on Stable Diffusion; PTQ4DM all of them in floating
point, as `FakeQuant` does by default). The products are found where a network calls PyTorch's
scaled_dot_product_attention, after norms and rotary embeddings, whatever diffusers' processor around them is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from accel.core.denoiser import replaced_forward
from accel.precision.simulated.calibration import Observer
from accel.precision.simulated.quantised import InputQuantiser

SDPA = nn.functional.scaled_dot_product_attention
FACTORS = ("|q", "|k", "|v")  # what follows an attention's name in an artefact
HELD = "_accel_products"


def attentions(net: nn.Module) -> dict[str, nn.Module]:
    """Attention modules by name: those that have one of diffusers' processors."""
    return {name: module for name, module in net.named_modules() if getattr(module, "processor", None) is not None}


class QuantisedProducts(nn.Module):
    """scaled_dot_product_attention with quantised factors; `factors`: quantisers of Q, K and V."""

    def __init__(self, bits: int, factors: Mapping[str, InputQuantiser]) -> None:
        super().__init__()
        self.bits, self.factors = bits, dict(factors)
        self.probabilities = InputQuantiser(bits, torch.tensor([0.0, 1.0]).reshape(1, 1, 2))

    def forward(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        """(B, H, T, d) each; as PyTorch's, but for dropout, which is none outside training."""
        q, k, v = (self.factors[name](x) for name, x in zip(FACTORS, (q, k, v), strict=True))
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if boolean else scores + attn_mask
        return self.probabilities(scores.softmax(-1)) @ v


def quantise_attention(module: nn.Module, products: QuantisedProducts, undo: ExitStack) -> None:
    """`module`'s attention takes `products`; the way back goes on `undo`."""
    undo.enter_context(replaced_forward(module, _within(module.forward, products)))
    object.__setattr__(module, HELD, products)
    undo.callback(object.__delattr__, module, HELD)


def products_of(module: nn.Module) -> QuantisedProducts | None:
    """The quantised products of an attention module, if it has them."""
    return vars(module).get(HELD)


@contextmanager
def observe_products(
    modules: Mapping[str, nn.Module], observers: Mapping[str, Observer], group: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """Within the context the observers of each attention's name and `|q`, `|k`, `|v` see its factors."""
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as undo:
        for name, module in modules.items():

            def seen(q, k, v, *args, name=name, **kwargs):
                for factor, x in zip(FACTORS, (q, k, v), strict=True):
                    observers[name + factor].note(x.detach(), group(), generator)
                return SDPA(q, k, v, *args, **kwargs)

            undo.enter_context(replaced_forward(module, _within(module.forward, seen)))
        yield


class _Instead(TorchFunctionMode):
    def __init__(self, attention: Callable[..., torch.Tensor]) -> None:
        self.attention = attention

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (self.attention if func is SDPA else func)(*args, **(kwargs or {}))


def _within(forward: Callable, attention: Callable[..., torch.Tensor]) -> Callable:
    def replaced(*args, **kwargs):
        with _Instead(attention):
            return forward(*args, **kwargs)

    return replaced
