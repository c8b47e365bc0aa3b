"""The table of prompt adherence on suite `shapes`, from records of kind `adherence`."""

from __future__ import annotations

from pathlib import Path

from accel.files import write_atomic
from accel.records import Results
from accel.results.text import plus_minus

HEAD = """# Prompt adherence on `shapes`

What the pictures of {n} prompts (seed {seed}) show of what was asked, in percent with 95 % intervals (20-group
delete-group jackknife over prompts), judged by the suite's detector. An object is right if one of its own is found
with its shape and colour, in the field and in the relation to the first object that the prompt says. Generated:
{recipe}, the sampler that counts as converged. Real: {real} held-out pictures with their captions,
the ceiling. {device}.

| | prompts | generated | real pictures |
|---|---:|---:|---:|
"""


def write_adherence(results: Results) -> list[Path]:
    """Write tables/adherence_shapes.md; nothing without records."""
    records = results.all("adherence")
    if not records:
        return []
    m = max(records, key=lambda r: r["made"])
    device = f"Made on {m['environment']['device_name']}"
    text = HEAD.format(n=m["n"], seed=m["seed"], recipe=m["label"], real=m["real_n"], device=device)
    for name in m["rows"]:
        value = m["generated"][name]
        real = plus_minus(m["real"][name], 100) if name in m["real"] else "-"
        text += f"| {name} | {value['n']} | {plus_minus(value, 100)} | {real} |\n"
    path = results.root / "tables" / "adherence_shapes.md"
    write_atomic(path, text.encode())
    return [path]
