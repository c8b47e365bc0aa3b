"""The table of MACs on known architectures, from records of kind `macs`, beside what papers print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accel.files import write_atomic
from accel.records import Results

HEAD = """# MACs of cached evaluations on known architectures

One evaluation of one sample, without weights (shapes only). *Measured*: counted while the cache's own view of the
network runs; *by parts*: what the full evaluation spends in the modules that are live by the layout of the network.
Dense: convolutions and linear layers without the products of queries, keys and values. Ideal speed-up 1:N:
N / (1 + (N - 1) ratio), everything beside the denoiser left out.
"""

PAPERS = """## Against published numbers

Averages over the trajectory, dense. A full step at every N-th of T steps, ceil(T / N) of them.

| paper | setting | published G | counted G | difference |
|---|---|---:|---:|---:|
"""


class Published(NamedTuple):
    """A printed average: `full_steps` of `steps` are full, the others as `method` with `live`."""

    paper: str
    setting: str
    network: str
    method: str
    live: str
    full_steps: int
    steps: int
    giga: float


DEEPCACHE = "DeepCache (arXiv:2312.00858)"
_TABLE_12 = (1.6, 2.24, 3.01, 3.89, 4.58, 5.31, 5.45, 5.6, 5.88, 5.95, 5.99, 6.03)
PUBLISHED = (
    *(
        Published(
            DEEPCACHE + ", Table 12", f"CIFAR-10, N = 5, branch {m}", "DDPM CIFAR-10", "DeepCache", str(m), 20, 100, g
        )
        for m, g in enumerate(_TABLE_12, 1)
    ),
    *(
        Published(DEEPCACHE + ", Table 2", f"CIFAR-10, N = {n}, branch 3", "DDPM CIFAR-10", "DeepCache", "3", k, 100, g)
        for n, k, g in ((2, 50, 4.15), (3, 34, 3.54), (5, 20, 3.01), (10, 10, 2.63))
    ),
    Published(DEEPCACHE + ", Table 3", "no cache", "Stable Diffusion 1.5", "DeepCache", "2", 50, 50, 338.83),
    Published(DEEPCACHE + ", Table 3", "N = 5, branch 2", "Stable Diffusion 1.5", "DeepCache", "2", 10, 50, 130.45),
    Published(DEEPCACHE + ", Table 3", "13 full steps", "Stable Diffusion 1.5", "DeepCache", "2", 13, 50, 130.45),
)  # fmt: skip


def write_architectures(results: Results) -> list[Path]:
    """Write tables/macs_architectures.md; nothing without records."""
    records = sorted(results.all("macs"), key=lambda r: r["place"])
    if not records:
        return []
    text = HEAD
    for network in dict.fromkeys(r["network"] for r in records):
        rows = [r for r in records if r["network"] == network]
        full = rows[0]["full"]
        text += f"\n## {network}\n\nFull: {_giga(full['total'])} G, dense {_giga(full['dense'])} G.\n\n"
        text += "| cache | live | measured G | by parts G | dense G | ratio | 1:2 | 1:3 | 1:5 | 1:10 |\n"
        text += "|---|---|" + "---:|" * 8 + "\n"
        text += "".join(_row(r) for r in rows)
    counted = {(r["network"], r["method"], str(r["live"])): r for r in records}
    text += "\n" + PAPERS + "".join(_published(p, counted) for p in PUBLISHED)
    path = results.root / "tables" / "macs_architectures.md"
    write_atomic(path, text.encode())
    return [path]


def average(record: Mapping[str, Any], full_steps: int, steps: int) -> float:
    """Dense MACs an evaluation, averaged over a trajectory."""
    full, cached = record["full"]["dense"], record["measured"]["dense"]
    return (full_steps * full + (steps - full_steps) * cached) / steps


def _row(r: Mapping[str, Any]) -> str:
    ratio = r["measured"]["total"] / r["full"]["total"]
    speed = " | ".join(f"{n / (1 + (n - 1) * ratio):.2f}" for n in (2, 3, 5, 10))
    measured, parts, dense = (_giga(x) for x in (r["measured"]["total"], r["parts"]["total"], r["measured"]["dense"]))
    return f"| {r['method']} | {r['live']} | {measured} | {parts} | {dense} | {ratio:.3f} | {speed} |\n"


def _published(p: Published, counted: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> str:
    record = counted.get((p.network, p.method, p.live))
    if record is None:
        return ""
    found = average(record, p.full_steps, p.steps) / 1e9
    return f"| {p.paper} | {p.setting} | {p.giga:.2f} | {found:.2f} | {100 * (found / p.giga - 1):+.1f} % |\n"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.2f}"
