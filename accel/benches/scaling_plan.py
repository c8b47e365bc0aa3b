"""The arithmetic of a large study on G GPUs: where its hours go, its disk and its cost.

With R recipes, N images, s seconds of the baseline an image on one GPU, of which a recipe takes the share f on average,
shards of m images of b bytes, a folder that reads B bytes a second, c seconds to score a recipe, a start of a seconds,

    hours = (a + R N s f / G + m s f + ceil(R / G) (c + 2 N b / B)) / 3600,   disk = R N b,   cost = hours G price.

m s f is the last shard, which all but one GPU wait for at worst; scores are made by whoever has the cell, and read its
shards twice. Left out: the converged trajectory of the samples that are compared (128 of them), and times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from accel.errors import check_float, check_int

GPUS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Plan:
    """The inputs of the arithmetic. Seconds and price are assumptions, to be replaced by one's own."""

    recipes: int = 40
    images: int = 30_000
    seconds: float = 4.0
    share: float = 0.4
    shard: int = 64
    bytes: int = 1024 * 1024 * 3 + 2 * 2048 + 2 * 768  # uint8 pixels; Inception and CLIP features in float16
    bandwidth: float = 1e9
    score: float = 110.0
    start: float = 120.0
    price: float = 2.5

    def __post_init__(self) -> None:
        for name in ("recipes", "images", "shard", "bytes"):
            check_int(f"--{name}", getattr(self, name), 1)
        for name in ("seconds", "share", "bandwidth", "score", "start", "price"):
            check_float(f"--{name}", getattr(self, name), 0.0)


def hours(plan: Plan, gpus: int) -> dict[str, float]:
    """Where the hours of a plan go on so many GPUs, and what they cost."""
    sampling = plan.recipes * plan.images * plan.seconds * plan.share / gpus
    tail = plan.shard * plan.seconds * plan.share
    rounds = math.ceil(plan.recipes / gpus)
    reading = rounds * 2 * plan.images * plan.bytes / plan.bandwidth
    parts = {
        "start": plan.start,
        "sampling": sampling,
        "tail": tail,
        "reading": reading,
        "scoring": rounds * plan.score,
    }
    total = sum(parts.values()) / 3600
    return {"gpus": gpus, **{name: value / 3600 for name, value in parts.items()}, "hours": total,
            "efficiency": sampling / 3600 / total, "cost": total * gpus * plan.price}  # fmt: skip


def disk(plan: Plan) -> int:
    """Bytes of all shards of a plan."""
    return plan.recipes * plan.images * plan.bytes
