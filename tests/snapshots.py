"""Whether a pipeline is exactly what it was."""

from accel.testing.snapshots import assert_same, snapshot

__all__ = ["assert_same", "snapshot"]
