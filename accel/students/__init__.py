"""Few-step students: distilled networks as an axis of recipes, each under its contract."""

from accel.students.distilled import KINDS, Distilled, Kind

__all__ = ["KINDS", "Distilled", "Kind"]
