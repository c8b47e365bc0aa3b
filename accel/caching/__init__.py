"""Feature caches: which parts of the denoiser are reused from an earlier step."""

from accel.caching.deepcache import BranchTable, DeepCache
from accel.caching.encoder_propagation import EncoderPropagation

__all__ = ["BranchTable", "DeepCache", "EncoderPropagation"]
