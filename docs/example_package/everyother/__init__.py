"""Two methods for accel: a cache that evaluates at every k-th step, and Adams-Bashforth of order 2."""

from everyother.cache import EveryOther
from everyother.sampler import AB2, AB2Scheduler

__all__ = ["AB2", "AB2Scheduler", "EveryOther"]
