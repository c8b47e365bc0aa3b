"""Feature caches: which parts of the denoiser are reused from an earlier step."""

from accel.caching.blocks import BlockTable
from accel.caching.cache_dit import CacheDiT
from accel.caching.deepcache import BranchTable, DeepCache
from accel.caching.diffusers_hooks import DiffusersCache
from accel.caching.easycache import EasyCache
from accel.caching.encoder_propagation import EncoderPropagation
from accel.caching.fastercache import FasterCache
from accel.caching.inheritance import FeatureInheritance
from accel.caching.learned_router import LearnedRouter
from accel.caching.seacache import SeaCache
from accel.caching.teacache import TeaCache
from accel.caching.tgate import TGate

__all__ = [
    "BlockTable",
    "BranchTable",
    "CacheDiT",
    "DeepCache",
    "DiffusersCache",
    "EasyCache",
    "EncoderPropagation",
    "FasterCache",
    "FeatureInheritance",
    "LearnedRouter",
    "SeaCache",
    "TGate",
    "TeaCache",
]
