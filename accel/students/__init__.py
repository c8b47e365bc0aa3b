"""Few-step students: distilled networks as an axis of recipes, each under its contract."""

from accel.students.distilled import KINDS, Distilled, Kind
from accel.students.known import KNOWN, Known, known_by, under

__all__ = ["KINDS", "KNOWN", "Distilled", "Kind", "Known", "known_by", "under"]
