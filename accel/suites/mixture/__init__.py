"""A Gaussian mixture with exact noise prediction and exact trajectories: the judge of solvers."""

from accel.suites.mixture.suite import MixtureSuite

__all__ = ["MixtureSuite"]
