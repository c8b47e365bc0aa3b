"""What the labels on a page say: for each part of a recipe what it is, and its settings as records have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from accel.results.comparison import Comparison, Row
from accel.results.report.sections import settings_text

AXES = ("sampler", "grid", "guidance", "cache", "stitch", "precision", "skip", "student", "decoder")
# (axis, name on it, class of the method, its package where that is not accel) -> what it is, or None where nobody says.
Describe = Callable[[str, str, str, "str | None"], "str | None"]
GRAMMAR = (
    "A label is read from the left: the sampler and its number of steps (`dpmpp_2m-10`), after @ the grid of timesteps "
    "that it visits (`@karras`; without @ the sampler's usual one), then after each + what is added: guidance, stitch, "
    "cache, skip, precision, decoder; a student after guidance."
)


class Entry(NamedTuple):
    """A part of labels: its axis, how it is written, what it is, and the settings behind it."""

    axis: str
    label: str
    text: str
    settings: str


def entries(studies: Iterable[Comparison], describe: Describe) -> list[Entry]:
    """Every part of every label that the studies show, by axis and then by label."""
    found: dict[tuple[str, str], Entry] = {}
    for study in studies:
        for row in study.done:
            for axis, name in (row.quality.get("axes") or {}).items():
                # The label of a sampler ends in its steps, and those of its grid begin with @.
                label = {"sampler": f"{name}-…", "grid": f"@{name}"}.get(axis, str(name))
                if axis in AXES and name != "none" and (axis, label) not in found:
                    found[axis, label] = _entry(row, axis, label, describe)
    return sorted(found.values(), key=lambda entry: (AXES.index(entry.axis), _natural(entry.label)))


def _entry(row: Row, axis: str, label: str, describe: Describe) -> Entry:
    described = (row.quality.get("recipe") or {}).get(axis)
    own: Mapping[str, Any] = described if isinstance(described, Mapping) else {}
    package = own.get("package")
    said = describe(axis, str(row.quality["axes"][axis]), str(own.get("type", "")), package)
    text = said or (f"a method of the package {package}" if package else f"{axis} of this name")
    return Entry(axis, label, text, settings_text({k: v for k, v in own.items() if (axis, k) != ("sampler", "steps")}))


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Numbers in a label by their size."""
    pieces = enumerate(re.split(r"(\d+(?:\.\d+)?)", text))
    return [(0, float(piece), "") if i % 2 else (1, 0.0, piece) for i, piece in pieces]
