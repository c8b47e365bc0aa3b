"""The table of `accel bench scaling`, from records of kind `scaling`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel.benches.scaling_plan import GPUS, Plan, disk, hours
from accel.files import write_atomic
from accel.records import Results

LOCKS = """# Scaling: what sharing costs, a crowd, and a large study

{device}, {threads} threads. What it means: [scaling](../../docs/scaling.md). By `accel bench scaling`.

## A lock that nobody else wants

| kind | taken and given up, us | requests to the folder |
|---|---|---|
"""
SHARD = """
A shard of 64 images of `digits` (20 steps of DPM-Solver++) takes {generating:.2f} s to generate and score. Its claim by
a lease, its file ({kilobytes:.0f} kB) and reading it again take {sharing:.1f} ms: {percent:.2f} % of that.
"""
CROWD = """
## A crowd on one folder

Workers claim shards of one cell, each as if on a machine of its own; some die in their first shard and leave their
claim behind. Claims, files and folder are real, work is a wait of 5 s, workers are threads of a few processes.

| workers | they die | shards | there | made twice | claims left | lease, s | ideal, s | but the dead's, s | all, s |
|---|---|---|---|---|---|---|---|---|---|
"""
PLAN = """
## {recipes} recipes of {images:,} images

Inputs: {seconds:g} s an image of the baseline on one GPU, of which a recipe takes {share:.0%} on average; shards of
{shard} images of {megabytes:.2f} MB; a folder that reads {bandwidth:.1f} GB/s for each worker; {score:.0f} s to score a
recipe; {start:.0f} s to start; {price:g} an hour of a GPU. Shards need {disk:.2f} TB. These are assumptions and their
arithmetic, not measurements.

| GPUs | hours | sampling, h | last shard, h | reading, h | scoring, h | sampling's share | cost |
|---|---|---|---|---|---|---|---|
"""


def write_scaling(results: Results) -> list[Path]:
    """Write tables/scaling.md; nothing without records."""
    records = results.all("scaling")
    if not records:
        return []
    text = "\n".join(_page(record) for record in records)
    path = results.root / "tables" / "scaling.md"
    write_atomic(path, text.encode())
    return [path]


def _page(record: dict[str, Any]) -> str:
    where, shard, plan = record["environment"], record["shard"], Plan(**record["plan"])
    text = LOCKS.format(device=where["device_name"], threads=where["threads"])
    for kind, cost in record["locks"].items():
        text += f"| {kind} | {cost['us']:.0f} | {cost['operations']:.0f} |\n"
    text += SHARD.format(
        generating=shard["generating_s"],
        sharing=shard["sharing_s"] * 1e3,
        kilobytes=shard["bytes"] / 1e3,
        percent=100 * shard["sharing_s"] / shard["generating_s"],
    )
    text += CROWD if record["crowds"] else ""
    for c in record["crowds"]:
        text += f"| {c['workers']:,} | {c['dead']} | {c['shards']:,} | {c['made']:,} | {c['twice']} | {c['left']} "
        text += f"| {c['lease']:g} | {c['ideal']:.1f} | {c['living']:.1f} | {c['wall']:.1f} |\n"
    text += PLAN.format(**record["plan"] | {"megabytes": plan.bytes / 1e6, "bandwidth": plan.bandwidth / 1e9,
                                            "disk": disk(plan) / 1e12})  # fmt: skip
    for gpus in GPUS:
        h = hours(plan, gpus)
        text += f"| {gpus} | {h['hours']:.1f} | {h['sampling']:.1f} | {h['tail']:.2f} | {h['reading']:.2f} "
        text += f"| {h['scoring']:.2f} | {h['efficiency']:.1%} | {h['cost']:,.0f} |\n"
    return text
