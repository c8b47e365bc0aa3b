"""Bit operations: multiply-accumulates weighed with the bits of both factors, counted while they execute.

BOPs = sum over products of MACs x b_w x b_a (Baskin et al. 2021, arXiv:1804.10969, without their accumulator term);
what is not quantised counts 32 x 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from accel.precision.simulated.attention import QuantisedProducts, products_of
from accel.precision.simulated.quantised import FLOAT_BITS, QuantisedLayer


def _macs(layer: nn.Module, output: torch.Tensor) -> int:
    return output.numel() * layer.weight[0].numel()


@contextmanager
def layer_macs(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, int]]:
    """Within the context, count the multiply-accumulates of plain convolutions and linear layers, by name."""
    macs = dict.fromkeys(layers, 0)
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def note(module, args, output, name=name):
                macs[name] += _macs(module, output)

            hooks.callback(layer.register_forward_hook(note).remove)
        yield macs


@dataclass
class Counted:
    """Of the quantised layers: their multiply-accumulates and their bit operations."""

    macs: int = 0
    operations: int = 0

    def total(self, macs: float) -> float:
        """Bit operations of all `macs`, of which the quantised layers' are a part."""
        return self.operations + (macs - self.macs) * FLOAT_BITS**2


@contextmanager
def bit_operations(nets: Iterable[nn.Module]) -> Iterator[Counted]:
    """Within the context, count what the quantised layers of `nets` execute."""
    counted = Counted()

    def note(layer: QuantisedLayer, args, output) -> None:
        macs = _macs(layer, output)
        exempt = macs * layer.exempt_tokens // args[0].shape[1] if layer.exempt_tokens else 0
        counted.macs += macs
        counted.operations += (macs - exempt) * layer.weight_bits * layer.activation_bits + exempt * FLOAT_BITS**2

    def note_products(products: QuantisedProducts, args, kwargs, output) -> None:
        (*outer, queries, width), keys = args[0].shape, args[1].shape[-2]
        macs = math.prod(outer) * queries * keys * (width + output.shape[-1])
        counted.macs += macs
        counted.operations += macs * products.bits**2

    with ExitStack() as hooks:
        for net in nets:
            for module in net.modules():
                if isinstance(module, QuantisedLayer):
                    hooks.callback(module.register_forward_hook(note).remove)
                elif (products := products_of(module)) is not None:
                    hooks.callback(products.register_forward_hook(note_products, with_kwargs=True).remove)
        yield counted
