"""Pipelines that people deploy, whole and at their true shapes, with random weights: for speed, not for quality."""

from accel.suites.architectures.suite import ArchSuite

__all__ = ["ArchSuite"]
