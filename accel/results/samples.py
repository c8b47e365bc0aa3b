"""The sample sheet of a study: the same seeds of every recipe, row by row, and how they differ from converged ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from accel.records import Results
from accel.results.canvas import DPI, GREY, INK, fit, new_figure
from accel.results.comparison import Comparison, Row, seed_of
from accel.results.panels import on_front
from accel.results.text import interval, metric_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SAMPLE, GAP, LINE = 76, 4, 12  # largest side of a sample, pixels between samples, between rows
MOST_SAMPLES, LABEL_WIDTH = 16, 32
MOST_ROWS = 30
DIFFERENCES, GAINS, SATURATED = (
    3,
    (8, 4, 2, 1),
    0.02,
)  # seeds whose difference is shown; how bright; share cut off at most


def sample_sheet(study: Comparison, results: Results) -> Figure | None:
    """One row of the same seeds for every recipe: the converged reference first, then by rank. Of more than MOST_ROWS
    recipes the front is kept first. Beside the samples: |x - converged| of the first ones, where a recipe's converged
    trajectory is the one that is shown."""
    if not study.groups:
        return None
    group = study.groups[0]
    rows = [row for row in study.members(group) if row.role != "floor" and seed_of(row.quality) == group[2]]
    strips = [(row, samples) for row in chosen(study, rows) if (samples := _strip(results, row))]
    if not strips:
        return None
    left_out = len(rows) - len(strips) if len(rows) > MOST_ROWS else 0
    import numpy as np

    count = min(MOST_SAMPLES, min(len(samples) for _, samples in strips))
    size = max(samples[0].height for _, samples in strips)
    names = [wrap(row.label, LABEL_WIDTH)[:2] for row, _ in strips]
    label = 60 + round(11.5 * max(18, *(len(line) for name in names for line in name)))
    captions = next((c for row, _ in strips if (c := row.quality.get("notes", {}).get("captions"))), [])[:count]
    pictures, gain = differences(strips, min(DIFFERENCES, count))
    top, pitch, below = 96 + 14 * bool(captions or pictures), size + LINE, 10 + 17 * len(captions)
    beside = label + count * (size + GAP) + 16  # where the differences begin
    right = beside + DIFFERENCES * (size + GAP) if pictures else label + count * (size + GAP)
    width, height = right + 20, top + len(strips) * pitch + 12 + below * bool(captions)
    figure = new_figure(width / DPI, height / DPI)

    def write(x: float, y: float, text: str, **style: Any) -> Text:
        return figure.text(x / width, y / height, text, va="center", **style)

    fit(write(24, height - 32, study.title, size=10, weight="bold", color=INK), (width - 48) / DPI)
    what = f"{study.suite}, the same {count} seeds in every row; {metric_name(group[3])} with its 95 % interval"
    if left_out:
        what += f"; {len(strips)} of {len(rows)} rows: converged, baseline and front first, then by rank"
        what += f" ({left_out} left out)"
    fit(write(24, height - 66, what, size=7, color=GREY), (width - 48) / DPI)
    if pictures:
        name = f"|x − converged|{f' × {gain}' if gain > 1 else ''}"
        middle = beside + DIFFERENCES * (size + GAP) / 2
        fit(write(middle, height - top + 10, name, size=6.3, color=GREY, ha="center"), (right - beside) / DPI)
    for i, (row, samples) in enumerate(strips):
        y = height - top - i * pitch - size  # from the bottom
        for j, sample in enumerate(samples[:count]):
            figure.figimage(np.asarray(sample), label + j * (size + GAP), y, origin="upper")
        for j, picture in enumerate(pictures.get(id(row), ())):
            figure.figimage(picture, beside + j * (size + GAP), y, origin="upper")
        weight = "bold" if row.role in ("reference", "baseline") else "normal"
        single = len(names[i]) == 1
        write(24, y + (0.68 if single else 0.66) * size, "\n".join(names[i]), size=8, weight=weight, color=INK)
        write(24, y + (0.28 if single else 0.1) * size, _caption(row, group), size=6.3, color=GREY)
    for j, caption in enumerate(captions):
        write(label + j * (size + GAP) + size / 2, height - top + 10, str(j + 1), size=6.3, color=GREY, ha="center")
        write(24, 12 + below - 17 * (j + 1), f"{j + 1}  {caption}", size=6.3, color=GREY)
    return figure


def chosen(study: Comparison, rows: Sequence[Row]) -> list[Row]:
    """At most MOST_ROWS of `rows`, in their order: the converged one, the baseline and the front before others."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    first = [row for row in rows if row.role in ("reference", "baseline")]
    order = [id(row) for row in (*first, *on_front(study), *rows)]
    kept = set(list(dict.fromkeys(order))[:MOST_ROWS])
    return [row for row in rows if id(row) in kept]


def differences(strips: Sequence[tuple[Row, list[Any]]], count: int) -> tuple[dict[int, list[Any]], int]:
    """|x - converged| of the first `count` samples as shown, by id of the row, brightened by one factor for the whole
    sheet, which is the second; nothing of rows that are compared with another trajectory than the sheet's reference."""
    import numpy as np

    exact = next(((row, samples) for row, samples in strips if row.role == "reference"), None)
    if exact is None or exact[0].quality.get("samples") is None:
        return {}, 1
    found = {}
    for row, samples in strips:
        if row is not exact[0] and row.quality.get("converged") == exact[0].quality["samples"]:
            pairs = zip(samples[:count], exact[1][:count], strict=True)
            found[id(row)] = [np.abs(np.asarray(a).astype(int) - np.asarray(b)) for a, b in pairs]
    return brightened(found)


def brightened(found: Mapping[int, Sequence[Any]]) -> tuple[dict[int, list[Any]], int]:
    """Differences (arrays of 0..255, by any key) brightened by the largest of GAINS that cuts off little."""
    import numpy as np

    if not found:
        return {}, 1
    every = np.concatenate([picture.ravel() for own in found.values() for picture in own])
    gain = next((g for g in GAINS if np.mean(every * g > 255) <= SATURATED), 1)
    bright = {key: [np.minimum(p * gain, 255).astype(np.uint8) for p in own] for key, own in found.items()}
    return bright, gain


def _caption(row: Row, group: tuple) -> str:
    value = row.value(group[3])
    role = {"reference": "converged", "baseline": "baseline", "control": "control"}.get(row.role)
    score = f"{metric_name(group[3]).split(' ')[0]} {interval(value)}" if value else None
    return ", ".join(part for part in (role, score) if part)


def _strip(results: Results, row: Row) -> list[Any]:
    """The samples of a record's picture, a row of squares, enlarged by a whole factor; [] if there is none."""
    path = results.path("quality", row.quality["id"]).with_suffix(".png")
    if not path.exists():
        return []
    from PIL import Image

    with Image.open(path) as picture:
        strip = picture.convert("RGB")
    size = strip.height
    squares = [strip.crop((x, 0, x + size, size)) for x in range(0, strip.width - size + 1, size)]
    side = SAMPLE // size * size or SAMPLE
    method = Image.Resampling.NEAREST if size <= SAMPLE else Image.Resampling.BOX
    return [square.resize((side, side), method) for square in squares]
