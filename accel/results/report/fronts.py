"""What the interactive front of a study is drawn from: its recipes with every cost and value, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.results.columns import ROLE_NAMES
from accel.results.comparison import COMPETES, HIGHER, TO_PLAIN, UNJUDGED, Comparison, Row, mark_of, no_speed
from accel.results.panels import competitors, kind_of, qualities
from accel.results.report.sections import margin_text
from accel.results.text import POINTS, device_text, interval, metric_name, parts, plus_minus, significant

Axis = dict[str, Any]  # key, name, higher (whether higher is better; None: neither), ...


def front_data(study: Comparison) -> dict[str, Any] | None:
    """`x` and `y`, the axes to choose from; `points`; `bands`, floor and converged samples. None: nothing compares.

    A point has for each axis [value, lo, hi]; an axis that a recipe has no value of is not among them.
    """
    if not study.groups or not (rows := competitors(study)):
        return None
    costs = _costs(study)
    found = [_point(study, row, costs) for row in rows]
    bands = [row for row in study.members(study.groups[0]) if row.role not in COMPETES]
    return {
        "x": [axis for axis in costs if any(axis["key"] in point["x"] for point in found)],
        "y": _values(study, rows),
        "points": found,
        "bands": [{"label": _band(row), "role": row.role, "y": _shown(row)} for row in bands],
    }


def _costs(study: Comparison) -> list[Axis]:
    several = len(study.devices) > 1
    axes: list[Axis] = [
        {"key": "macs_ratio", "name": "MACs ÷ baseline", "higher": False},
        {"key": "nfe", "name": "NFE", "higher": False},
    ]
    for i, device in enumerate(study.devices):
        where = f" ({device_text(device)})" * several
        axes.append({"key": f"speedup{i}", "name": f"speed-up{where}", "higher": True})
        axes.append({"key": f"ms{i}", "name": f"ms/image{where}", "higher": False})
    return [*axes, {"key": "weights", "name": "weights MB", "higher": False}]


def _values(study: Comparison, rows: list[Row]) -> list[Axis]:
    """The values that a recipe has, what is ranked by and how well prompts are followed first."""
    first = [quality.key for quality in qualities(study)]
    keys = dict.fromkeys([*first, *sorted({key for row in rows for key in row.quality["values"]})])
    return [
        {
            "key": key,
            "name": _name(key),
            "higher": None if key in UNJUDGED else key.removesuffix("_to_plain") in HIGHER,
            "judged": key in first,
        }
        for key in keys
    ]


def _name(key: str) -> str:
    return TO_PLAIN.get(key) or metric_name(key) + " %" * (key in POINTS)


def _shown(row: Row) -> dict[str, list[float]]:
    scaled = ((key, 100 if key in POINTS else 1) for key in row.quality["values"])
    return {key: [part * scale for part in parts(row.value(key))] for key, scale in scaled}


def _band(row: Row) -> str:
    return f"{'floor' if row.role == 'floor' else 'converged'}: {row.label}"


def _point(study: Comparison, row: Row, costs: list[Axis]) -> dict[str, Any]:
    known = {"macs_ratio": study.macs_ratio(row), "nfe": row.cost("nfe")}
    known["weights"] = row.cost("model_bytes") and row.cost("model_bytes") / 1e6
    x = {key: [value] * 3 for key, value in known.items() if value}
    for i, device in enumerate(study.devices):
        if timing := study.timing(row, device):
            x |= {f"speedup{i}": list(parts(timing["speedup"])), f"ms{i}": list(parts(timing["ms_per_image"]))}
    kind, role = kind_of(row), ROLE_NAMES.get(row.role, row.role)
    return {
        "label": row.label,
        "id": row.quality["id"],
        "role": row.role,
        "kind": kind,
        "what": kind if role == "cell" else role if role.endswith(kind) else f"{role}, {kind}",
        "hollow": row.simulated or row.role == "control",
        "simulated": row.simulated,
        "loss": study.loss(row),
        "x": x,
        "y": _shown(row),
        "said": [*_said_values(study, row), *_said_costs(study, row, {axis["key"]: axis["name"] for axis in costs})],
    }


def _said_values(study: Comparison, row: Row) -> list[list[str]]:
    base, lines = study.baseline, []
    for key in row.quality["values"]:
        value, change = row.value(key), ""
        percent = key in POINTS
        if base and row is not base and (delta := study.delta(row, base, key)) is not None:
            shown = plus_minus(delta, 100, sign=True) if percent else interval(delta, sign=True)
            mark = study.marks.get(mark_of(row, base, key), "")
            change = f"{shown} {study.verdict(row, base, key)}{mark}, {margin_text(study, key)}"
        lines.append([_name(key), plus_minus(value, 100) if percent else interval(value), change])
    return lines


def _said_costs(study: Comparison, row: Row, names: Mapping[str, str]) -> list[list[str]]:
    ratio, lines = study.macs_ratio(row), []
    if row.cost("nfe"):
        lines.append([names["nfe"], significant(row.cost("nfe")), ""])
    if ratio:
        lines.append([names["macs_ratio"], significant(ratio), ""])
    for i, device in enumerate(study.devices):
        if timing := study.timing(row, device):
            told = "not told apart from 1" if row is not study.baseline and no_speed(timing) else ""
            lines.append([names[f"ms{i}"], interval(timing["ms_per_image"]), ""])
            lines.append([names[f"speedup{i}"], interval(timing["speedup"], unit="×"), told])
    return lines if not row.simulated else [*lines, ["time", "none: simulated", ""]]
