"""Tables of one device, from records of kind `device`: a page with a section a part, and a CSV a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from accel.benches.device_job import KIND
from accel.benches.device_published import PUBLISHED
from accel.benches.precision_table import slug
from accel.files import write_atomic
from accel.records import Results

Record = Mapping[str, Any]
TABLE = "| {head} |\n|{rule}\n{rows}\n"
INTERVALS = "Intervals: 95 %, over rounds."


def write_device(results: Results) -> list[Path]:
    """Write tables/device_<device>.md and device_<device>_<part>.csv for every device; nothing without records."""
    records, written = results.all(KIND), []
    for device in dict.fromkeys(r["environment"]["device_name"] for r in records):
        own = [r for r in records if r["environment"]["device_name"] == device]
        path = results.root / "tables" / f"device_{slug(device)}.md"
        write_atomic(path, page(device, own).encode())
        written.append(path)
        for part in SECTIONS:
            if rows := [flat(r) for r in own if r["part"] == part]:
                csv = path.with_name(f"{path.stem}_{part}.csv")
                order = [key for key in ("network", "batch", "axis", "method", "choice", "suite") if key in rows[0]]
                frame = pd.DataFrame(rows).sort_values([*order, "id"], kind="stable")
                write_atomic(csv, frame.to_csv(index=False, lineterminator="\n").encode())
                written.append(csv)
    return written


def page(device: str, records: Sequence[Record]) -> str:
    """The Markdown page of one device."""
    text = f"# accel on {device}\n\n{_said(records)}\n"
    for part, section in SECTIONS.items():
        own = [r for r in records if r["part"] == part]
        if own:
            text += "\n" + section(own)
    return text


def _said(records: Sequence[Record]) -> str:
    """What the records were made on, in a few lines; several where they differ."""
    lines = []
    for r in records:
        e, x = r["environment"], r["execution"]
        lines.append(
            f"* torch {e['packages']['torch']}, diffusers {e['packages']['diffusers']}, Python {e['python']}, CUDA "
            f"{x['cuda']}, cuDNN {x['cudnn']}, driver {x.get('driver')}, {x.get('memory_mib')} MiB. TF32 outside of "
            f"what a section says: products {x['tf32_matmul']}, convolutions {x['tf32_cudnn']}. Allocator: "
            f"{x['allocator']}. Attention: {', '.join(x['sdp'])}.\n"
        )
    states = [s for r in records for s in (r.get("before"), r.get("after")) if s]
    for key, unit in (("sm_mhz", "MHz"), ("power_w", "W"), ("power_limit_w", "W"), ("temperature_c", "degrees C")):
        if seen := [s[key] for s in states if key in s]:
            lines.append(
                f"* {key.rsplit('_', 1)[0]} before and after measurements: {min(seen):.0f} to {max(seen):.0f} {unit}\n"
            )
    if seen := [s["other_processes"] for s in states if "other_processes" in s]:
        lines.append(f"* other processes on the device: at most {max(seen)}\n")
    return "".join(dict.fromkeys(lines))


def _contract(records: Sequence[Record]) -> str:
    text = (
        "## Methods on the device against the CPU\n\nTiny random networks at float32 (no TF32), 4 steps, 2 samples. "
        "Difference: the greatest of any pixel; beside it that of the pipeline without the method, and the range of "
        "the CPU's pixels. Waits: how often an evaluation makes the host wait for the device, beyond the pipeline "
        "without the method (for a sampler: beyond its library), and where.\n\n"
    )
    rows, refused = [], []
    for r in sorted(records, key=lambda r: (r["axis"], r["choice"])):
        if "difference" not in r:
            refused.append(f"* {r['axis']} {r['choice']}: {_why(r)}\n")
            continue
        where = "; ".join(f"{line} x{n}" for line, n in sorted(r["waits"].items()))
        off = f"{r['difference']:.1e}" + " (to plain)" * (r["against"] == "plain")
        rows.append([r["axis"], r["choice"], r["suite"], off,
                     "–" if r["plain_difference"] is None else f"{r['plain_difference']:.1e}", f"{r['range']:.2g}",
                     str(sum(r["waits"].values())), where or "–"])  # fmt: skip
    head = ["axis", "method", "suite", "difference", "without it", "range", "waits", "where"]
    return text + _table(head, rows) + _list("Not compared", refused)


def _overhead(records: Sequence[Record]) -> str:
    text = (
        "## Overhead of the harness\n\nInside `accelerate(pipe, Recipe())` against the bare pipeline, interleaved; "
        f"A/A: the bare pipeline against itself. Float32. {INTERVALS}\n\n"
    )
    own = sorted((r for r in records if "ratio" in r), key=lambda r: (r["suite"], r["batch"]))
    rows = [
        [r["suite"], r["batch"], r["steps"], r["repetitions"], f"{r['bare_ms']['value']:.1f}", thousandths(r["ratio"]),
         thousandths(r["aa"])]
        for r in own
    ]  # fmt: skip
    text += _table(["suite", "batch", "steps", "rounds", "bare ms", "ratio", "A/A"], rows)
    for r in (r for r in records if "schedulers" in r):
        first = r["schedulers"][0]
        text += (
            f"\nOne step of each scheduler on latents 1x4x64x64 in float32, no model: {first['repetitions']} rounds of "
            f"{first['steps']} steps, ratio to {first['base']}, A/A {thousandths(first['aa'])}. {INTERVALS}\n\n"
        )
        rows = [[m["scheduler"], f"{m['step_us']['value']:.0f}", thousandths(m["ratio"]),
                 f"{m['set_timesteps_ms']['value']:.2f}"] for m in r["schedulers"]]  # fmt: skip
        text += _table(["scheduler", "step, us", "ratio", "set_timesteps, ms"], rows)
    missing = [f"* {r.get('suite', 'schedulers')}: {_why(r)}\n" for r in records if not {"ratio", "schedulers"} & {*r}]
    return text + _list("Not measured", missing)


def _speed(records: Sequence[Record]) -> str:
    text = (
        "## Realised and ideal speed-ups\n\nTrue shapes, random weights, made on the device. A trajectory of the whole "
        "batch at the denoiser and its scheduler, without text encoders and autoencoder; guided networks evaluate a "
        "doubled batch. Speed-up: plain time over own time in the same round, plain being timed twice (A/A: its times "
        "over each other). Ideal: plain multiply-accumulates over own, counted. p99: of as many trajectories as there "
        f"are rounds. Memory: peak, weights included. {INTERVALS} Published numbers are of other steps and machines.\n"
    )
    groups = dict.fromkeys(_group_of(r) for r in sorted(records, key=_place))
    for batch, network, steps, dtype in groups:
        own = [
            r for r in records if (r["batch"], r["network"], r["steps"], r["dtype"]) == (batch, network, steps, dtype)
        ]
        ran = sorted((r for r in own if "ms" in r), key=lambda r: ("speedup" in r, r["method"]))
        text += f"\n### {network}, batch {batch}\n\n{_group(ran, batch, dtype, steps)}\n\n"
        rows = [_speed_row(r) for r in ran]
        head = ["method", "plain ms", "ms", "speed-up", "ideal", "realised / ideal", "A/A", "p50", "p99",
                "allocated MiB", "reserved MiB", "published"]  # fmt: skip
        text += _table(head, rows)
        text += _list("Not measured", [f"* {r['method']}: {_why(r)}\n" for r in own if "ms" not in r])
    return text


def _group(ran: Sequence[Record], batch: int, dtype: str, steps: int) -> str:
    counts = sorted({r["rounds"] for r in ran})
    warm = [r["warmup"] for r in ran]
    steady = all(w["stable"] for w in warm)
    said = f"{ran[0]['environment']['device_name'] if ran else ''}, batch {batch}, {dtype}, {steps} steps, "
    before = sorted({w["rounds"] for w in warm})
    said += f"{', '.join(map(str, counts))} rounds after {', '.join(map(str, before))} of warm-up"
    said += " (times stable within 2 %)" if steady else " (times not yet stable within 2 %)"
    infinite = [r["method"] for r in ran if r.get("finite") is False]
    return said + "." + (f" Not finite with random weights: {', '.join(infinite)}." if infinite else "")


def _speed_row(r: Record) -> list[Any]:
    known = PUBLISHED.get((r["network"], r["method"]))
    said = f"{known.speedup:.2f} ({known.setting}; {known.source})" if known else "–"
    ratios = (
        [thousandths(r["speedup"]), f"{r['ideal']:.3f}", thousandths(r["share"])] if "speedup" in r else ["1", "1", "–"]
    )
    memory = ["–" if r[key] is None else f"{r[key]:.0f}" for key in ("allocated_mib", "reserved_mib")]
    return [r["method"], f"{r['plain_ms']['value']:.2f}", f"{r['ms']['value']:.2f}", *ratios, thousandths(r["aa"]),
            f"{r['p50_ms']:.2f}", f"{r['p99_ms']:.2f}", *memory, said]  # fmt: skip


def _stack(records: Sequence[Record]) -> str:
    text = (
        "## Precision, memory order and compiled blocks\n\nA trajectory at batch 1 against the plain network in the "
        "device's short dtype, uncompiled, in the same rounds. Graphs: compiled in the first three trajectories / "
        "after them (0 is the goal). Limit: whether torch.compile gave up, so that the rest runs uncompiled. "
        f"{INTERVALS}\n\n"
    )
    ran = [r for r in sorted(records, key=_place) if "ms" in r]
    rows = [
        [r["network"], r["method"], r["dtype"], r["rounds"], f"{r['plain_ms']['value']:.2f}", f"{r['ms']['value']:.2f}",
         thousandths(r["speedup"]), thousandths(r["aa"]), f"{r['first_seconds']:.1f}",
         f"{r['graphs']} / {r['recompilations']}" if "graphs" in r else "–",
         ("yes" if r["limit_hit"] else "no") if "graphs" in r else "–"]
        for r in ran
    ]  # fmt: skip
    head = ["network", "variant", "dtype", "rounds", "plain ms", "ms", "speed-up", "A/A", "first, s", "graphs", "limit"]
    text += _table(head, rows)
    missing = [f"* {r['network']}, {r['method']}: {_why(r)}\n" for r in records if "ms" not in r]
    return text + _list("Not measured", missing)


SECTIONS: dict[str, Callable[[Sequence[Record]], str]] = {
    "contract": _contract,
    "overhead": _overhead,
    "speed": _speed,
    "stack": _stack,
}


def flat(record: Record, prefix: str = "") -> dict[str, Any]:
    """A record as one row of a CSV: nested names joined by _, lists of schedulers and recipes left out."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if key in ("recipe", "sha256", "schema", "schedulers", "packages"):
            continue
        if key == "waits":
            found[key] = "; ".join(f"{line} x{n}" for line, n in sorted(value.items()))
        elif isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}_")
        else:
            found[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found


def thousandths(e: Mapping[str, float]) -> str:
    """A value with its interval."""
    return f"{e['value']:.3f} [{e['lo']:.3f}, {e['hi']:.3f}]"


def _group_of(r: Record) -> tuple:
    return r["batch"], r["network"], r["steps"], r["dtype"]


def _place(r: Record) -> tuple:
    return r["batch"], r["network"], r["method"]


def _why(r: Record) -> str:
    return r.get("refused") or r.get("result") or f"failed ({r.get('failed')})"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    body = "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)
    return TABLE.format(head=" | ".join(head), rule="---|" * len(head), rows=body)


def _list(title: str, lines: Sequence[str]) -> str:
    return f"\n{title}:\n\n{''.join(lines)}" if lines else ""
