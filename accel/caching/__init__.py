"""Feature caches: which parts of the denoiser are reused from an earlier step."""

from accel.caching.deepcache import BranchTable, DeepCache

__all__ = ["BranchTable", "DeepCache"]
