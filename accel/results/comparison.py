"""What may be compared with what: rows of a study, ranks, differences to the baseline and to equal-cost controls.

What keeps a comparison fair is decided here. Quality is ranked, and compared with the baseline, only among rows of
equal suite, N, seed, metric and reference; a difference whose paired 95 % interval contains 0 is a tie. Times stand
side by side only when device, threads and batch agree. All that is ranked (FID, distances) is better when lower;
`HIGHER` names what is better when higher.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from accel.errors import unknown
from accel.evaluation.statistics import Estimate, paired
from accel.results.records import Results

ACCELERATING = ("cache", "stitch", "precision", "skip")  # axes beside sampler and guidance
COMPETES = ("baseline", "cell", "control")
# How well prompts are followed, the more telling value first: heading, scale.
PROMPTED = {"adherence": ("adherence %", 100), "clip_score": ("CLIP score", 1)}
HIGHER = ("accuracy", "adherence", "exact", "clip_score", "inception_score", "precision", "recall")
UNKNOWN = "not comparable"


class Rank(NamedTuple):
    """Place from 1, and whether it is shared with rows that cannot be told from the place's leader."""

    place: int
    shared: bool

    def __str__(self) -> str:
        return f"{self.place}=" if self.shared else str(self.place)


def metric_of(record: Mapping[str, Any]) -> str | None:
    """The value a quality record is ranked by: FID (the suite's own first), else a distance."""
    values = record["values"]
    fids = sorted(key for key in values if key.startswith("fid"))
    wanted = (f"fid_{record['suite']}", *fids, "distance")
    return next((key for key in wanted if key in values), None)


def group_of(record: Mapping[str, Any]) -> tuple:
    """What two quality records must share to be compared: suite, N, seed, metric, reference, metric's own N.

    The reference is the sha256 of the real data, or the trajectory that distances are taken to (guidance has its own).
    A metric's own N differs from N where it is taken of fewer samples, as distances may be.
    """
    metric, reference = metric_of(record), (record.get("reference") or {}).get("sha256")
    own = record["values"][metric]["n"] if metric else None
    if metric == "distance":
        reference = record.get("converged") or reference
    return record["suite"], record["n"], record["seed"], metric, reference, own


def device_of(timing: Mapping[str, Any]) -> tuple:
    """What two timing records must share to be compared: device name, threads, batch."""
    return timing["device_name"], timing["threads"], timing["batch"]


def rank(records: Iterable[Mapping[str, Any]]) -> dict[str, Rank]:
    """Rank of each quality record, by id, within its own group (`group_of`); those without a metric have none.

    From best to worst, a record joins the leader of the current place if their paired difference is a tie; otherwise
    it leads the next place, which counts all before it (1=, 1=, 3).
    """
    found: dict[tuple, dict[str, Estimate]] = {}
    for record in records:
        if metric := metric_of(record):
            value = Estimate.from_dict(record["values"][metric])
            found.setdefault(group_of(record), {})[record["id"]] = value
    ranks = {}
    for values in found.values():
        leader, place, places = None, 0, {}
        for position, key in enumerate(sorted(values, key=lambda k: (values[k].value, k)), 1):
            if leader is None or not paired(values[key], leader).tie:
                leader, place = values[key], position
            places[key] = place
        members = Counter(places.values())
        ranks |= {key: Rank(place, members[place] > 1) for key, place in places.items()}
    return ranks


def verdict(delta: Estimate | None, key: str | None = None) -> str:
    """better, tie or worse, of a difference of value `key`; without one lower is better."""
    if delta is None:
        return UNKNOWN
    return "tie" if delta.tie else "better" if (delta.value > 0) == (key in HIGHER) else "worse"


def searched(search: Mapping[str, Any], score: float) -> float:
    """A score of a search as its metric has it: searches minimise, so what is better when higher was negated."""
    return -score if search["settings"]["metric"] in HIGHER else score


def speed_tie(timing: Mapping[str, Any]) -> bool:
    """Whether a speed-up cannot be told from 1, or from what the baseline shows against itself (the A/A floor)."""
    speedup, floor = timing["speedup"], timing.get("aa") or {"lo": 1, "hi": 1}
    return speedup["lo"] <= max(1, floor["hi"]) and speedup["hi"] >= min(1, floor["lo"])


@dataclass(frozen=True)
class Row:
    """One line of a study manifest with the records it names."""

    role: str
    label: str
    of: str | None
    refused: str | None  # why there is no result
    quality: dict[str, Any] | None
    timing: dict[str, Any] | None  # always None for simulated arithmetic, whose time says nothing

    @property
    def simulated(self) -> bool:
        return bool(self.quality and self.quality.get("simulated"))

    @property
    def accelerated(self) -> bool:
        """Whether it does more than sample plainly, so that it owes an equal-cost control."""
        axes = self.quality.get("axes") or {}
        return self.role == "cell" and any(axes.get(a, "none") != "none" for a in ACCELERATING)

    def value(self, key: str | None) -> Estimate | None:
        return Estimate.from_dict(self.quality["values"][key]) if key in self.quality["values"] else None

    def cost(self, key: str) -> float | None:
        return (self.quality.get("cost") or {}).get(key)


@dataclass(frozen=True)
class Comparison:
    """A study as tables see it: its manifest with records; `done` rows have a quality record, the others a reason."""

    name: str
    title: str
    suite: str
    rows: tuple[Row, ...]

    @classmethod
    def load(cls, results: Results, name: str) -> Comparison:
        """Read a study. ConfigError if there is none of this name; IntegrityError for a damaged record."""
        manifest = results.load_study(name)
        if manifest is None:
            raise unknown("study", name, results.studies())
        rows = []
        for line in manifest["rows"]:
            quality = results.load("quality", line["quality"]) if line.get("quality") else None
            timed = line.get("timing") and quality and not quality.get("simulated")
            timing = results.load("timing", line["timing"]) if timed else None
            refused = line.get("refused") or (None if quality else "no record: it failed or has not run yet")
            rows.append(Row(line["role"], line["label"], line.get("of"), refused, quality, timing))
        return cls(manifest["name"], manifest.get("title") or name, manifest["suite"], tuple(rows))

    @cached_property
    def done(self) -> list[Row]:
        return [row for row in self.rows if not row.refused]

    @cached_property
    def competing(self) -> list[Row]:
        """Rows that are ranked, each run once: the control of one cell may be another cell."""
        rows = [row for role in COMPETES for row in self.done if row.role == role]
        first = {row.quality["id"]: row for row in reversed(rows)}
        return [row for row in self.done if first.get(row.quality["id"]) is row]

    @cached_property
    def ranks(self) -> dict[str, Rank]:
        return rank(row.quality for row in self.competing)

    @cached_property
    def baseline(self) -> Row | None:
        return next((row for row in self.done if row.role == "baseline"), None)

    @cached_property
    def groups(self) -> list[tuple]:
        """Groups within which quality is comparable, the baseline's first."""
        rows = [self.baseline, *self.competing] if self.baseline else self.competing
        return list(dict.fromkeys(group_of(row.quality) for row in rows))

    @cached_property
    def devices(self) -> list[tuple]:
        """Groups within which times are comparable: (device name, threads, batch)."""
        return list(dict.fromkeys(device_of(row.timing) for row in self.done if row.timing))

    def members(self, group: tuple | None) -> list[Row]:
        """Rows of one section: floors and references, then the group's competitors by rank."""

        def home(row: Row) -> tuple | None:
            own = group_of(row.quality)
            return own if own in self.groups else next(iter(self.groups), None)

        def order(row: Row) -> tuple:
            place, value = self.ranks.get(row.quality["id"]), row.value(group[3])
            return place.place if place else math.inf, value.value if value else math.inf, row.label

        fixed = [r for role in ("floor", "reference") for r in self.done if r.role == role and home(r) == group]
        return fixed + sorted((r for r in self.competing if group_of(r.quality) == group), key=order)

    def timing(self, row: Row, device: tuple) -> dict[str, Any] | None:
        """The row's timing on `device`; an untimed baseline has the median of the timings interleaved with others."""
        if row.timing or row is not self.baseline:
            return row.timing if row.timing and device_of(row.timing) == device else None
        timed = [r.timing for r in self.done if r.timing and device_of(r.timing) == device]
        own = [t for t in timed if t["baseline"] == row.quality["id"]]
        if not own:
            return None
        middle = sorted(own, key=lambda t: (t["baseline_ms"]["value"], t["id"]))[(len(own) - 1) // 2]
        return middle | {"ms_per_image": middle["baseline_ms"], "speedup": {"value": 1.0, "lo": 1.0, "hi": 1.0}}

    def delta(self, row: Row, other: Row | None, key: str | None) -> Estimate | None:
        """Paired difference row - other of a value, or None where the two cannot be compared."""
        if other is None or row.role == "floor" or group_of(row.quality) != group_of(other.quality):
            return None
        a, b = row.value(key), other.value(key)
        return paired(a, b) if a and b and a.n == b.n else None

    def controls(self) -> list[tuple[Row, Row]]:
        """(cell, equal-cost control) for every control that ran, in the order of the cells."""
        cells = [row for row in self.done if row.role == "cell"]
        controls = [row for row in self.done if row.role == "control"]
        return [(cell, control) for cell in cells for control in controls if control.of == cell.label]

    def macs_ratio(self, row: Row) -> float | None:
        own, other = row.cost("macs"), self.baseline.cost("macs") if self.baseline else None
        return own / other if own is not None and other else None
