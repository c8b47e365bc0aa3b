"""Text to image in miniature: captions of shapes, a renderer, a detector that reads pictures back."""

from accel.suites.shapes.suite import ShapesSuite

__all__ = ["ShapesSuite"]
