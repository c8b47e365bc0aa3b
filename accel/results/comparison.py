"""What may be compared with what: rows of a study, ranks, differences to the baseline and to equal-cost controls.

What keeps a comparison fair is decided here. Quality is ranked, and compared with the baseline, only among rows of
equal suite, N, seed, metric and reference; what a paired difference says is decided by `accel.metrics.verdicts`. Times
stand side by side only when device, threads and batch agree. `HIGHER` names what is better when higher; FID and
distances are better when lower. Sharpness and the temporal difference have no better: see `UNJUDGED`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from accel.metrics.statistics import Estimate, beaten_by, paired
from accel.metrics.verdicts import Margins, benjamini_hochberg, holm, losses, p_value, verdict
from accel.records import Results

ACCELERATING = ("cache", "stitch", "precision", "skip", "student", "decoder")  # axes beside sampler and guidance
COMPETES = ("baseline", "conventional", "plain", "cell", "control")
# How well prompts are followed, the more telling value first: heading, scale.
PROMPTED = {"adherence": ("adherence %", 100), "clip_score": ("CLIP score", 1)}
UNJUDGED = {"sharpness": {"better": "sharper", "worse": "blurrier"}}  # what has no better, and the words instead
UNJUDGED |= {"temporal": {"better": "livelier", "worse": "calmer"}}
# Reference metrics (accel.metrics.similarity): heading. What compares with the unaccelerated recipe is of accelerated
# rows only, so that there is no difference to the baseline's.
SIMILAR = {"psnr": "PSNR dB ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓"}
SIMILAR |= {"sharpness": "sharpness", "temporal": "temporal difference"}
TO_PLAIN = {f"{key}_to_plain": f"{name} to plain" for key, name in SIMILAR.items() if key not in UNJUDGED}
HIGHER = ("accuracy", "adherence", "exact", "clip_score", "inception_score", "precision", "recall", "psnr", "ssim")
UNKNOWN = "not comparable"
APART = "not told apart"  # of a speed-up and 1
MARGINS = Margins()
HOLM, HOCHBERG = "‡", "†"  # marks of what survives: Holm, and so Benjamini-Hochberg; Benjamini-Hochberg only


class Rank(NamedTuple):
    """Place from 1, and whether it is shared."""

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
        converged = record.get("converged")
        reference = ", ".join(converged) if isinstance(converged, list) else converged or reference
    return record["suite"], record["n"], seed_of(record), metric, reference, own


def seed_of(record: Mapping[str, Any]) -> int | str:
    """The base seed of a record's samples; of several that are pooled their list, as text."""
    seeds = record.get("seeds") or [record["seed"]]
    return seeds[0] if len(seeds) == 1 else ", ".join(map(str, seeds))


def timed_against(timing: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether the quality record's recipe was a timing's baseline: by its samples, as their number changes no time; by
    its id in older timings."""
    own = record.get("samples")
    if (samples := timing.get("baseline_samples")) is not None and own is not None:
        return samples == (own[0] if isinstance(own, list) else own)
    return timing.get("baseline") == record["id"]


def baseline_of(timing: Mapping[str, Any]) -> str | None:
    """What two timings must share to be of the same baseline."""
    return timing.get("baseline_samples") or timing.get("baseline")


def device_of(timing: Mapping[str, Any]) -> tuple:
    """What two timing records must share to be compared: device name, threads, batch."""
    return timing["device_name"], timing["threads"], timing["batch"]


def rank(records: Iterable[Mapping[str, Any]], margins: Margins = MARGINS) -> dict[str, Rank]:
    """Rank of each quality record, by id, within its own group (`group_of`); those without a metric have none.

    Place = 1 + the number of recipes that are better (their paired difference's 95 % interval excludes 0) in that
    value in which most are: the metric and every value that a user would miss (`Margins.gates`). So no value is bought
    with another one.
    """
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for record in records:
        if metric_of(record):
            found.setdefault(group_of(record), []).append(record)
    ranks = {}
    for members in found.values():
        places = {record["id"]: 1 for record in members}
        keys = sorted({key for record in members for key in judged(record, margins)})
        for key in keys:
            alike: dict[tuple, list[tuple[str, Estimate]]] = {}
            for record in members:
                if key in record["values"]:
                    value = Estimate.from_dict(record["values"][key])
                    alike.setdefault(value.design, []).append((record["id"], value))
            for own in alike.values():
                counts = beaten_by([value for _, value in own], key in HIGHER)
                for (name, _), count in zip(own, counts, strict=True):
                    places[name] = max(places[name], 1 + count)
        shared = Counter(places.values())
        ranks |= {name: Rank(place, shared[place] > 1) for name, place in places.items()}
    return ranks


def judged(record: Mapping[str, Any], margins: Margins) -> list[str]:
    """The values of a quality record by which a recipe is judged: its metric and what a user would miss."""
    metric = metric_of(record)
    return list(dict.fromkeys([*([metric] if metric else []), *margins.gates(record["values"])]))


def survivors(p: Mapping[Any, float]) -> dict[Any, str]:
    """The mark of each comparison of one table by its p: HOLM, HOCHBERG, or none."""
    both = zip(p, holm([*p.values()]), benjamini_hochberg([*p.values()]), strict=True)
    return {key: HOLM if first else HOCHBERG * second for key, first, second in both}


def searched(search: Mapping[str, Any], score: float) -> float:
    """A score of a search as its metric has it: searches minimise, so what is better when higher was negated."""
    return -score if search["settings"]["metric"] in HIGHER else score


def floors(timing: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """The A/A floors of a timing: the baseline against itself, and (in newer records) the recipe against itself."""
    return [timing[key] for key in ("aa", "aa_recipe") if timing.get(key)]


def no_speed(timing: Mapping[str, Any]) -> bool:
    """Whether a speed-up cannot be told from 1, or from what baseline or recipe show against themselves."""
    speedup, own = timing["speedup"], floors(timing)
    most, least = max([1, *(floor["hi"] for floor in own)]), min([1, *(floor["lo"] for floor in own)])
    return speedup["lo"] <= most and speedup["hi"] >= least


@dataclass(frozen=True)
class Row:
    """One line of a study manifest with the records it names."""

    role: str
    label: str
    of: str | None
    refused: str | None  # why there is no result
    quality: dict[str, Any] | None
    timing: dict[str, Any] | None  # always None for simulated arithmetic, whose time says nothing
    equal: tuple[str, ...] = ("MACs",)  # of a control: what it costs as much of as the row `of`
    others: tuple[dict[str, Any], ...] = ()  # timings at further batches

    @property
    def simulated(self) -> bool:
        return bool(self.quality and self.quality.get("simulated"))

    @property
    def timings(self) -> tuple[dict[str, Any], ...]:
        return (self.timing, *self.others) if self.timing else ()

    @property
    def accelerated(self) -> bool:
        """Whether it does more than sample plainly, so that it owes an equal-cost control."""
        axes = self.quality.get("axes") or {}
        return self.role == "cell" and any(axes.get(a, "none") != "none" for a in ACCELERATING)

    def value(self, key: str | None) -> Estimate | None:
        return Estimate.from_dict(self.quality["values"][key]) if key in self.quality["values"] else None

    def cost(self, key: str) -> float | None:
        return (self.quality.get("cost") or {}).get(key)


def mark_of(row: Row, other: Row, key: str) -> tuple[str, str, str]:
    """The key of a comparison among marks."""
    return row.quality["id"], other.quality["id"], key


@dataclass(frozen=True)
class Comparison:
    """A study as tables see it: its manifest with records; `done` rows have a quality record, the others a reason."""

    name: str
    title: str
    suite: str
    rows: tuple[Row, ...]
    margins: Margins = MARGINS
    against: Mapping[str, str] = field(default_factory=dict)  # labels by role: `conventional`, `plain`

    @classmethod
    def load(cls, results: Results, name: str) -> Comparison:
        """Read a study. ConfigError if there is none of this name; IntegrityError for a damaged record."""
        manifest = results.load_study(name)
        if manifest is None:
            raise results.unknown_study(name)
        rows = []
        for line in manifest["rows"]:
            quality = results.load("quality", line["quality"]) if line.get("quality") else None
            timed = line.get("timing") and quality and not quality.get("simulated")
            timing = results.load("timing", line["timing"]) if timed else None
            others = tuple(results.load("timing", key) for key in line.get("timings", ()) if timing)
            others = tuple(other for other in others if other)
            refused = line.get("refused") or (None if quality else "no record: it failed or has not run yet")
            equal = tuple(line.get("equal") or ("MACs",))
            rows.append(Row(line["role"], line["label"], line.get("of"), refused, quality, timing, equal, others))
        margins = Margins.from_dict(manifest.get("margins"))
        against = manifest.get("against") or {}
        return cls(manifest["name"], manifest.get("title") or name, manifest["suite"], tuple(rows), margins, against)

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
        return rank((row.quality for row in self.competing), self.margins)

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
        return list(dict.fromkeys(device_of(timing) for row in self.done for timing in row.timings))

    @cached_property
    def side_by_side(self) -> list[tuple]:
        """The `devices` whose speeds stand in the main table: one, or one machine at several batches, all of which some
        row was timed at."""
        machines = {device[:2] for device in self.devices}
        whole = any(len({*map(device_of, row.timings)}) == len(self.devices) for row in self.done)
        return self.devices if len(machines) == 1 and whole else []

    def held_against(self, role: str) -> Row | None:
        """What recipes are held against beside the baseline: the row of the `conventional` or best `plain` sampler, and
        the one that compares with the baseline, where there are several."""
        label, base = self.against.get(role), self.baseline
        rows = [row for row in self.competing if label is not None and row.label == label]
        alike = [row for row in rows if base and group_of(row.quality) == group_of(base.quality)]
        return next(iter([*alike, *rows]), None)

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
        """The row's timing on `device` as tables show it, or None.

        `ms_per_image` is P / s: P the pooled time of its baseline there, s the row's speed-up, which was measured in
        the same rounds as its own baseline. So both columns say the same, whatever the machine did between two
        timings. An untimed baseline has a timing that was interleaved with others.
        """
        own = next((timing for timing in row.timings if device_of(timing) == device), None)
        if own is None and row is self.baseline and not row.timings:
            own = next((t for t in self._timed(device) if timed_against(t, row.quality)), None)
        if own is None:
            return None
        pooled = self.baseline_ms(device, baseline_of(own)) or own["ms_per_image"]
        if row is self.baseline and timed_against(own, row.quality):
            return own | {"ms_per_image": pooled, "speedup": {"value": 1.0, "lo": 1.0, "hi": 1.0}}
        value, lo, hi = (pooled["value"] / own["speedup"][end] for end in ("value", "hi", "lo"))
        return own | {"ms_per_image": {"value": value, "lo": lo, "hi": hi}}

    def baseline_ms(self, device: tuple, baseline: str | None) -> dict[str, float] | None:
        """ms an image of a baseline (what `baseline_of` a timing says) on `device`: the median over all timings of
        this study that were interleaved with it, with the median ends of their intervals; None without any."""
        found = [t["baseline_ms"] for t in self._timed(device) if baseline_of(t) == baseline and "baseline_ms" in t]
        return {end: statistics.median(x[end] for x in found) for end in ("value", "lo", "hi")} if found else None

    def _timed(self, device: tuple) -> list[dict[str, Any]]:
        """The timings of all rows on `device`, each once: the control of one cell may be another cell."""
        timed = (timing for row in self.done for timing in row.timings if device_of(timing) == device)
        return list({timing["id"]: timing for timing in timed}.values())

    def delta(self, row: Row, other: Row | None, key: str | None) -> Estimate | None:
        """Paired difference row - other of a value, or None where the two cannot be compared."""
        if other is None or row.role == "floor" or group_of(row.quality) != group_of(other.quality):
            return None
        a, b = row.value(key), other.value(key)
        return paired(a, b) if a and b and a.design == b.design else None

    def margin(self, key: str, other: Row) -> float | None:
        """The margin of a value against `other`: one for the whole table, that of the baseline where they compare."""
        base = self.baseline
        own = base if base and group_of(base.quality) == group_of(other.quality) and base.value(key) else other
        value = own.value(key)
        return self.margins.of(key, value.value) if value else None

    def verdict(self, row: Row, other: Row | None, key: str) -> str:
        """What the paired difference row - other of a value says: one of `accel.metrics.verdicts.WORDS`."""
        delta = self.delta(row, other, key)
        if delta is None:
            return UNKNOWN
        if key in UNJUDGED:
            return UNJUDGED[key].get(word := verdict(delta, higher=True), word)
        return verdict(delta, self.margin(key, other), key in HIGHER)

    def verdicts(self, row: Row, other: Row | None = None) -> dict[str, str]:
        """For each value that a user would miss, the verdict against `other`, or else against the baseline."""
        other = other or self.baseline
        if other is None or row is other or self.delta(row, other, metric_of(row.quality)) is None:
            return {}
        return {key: self.verdict(row, other, key) for key in self.margins.gates(other.quality["values"])}

    @cached_property
    def gates(self) -> list[str]:
        """The values of the baseline that a user would miss."""
        return self.margins.gates(self.baseline.quality["values"]) if self.baseline else []

    def loss(self, row: Row) -> float | None:
        """How much worse than the baseline a recipe is, in margins, by its values alone; None: not comparable.

        The worst loss in any value that a user would miss, if it exceeds its margin; else that of the metric, which is
        negative for a gain.
        """
        lost, metric = {}, metric_of(row.quality)
        for key in [metric, *self.gates] if self.gates else ():
            delta, margin = self.delta(row, self.baseline, key), self.margin(key, self.baseline)
            if delta is not None and margin is not None:
                lost[key] = losses(delta, key in HIGHER)[0] / max(margin, 1e-9)
        worst = max(lost.values(), default=None)
        return lost.get(metric, worst) if worst is not None and worst <= 1 else worst

    @cached_property
    def marks(self) -> dict[tuple[str, str, str], str]:
        """What survives of the comparisons with the baseline, of all values that have a verdict: by (row, baseline,
        value)."""
        base = self.baseline
        return self._marks([(row, base) for row in self.competing if base and row is not base], self.compared)

    @cached_property
    def compared(self) -> list[str]:
        """The values whose difference to the baseline is judged, beside the metric: distance, all with a margin, and
        reference metrics."""
        there = self.baseline.quality["values"] if self.baseline else {}
        return ["distance", *self.gates, *(key for key in ("precision", *SIMILAR) if key in there)]

    @cached_property
    def control_marks(self) -> dict[tuple[str, str, str], str]:
        """What survives of the comparisons with the equal-cost controls."""
        return self._marks(self.controls(), ("distance", *PROMPTED, *SIMILAR))

    def _marks(self, pairs: Sequence[tuple[Row, Row]], keys: Sequence[str]) -> dict[tuple[str, str, str], str]:
        p = {}
        for row, other in pairs:
            for key in dict.fromkeys([metric_of(row.quality), *keys]):
                if (delta := self.delta(row, other, key)) is not None:
                    p[mark_of(row, other, key)] = p_value(delta)
        return survivors(p)

    def controls(self) -> list[tuple[Row, Row]]:
        """(cell, equal-cost control) for every control that ran, in the order of the cells."""
        cells = [row for row in self.done if row.role == "cell"]
        controls = [row for row in self.done if row.role == "control"]
        return [(cell, control) for cell in cells for control in controls if control.of == cell.label]

    def macs_ratio(self, row: Row) -> float | None:
        own, other = row.cost("macs"), self.baseline.cost("macs") if self.baseline else None
        return own / other if own is not None and other else None
