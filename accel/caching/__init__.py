"""Feature caches: which parts of the denoiser are reused from an earlier step."""

from accel.caching.deepcache import DeepCache

__all__ = ["DeepCache"]
