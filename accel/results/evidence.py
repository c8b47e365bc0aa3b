"""What the records of a results folder say of two rows: all kinds of studies by one name, read once.

A name is that of a study, of a study of searches (rows `<what it is for>: <schedule>`, such as `ddim_accel-4: nsga2`),
`dc_ratios` (rows `<steps> steps, scale <scale>: none | searched | predicted`) or `macs_architectures` (rows `<network>`
and `<network>: <cache>, <live>`, counted MACs of one evaluation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from accel.metrics.statistics import Estimate
from accel.metrics.verdicts import Margins
from accel.records import Results
from accel.results.comparison import Comparison, Row, no_speed
from accel.results.headline import ratio

RATIOS, MACS = "dc_ratios", "macs_architectures"
SPEED, COSTS = "speedup", ("macs", "nfe", "model_bytes")
Ratio = Mapping[str, float]  # value, lo, hi


class Missing(NamedTuple):
    """Why two rows tell nothing, as what would be needed."""

    needs: str


class Pair(NamedTuple):
    """Two rows of a study: `row` is held against `other`."""

    study: Comparison
    row: Row
    other: Row

    def delta(self, key: str) -> Estimate | None:
        """Paired difference row - other of a value; None where the two cannot be compared."""
        return self.study.delta(self.row, self.other, key)

    def verdict(self, key: str) -> str:
        """What the difference says: one of `accel.metrics.verdicts.WORDS`, or that it cannot be compared."""
        return self.study.verdict(self.row, self.other, key)

    def margin(self, key: str) -> float | None:
        return self.study.margin(key, self.other)

    def ratio(self, key: str) -> Ratio | None:
        """row / other of a value, a cost or (`speedup`) other's time / row's time; counts are exact (lo = hi).

        Of values r = a / b with the paired jackknife of log r: r_(g) = a_(g) / b_(g) on the same seeds. None where one
        of the two is not positive, absent or not comparable.
        """
        if key == SPEED:
            return self._speedup()
        if key in COSTS:
            own, other = self.row.cost(key), self.other.cost(key)
            return None if not own or not other else dict.fromkeys(("value", "lo", "hi"), own / other)
        if self.delta(key) is None:
            return None
        a, b = self.row.value(key), self.other.value(key)
        if min(a.value, b.value, *a.replicates, *b.replicates) <= 0:
            return None
        logs = [math.log(x / y) for x, y in zip(a.replicates, b.replicates, strict=True)]
        found = Estimate.from_replicates(math.log(a.value / b.value), logs, a.n, a.period)
        return {end: math.exp(getattr(found, end)) for end in ("value", "lo", "hi")}

    def pace(self) -> str | None:
        """`faster` or `slower` where the speed-up of `row` over `other` is told apart from 1, and from its own A/A
        floors if `other` is what it was timed beside; else empty. None where one of the two was not timed."""
        speedup = self.ratio(SPEED)
        if speedup is None:
            return None
        if self.other is self.study.baseline and no_speed(self._timing(self.row)):
            return ""
        return "faster" if speedup["lo"] > 1 else "slower" if speedup["hi"] < 1 else ""

    def _timing(self, row: Row) -> dict[str, Any] | None:
        return self.study.timing(row, self.study.devices[0]) if self.study.devices else None

    def _speedup(self) -> Ratio | None:
        own, other = self._timing(self.row), self._timing(self.other)
        if own is None or other is None:
            return None
        return own["speedup"] if self.other is self.study.baseline else ratio(own, other)


class Evidence:
    """The records of one results folder. A study is read when first asked for."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._read: dict[str, Comparison | None] = {}

    def study(self, name: str) -> Comparison | None:
        """The study `name` of any kind, or None. ConfigError for what is no name; IntegrityError for a damaged one."""
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def pair(self, name: str, label: str, against: str, key: str | None = None) -> Pair | Missing:
        """The rows `label` and `against` of a study, as a pair that compares in the value `key`, if there is one.

        Where a label occurs more than once (as a cell and as a control), the first rows that compare are taken.
        `against` may be empty: the study's baseline.
        """
        study = self.study(name)
        if study is None:
            return Missing(f"row {label} in study {name}")
        rows, others = self._rows(study, label), self._rows(study, against)
        for found, wanted in ((rows, label), (others, against or "its baseline")):
            if not found:
                refused = next((row.refused for row in study.rows if row.label == wanted and row.refused), None)
                return Missing(f"row {wanted} in study {name}" + (f" (refused: {refused})" if refused else ""))
        pairs = [Pair(study, row, other) for row in rows for other in others if row is not other]
        if key is None:
            return pairs[0] if pairs else Missing(f"another row than {label} in study {name}")
        told = (pair for pair in pairs if pair.delta(key) or pair.ratio(key))
        return next(told, Missing(f"{key} of {label} and {against or 'its baseline'}, comparable, in study {name}"))

    @staticmethod
    def _rows(study: Comparison, label: str) -> list[Row]:
        if not label:
            return [study.baseline] if study.baseline else []
        rows = [row for row in study.done if row.label == label]
        return sorted(rows, key=lambda row: row is not study.baseline)  # the baseline itself before what repeats it

    def _load(self, name: str) -> Comparison | None:
        if self.results.load_study(name) is not None:
            return Comparison.load(self.results, name)
        if (searches := self.results.load("search_study", name)) is not None:
            rows = [
                _row(f"{line['of']}: {line['name']}", self.results.load("quality", line["quality"]))
                for line in searches["rows"]
            ]
            rows = [row for row in rows if row.quality]
            margins = Margins.from_dict(searches.get("margins"))
            return Comparison(name, searches["title"], searches["suite"], tuple(rows), margins)
        found = {RATIOS: self._ratios, MACS: self._macs}.get(name, list)()
        return Comparison(name, name, "", tuple(found)) if found else None

    def _ratios(self) -> list[Row]:
        return [
            _row(f"{line['steps']} steps, scale {line['scale']:g}: {kind}", _quality(record, {"distance": value}))
            for record in self.results.all("cascade")
            for line in record["rows"]
            for kind, value in line["distance"].items()
        ]

    def _macs(self) -> list[Row]:
        records = self.results.all("macs")
        full = {record["network"]: record["full"]["total"] for record in records}
        cached = {
            f"{record['network']}: {record['method']}, {record['live']}": record["measured"]["total"]
            for record in records
        }
        return [_row(label, _quality({}, {}, {"macs": macs})) for label, macs in (full | cached).items()]


def _row(label: str, quality: dict[str, Any] | None) -> Row:
    return Row("cell", label, None, None, quality, None)


def _quality(record: Mapping[str, Any], values: dict[str, Any], cost: dict[str, float] | None = None) -> dict[str, Any]:
    """What stands for a quality record where there is none."""
    n = next((value["n"] for value in values.values()), 0)
    suite = record.get("suite", "")
    return {"id": "", "suite": suite, "n": n, "seed": 0, "values": values, "cost": cost or {}, "axes": {}}
