"""Which class a sample of a class-conditional pipeline shows."""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(maxsize=8)
def spread(count: int) -> tuple[int, ...]:
    """0..count-1, each once, so that neighbours are far apart."""
    wanted = count * (math.sqrt(5) - 1) / 2
    stride = min((s for s in range(1, count + 1) if math.gcd(s, count) == 1), key=lambda s: abs(s - wanted))
    return tuple(i * stride % count for i in range(count))
