"""Stitching: several denoisers share one trajectory."""

from accel.stitching.tstitch import TStitch

__all__ = ["TStitch"]
