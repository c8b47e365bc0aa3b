"""A study as a data frame: everything that its records say, in columns that no two values share.

Times are of the study's own batch; those of further ones, where it was timed at several, end in it: `speedup@1`.
Axes are named as in a recipe, metrics as in a record, but for those whose name an axis has taken: precision and recall
of generated images are the columns `pr_precision` and `pr_recall`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel.core.amdahl import STAGES
from accel.errors import joined
from accel.metrics.verdicts import p_value
from accel.records import Results
from accel.results.columns import all_values
from accel.results.comparison import COMPETES, HOLM, Comparison, Row, device_of, mark_of, metric_of, no_speed, seed_of
from accel.results.text import Interval, parts, short_hash

if TYPE_CHECKING:
    import pandas

AXES = ("sampler", "steps", "grid", "guidance", "cache", "stitch", "precision", "skip")
LATER_AXES = ("student", "decoder")  # which records got later: a column where one of the study is on it
RENAMED = {"precision": "pr_precision", "recall": "pr_recall"}  # values of records that are no columns by their key
LATER = ("vram_bytes", "cache_bytes")  # costs that records got later: a column where one of the study has it
LATER_SHARES = ("hits",)  # likewise, and no whole numbers
COSTS = ("nfe", "macs", "bit_operations", "model_bytes", "peak_bytes", "setup_s")
TIMES = {"ms": "ms_per_image", "baseline_ms": "baseline_ms", "speedup": "speedup", "aa": "aa"}
COUNTS = (
    "rank", "steps", "n", "seed", "reference_n", "model_bytes", "peak_bytes", *LATER, "repetitions", "threads", "batch",
    "rejected", "tolerated",
)  # fmt: skip


def study_frame(results: Results, study: str) -> pandas.DataFrame:
    """Everything that the study's records say, one row a manifest row, in the manifest's order.

    ConfigError if a metric would overwrite another column.
    """
    import pandas

    loaded = Comparison.load(results, study)
    values = sorted({key for row in loaded.done for key in row.quality["values"]})
    costs = [*COSTS, *(key for key in (*LATER, *LATER_SHARES) if any(row.cost(key) is not None for row in loaded.done))]
    axes = [*AXES, *(axis for axis in LATER_AXES if any(axis_of(row, axis) != "none" for row in loaded.done))]
    frame = pandas.DataFrame([_flat(loaded, row, axes, values, costs) for row in loaded.rows])
    return frame.astype({name: "Int64" for name in COUNTS if name in frame})


def column_of(key: str) -> str:
    """The column of a record's value `key`."""
    return RENAMED.get(key, key)


def spread(name: str, x: Interval | None) -> dict[str, float | None]:
    """A value and the ends of its interval as `name`, `name_lo`, `name_hi`."""
    value, lo, hi = parts(x) if x else (None, None, None)
    return {name: value, f"{name}_lo": lo, f"{name}_hi": hi}


def torch_of(record: Mapping[str, Any]) -> str | None:
    """The version of torch that a record was made with."""
    environment = record.get("environment") or {}
    return environment.get("torch") or environment.get("packages", {}).get("torch")


def axis_of(row: Row, axis: str) -> str | int | None:
    """What a row's record has on an axis; `none` on one that records got later."""
    return (row.quality.get("axes") or {}).get(axis, "none" if axis in LATER_AXES else None)


def _flat(
    study: Comparison, row: Row, axes: Sequence[str], values: Sequence[str], costs: Sequence[str]
) -> dict[str, Any]:
    head = {"role": row.role, "label": row.label, "of": row.of, "refused": row.refused}
    if row.refused:
        return head
    record = row.quality
    first, *more = study.side_by_side if len(study.side_by_side) > 1 else (row.timing and device_of(row.timing),)
    timing = _timing(row, first) or {}
    metric, place = metric_of(record), study.ranks.get(record["id"]) if row.role in COMPETES else None
    return joined(
        f"the table of study {study.name}",
        head,
        {"rank": place and place.place, "shared": place and place.shared},
        {"quality_id": record["id"], "timing_id": timing.get("id")},
        {axis: axis_of(row, axis) for axis in axes},
        {key: record[key] for key in ("suite", "n", "seed")},
        {"seeds": str(seed_of(record))} if "seeds" in record else {},
        {"simulated": row.simulated, "metric": metric, **_reference(record.get("reference") or {})},
        *(_value(column_of(key), row.value(key)) for key in values),
        {"all_values": all_values(study, row)},
        _delta("delta", study, row, metric),
        *(_delta(f"delta_{column_of(key)}", study, row, key) for key in study.compared if key != metric),
        {key: row.cost(key) for key in costs},
        {"macs_ratio": study.macs_ratio(row), "strip": record.get("strip")},
        _times(study, row, first, TIMES),
        {key: timing.get(key) for key in ("repetitions", "device_name", "threads", "batch")},
        {"torch": torch_of(timing) or torch_of(record)},
        _later(study, row, first),
        *({f"timing_id@{device[2]}": (_timing(row, device) or {}).get("id")} for device in more),
        *(_times(study, row, device, {k: v for k, v in TIMES.items() if k != "baseline_ms"}, f"@{device[2]}")
          for device in more),
        *(_later(study, row, device, f"@{device[2]}") for device in more),
    )  # fmt: skip


def _timing(row: Row, device: tuple | None) -> dict[str, Any] | None:
    """The row's own record of a device: that of an untimed baseline is none."""
    return next((timing for timing in row.timings if device_of(timing) == device), None)


def _times(study: Comparison, row: Row, device: tuple | None, keys: Mapping[str, str], end: str = "") -> dict[str, Any]:
    """Times of a row: as recorded, but for ms, which is the study's (Comparison.timing)."""
    timing = _timing(row, device)
    shown = timing | {"ms_per_image": study.timing(row, device)["ms_per_image"]} if timing else {}
    told = {f"speedup{end}_told_apart": not no_speed(timing) if timing else None}
    return joined("times", *(spread(f"{name}{end}", shown.get(key)) for name, key in keys.items()), told)


def _later(study: Comparison, row: Row, device: tuple | None, end: str = "") -> dict[str, Any]:
    """What timing records got later, for studies that have any of these."""
    if not any(timing.get("protocol") for one in study.done for timing in one.timings):
        return {}
    timing = _timing(row, device) or {}
    told = {f"{key}{end}": timing.get(key) for key in ("rejected", "tolerated", "stopped")}
    there = {stage for one in study.done for other in one.timings for stage in other.get("stages", ())}
    own = timing.get("stages", {})
    ms = {f"ms_{stage.replace(' ', '_')}{end}": own.get(stage) for stage in STAGES if stage in there}
    return spread(f"aa_recipe{end}", timing.get("aa_recipe")) | told | ms


def _reference(reference: Mapping[str, Any]) -> dict[str, Any]:
    sha256 = short_hash(reference.get("sha256"))
    return {"reference": reference.get("name"), "reference_n": reference.get("n"), "reference_sha256": sha256}


def _value(name: str, x: Any) -> dict[str, float | None]:
    return spread(name, x) | {f"{name}_corrected": x.corrected if x else None}


def _delta(name: str, study: Comparison, row: Row, key: str | None) -> dict[str, Any]:
    """The paired difference to the baseline, its margin, verdict and p, and whether it survives Holm, and
    Benjamini-Hochberg."""
    x, found = study.delta(row, study.baseline, key), {}
    if x is not None and row is not study.baseline:
        mark = study.marks.get(mark_of(row, study.baseline, key))
        found = {"margin": study.margin(key, study.baseline), "verdict": study.verdict(row, study.baseline, key)}
        found |= {"p": p_value(x)}
        found |= {"holm": mark == HOLM, "bh": bool(mark)} if mark is not None else {}
    return spread(name, x) | {f"{name}_{end}": found.get(end) for end in ("margin", "verdict", "p", "holm", "bh")}
