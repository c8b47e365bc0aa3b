"""Precision: in which numbers the denoiser's weights and activations are kept."""

from accel.precision.base import Precision
from accel.precision.cast import Cast
from accel.precision.fake_quant import FakeQuant

__all__ = ["Cast", "FakeQuant", "Precision"]
