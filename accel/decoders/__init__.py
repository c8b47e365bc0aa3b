"""Decoders in the place of a pipeline's own: the axis `decoder`."""

from accel.decoders.tiny import TinyDecoder

__all__ = ["TinyDecoder"]
