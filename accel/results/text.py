"""Numbers as text: rounded to what their interval supports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accel.metrics.statistics import Estimate
from accel.results.comparison import Comparison

HASH_DIGITS = 12
POINTS = ("accuracy", "adherence", "exact")  # shown in per cent
NAMES = {"clip_score": "CLIP score", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
NAMES |= {"held_out_fid": "FID to held-out images", "temporal": "temporal difference"}
Interval = Estimate | Mapping[str, Any]  # quality values carry replicates, timings only value, lo, hi


def metric_name(key: str | None) -> str:
    """`fid_digits` -> `FID (digits)`: a Frechet distance is named after its feature space."""
    if key in NAMES:
        return NAMES[key]
    head, _, space = (key or "quality").partition("_")
    if head not in ("fid", "kid", "fd"):
        return (key or "quality").replace("_", " ")
    return f"{head.upper()} ({space})" if space else head.upper()


def significant(value: float, digits: int = 3, plus: str = "") -> str:
    """`digits` significant digits; in scientific form only below 1e-4 and from 1e9 on."""
    if value and not 1e-4 <= abs(value) < 1e9:
        return f"{value:{plus}.{digits - 1}e}"
    return _fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0, plus)


def rounding(x: Interval, sign: bool = False, scale: float = 1) -> Callable[[float], str]:
    """How to write a value and its interval alike: to the second digit of its half-width, from 3 on to the first.

    One digit more where the value itself would be left with a single one.
    """
    value, lo, hi = (part * scale for part in parts(x))
    half = float(f"{(hi - lo) / 2:.1e}")
    plus = "+" if sign else ""
    if not half > 0:
        return lambda number: significant(number, plus=plus)
    exponent = math.floor(math.log10(half))
    decimals = (1 if half < 3 * 10**exponent else 0) - exponent
    decimals += 10**-decimals <= abs(value) < 10 ** (1 - decimals)
    if max(abs(value), half) < 1e-3 and decimals > 5:
        return lambda number: f"{number:{plus}.1e}"
    return lambda number: _fixed(number, max(0, decimals), plus)


def interval(x: Interval, sign: bool = False, unit: str = "") -> str:
    """`2.13 [1.98, 2.28]`, all three rounded alike."""
    value, lo, hi = parts(x)
    inside = rounding(x)
    return f"{rounding(x, sign)(value)}{unit} [{inside(lo)}, {inside(hi)}]"


def plus_minus(x: Interval, scale: float = 1, sign: bool = False) -> str:
    """`97.3 ± 0.8`, for intervals that lie evenly about the value."""
    value, lo, hi = parts(x)
    middle = rounding(x, sign, scale)(value * scale)
    return f"{middle} ± {rounding(x, scale=scale)((hi - lo) / 2 * scale)}" if hi > lo else middle


def point(x: Interval, sign: bool = False, unit: str = "", scale: float = 1) -> str:
    """The value alone, rounded by its interval."""
    return rounding(x, sign, scale)(parts(x)[0] * scale) + unit


def parts(x: Interval) -> tuple[float, float, float]:
    return (x.value, x.lo, x.hi) if isinstance(x, Estimate) else (x["value"], x["lo"], x["hi"])


def device_text(device: tuple) -> str:
    name, threads, batch = device
    return f"{name}, {threads} thread{'s' * (threads != 1)}, batch {batch}"


def devices_text(devices: Sequence[tuple]) -> str:
    """Devices that differ in the batch only, as one: `..., batch 8 and 1`."""
    return device_text((*devices[0][:2], listed(batch for *_, batch in devices)))


def short_hash(sha256: str | None) -> str | None:
    return sha256 and sha256[:HASH_DIGITS]


def macs_unit(study: Comparison) -> tuple[float, str]:
    """One unit for all MACs of a study: the largest in which none of its recipes is below 0.1."""
    smallest = min((row.cost("macs") for row in study.competing if row.cost("macs")), default=0)
    return next(((scale, unit) for scale, unit in ((1e12, "T"), (1e9, "G")) if smallest >= scale / 10), (1e6, "M"))


def _fixed(value: float, decimals: int, plus: str) -> str:
    text = f"{value:{plus}.{decimals}f}"
    return text if float(text) else text.lstrip("+-")


def listed(values: Iterable[Any]) -> str:
    return " and ".join(dict.fromkeys(map(str, values)))


def comma(values: Iterable[str]) -> str:
    return ", ".join(values)
