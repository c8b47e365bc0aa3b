"""Guidance: what is evaluated of the doubled batch (unconditional, conditional), and what its halves return."""

from accel.guidance.base import Guidance
from accel.guidance.cfg import CFG, IntervalCFG

__all__ = ["CFG", "Guidance", "IntervalCFG"]
