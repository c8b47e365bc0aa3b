"""Speed-ups that papers and projects print for the methods of part `speed`, each at its own setting and machine.

They are not of the same steps, GPU or pipeline: most are of whole images, of 50 steps. The table says so beside them.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A printed speed-up, its setting, and where it is printed."""

    speedup: float
    setting: str
    source: str


_DEEPCACHE = "DeepCache (arXiv:2312.00858)"
_FASTER = "Faster Diffusion (arXiv:2312.09608)"
_TAYLOR = "TaylorSeer (arXiv:2503.06923), README"
_CACHE_DIT = "cache-dit, docs/benchmark/HYBRID_CACHE.md"

PUBLISHED: dict[tuple[str, str], Published] = {
    ("Stable Diffusion 1.5", "deepcache 1:3, branch 1"): Published(
        1.72, "N = 3, branch 2, 50 PLMS, PartiPrompts", f"{_DEEPCACHE}, Table 13"
    ),
    ("Stable Diffusion 1.5", "deepcache 1:5, branch 2"): Published(
        2.15, "N = 5, branch 2, 50 PLMS, PartiPrompts", f"{_DEEPCACHE}, Table 3"
    ),
    ("Stable Diffusion 1.5", "encoder propagation 1:3"): Published(
        0.9 / 0.46, "UNet alone, parallel, uneven keys, 20 DPM-Solver++, A40", f"{_FASTER}, Table 1"
    ),
    ("Stable Diffusion 1.5", "half the steps"): Published(2.04, "50 to 25 PLMS", f"{_DEEPCACHE}, Table 3"),
    ("Stable Diffusion XL", "deepcache 1:3, branch 1"): Published(
        17.52 / 6.71, "N = 3, 50 steps", "horseee/DeepCache, README"
    ),
    ("Flux.1-dev", "fora 1:3"): Published(2.82, "N = 3, 50 steps", _CACHE_DIT),
    ("Flux.1-dev", "taylorseer 1:3, order 2"): Published(3.57, "N = 4, order 2, 50 steps", _CACHE_DIT),
    ("Flux.1-dev", "diffusers mag"): Published(14.26 / 5.05, "E024K5R01, A800", "Zehong-Ma/MagCache, README"),
    ("DiT-XL/2 512", "taylorseer 1:3, order 2"): Published(3.57, "FLOPs, 256 x 256, N = 4, order 4, 50 DDIM", _TAYLOR),
}
