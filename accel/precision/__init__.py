"""Precision: in which numbers the denoiser's weights and activations are kept, and how many of them."""

from accel.precision.base import Precision
from accel.precision.cast import Cast
from accel.precision.fake_quant import FakeQuant
from accel.precision.pruning import MagnitudePruning

__all__ = ["Cast", "FakeQuant", "MagnitudePruning", "Precision"]
