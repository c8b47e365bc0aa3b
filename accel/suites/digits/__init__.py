"""Handwritten digits: by UNets, transformers and as a flow."""

from accel.suites.digits.suite import DigitsSuite

__all__ = ["DigitsSuite"]
