"""The tables of the harness's and the schedulers' own overhead, from records of kind `bench` and `scheduler`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accel.files import write_atomic
from accel.records import Results

HEAD = """# Overhead of the harness

The bare pipeline against the same pipeline inside `accelerate(pipe, Recipe())`, interleaved in one process: ratio of
times (median over rounds, 95 % interval), and the bare pipeline against itself (A/A floor).
`mixture` is a closed form without a network, so that its row shows the absolute cost of the seams.

| suite | steps | batch | rounds | bare ms | ratio | A/A floor | device |
|---|---|---|---|---|---|---|---|
"""

SCHEDULERS = """# Time of one scheduler step

`step()` on latents 1x4x64x64 in float32, no model: trajectories interleaved in one process, ratio to diffusers'
DPM-Solver++ of order 3 (median over {repetitions} rounds of {steps} steps, 95 % interval; A/A floor {aa}).
`set_timesteps` is called once an image. {device}.

| scheduler | step, us | ratio | set_timesteps, ms |
|---|---|---|---|
"""


def write_schedulers(results: Results) -> list[Path]:
    """Write tables/scheduler_overhead.md; nothing without records."""
    records = sorted(results.all("scheduler"), key=lambda m: m["place"])
    if not records:
        return []
    first, text = records[0], ""
    where = first["environment"]
    text = SCHEDULERS.format(
        repetitions=first["repetitions"],
        steps=first["steps"],
        aa=_thousandths(first["aa"]),
        device=f"{where['device_name']}, {where['threads']} threads",
    )
    for m in records:
        text += f"| {m['scheduler']} | {m['step_us']['value']:.0f} | {_thousandths(m['ratio'])} "
        text += f"| {m['set_timesteps_ms']['value']:.2f} |\n"
    path = results.root / "tables" / "scheduler_overhead.md"
    write_atomic(path, text.encode())
    return [path]


DEEPCACHE = """# DeepCache: accel against the authors' package

Time of one denoiser call, accel / package (DeepCache 0.1.1), on random UNets, batch 1: median over {repetitions}
interleaved trajectories of {steps} steps, in contexts that were entered before, with 95 % interval. Below 1:
accel is faster. A/A: accel against itself, full steps. Realised: the measured speed-up of a trajectory over the one
that its MACs promise. {device}.

| network | plain, ms | 1:N | branch | full steps | shallow steps | A/A | ideal speed-up | realised / ideal |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
"""


def write_deepcache(results: Results) -> list[Path]:
    """Write tables/deepcache_speed.md; nothing without records."""
    records = sorted(results.all("deepcache"), key=lambda m: m["place"])
    if not records:
        return []
    where = records[0]["environment"]
    device = f"{where['device_name']}, {where['threads']} thread" + "s" * (where["threads"] != 1)
    text = DEEPCACHE.format(**{k: records[0][k] for k in ("repetitions", "steps")}, device=device)
    for m in records:
        ratios = " | ".join(_thousandths(m[key]) for key in ("full", "shallow", "aa"))
        text += f"| {m['net']} | {m['plain_ms']['value']:.2f} | {m['interval']} | {m['branch']} | {ratios} "
        text += f"| {m['ideal']:.2f} | {_thousandths(m['realised'])} |\n"
    path = results.root / "tables" / "deepcache_speed.md"
    write_atomic(path, text.encode())
    return [path]


def write_overhead(results: Results) -> list[Path]:
    """Write tables/overhead.md; nothing without records."""
    records = sorted(results.all("bench"), key=lambda m: (m["suite"], m["batch"], m["id"]))
    if not records:
        return []
    lines = [
        f"| {m['suite']} | {m['steps']} | {m['batch']} | {m['repetitions']} | {m['bare_ms']['value']:.1f} "
        f"| {_thousandths(m['ratio'])} | {_thousandths(m['aa'])} "
        f"| {m['environment']['device_name']}, {m['environment']['threads']} threads |"
        for m in records
    ]
    path = results.root / "tables" / "overhead.md"
    write_atomic(path, (HEAD + "\n".join(lines) + "\n").encode())
    return [path]


def _thousandths(e: Mapping[str, float]) -> str:
    # Fixed decimals, unlike accel.results.text: what matters is whether the ratio stays below 1.02.
    return f"{e['value']:.3f} [{e['lo']:.3f}, {e['hi']:.3f}]"
