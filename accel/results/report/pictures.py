"""The same seeds of every recipe, and |x - converged| of them, as PNG within the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from accel.records import Results
from accel.results.comparison import Comparison, Row, seed_of
from accel.results.samples import brightened, chosen

MOST_HEIGHT = 96  # pixels of a sample that is embedded; larger ones are made smaller


class Strip(NamedTuple):
    """A recipe's first samples side by side and their differences to the converged ones, as data URLs; "" is none."""

    label: str
    role: str
    count: int
    samples: str
    difference: str


class Pictures(NamedTuple):
    """All strips of a study, how bright the differences are, captions of the samples, and what is not shown."""

    strips: Sequence[Strip]
    gain: int
    captions: Sequence[str]
    absent: Sequence[str]  # recipes without a picture
    unpaired: Sequence[str]  # recipes without one of their converged samples
    left_out: int  # recipes beyond those that are shown


def pictures(study: Comparison, results: Results) -> Pictures | None:
    """The strips of the baseline's group, the converged samples first, then by rank; None without any recipe.

    They are the pictures beside the records, which were made of the shards' first samples: where a record has none,
    its label is among the absent ones. Each is compared with its own converged trajectory; where the folder has no
    picture of that, its label is among the unpaired ones.
    """
    if not study.groups:
        return None
    group = study.groups[0]
    rows = [row for row in study.members(group) if row.role != "floor" and seed_of(row.quality) == group[2]]
    kept = chosen(study, rows)
    strips = [(row, samples) for row in kept if (samples := squares(results, row.quality["id"]))]
    count = min((len(samples) for _, samples in strips), default=0)
    found, gain = brightened(_differences(results, [row.quality for row in study.done], strips, count))
    captions = next((c for row, _ in strips if (c := row.quality.get("notes", {}).get("captions"))), [])[:count]
    return Pictures(
        [
            Strip(row.label, row.role, count, data_url(samples[:count]), data_url(found.get(id(row), ())))
            for row, samples in strips
        ],
        gain,
        captions,
        [row.label for row in kept if id(row) not in {id(row) for row, _ in strips}],
        [row.label for row, _ in strips if id(row) not in found and row.role != "reference"],
        len(rows) - len(kept),
    )


def _differences(
    results: Results, known: Sequence[Mapping[str, Any]], strips: Sequence[tuple[Row, list[Any]]], count: int
) -> dict[int, list[Any]]:
    """|x - converged| of each strip whose own converged trajectory has a picture: a record of the study, or else any
    record of the folder, whose samples it is."""
    import numpy as np

    wanted = {own for row, _ in strips if isinstance(own := row.quality.get("converged"), str)}
    exact = _pictured(results, known, wanted)
    if missing := wanted - exact.keys():
        exact |= _pictured(results, results.intact("quality"), missing)
    found = {}
    for row, samples in strips:
        own = row.quality.get("converged")
        other = exact.get(own, ()) if isinstance(own, str) and own != row.quality.get("samples") else ()
        if len(other) < count:
            continue
        pairs = [*zip(samples[:count], other[:count], strict=True)]
        if all((a.size, a.mode) == (b.size, b.mode) for a, b in pairs):
            found[id(row)] = [np.abs(np.asarray(a).astype(int) - np.asarray(b)) for a, b in pairs]
    return found


def _pictured(results: Results, records: Iterable[Mapping[str, Any]], wanted: Set[str]) -> dict[str, list[Any]]:
    """The pictures of those records that are of the wanted samples, by the samples' id."""
    found: dict[str, list[Any]] = {}
    for record in records:
        own = record.get("samples")
        if isinstance(own, str) and own in wanted and own not in found and (there := squares(results, record["id"])):
            found[own] = there
    return found


def squares(results: Results, record: str) -> list[Any]:
    """The samples of a record's picture, a row of squares, at most MOST_HEIGHT high; [] if there is none."""
    path = results.path("quality", record).with_suffix(".png")
    if not path.exists():
        return []
    from PIL import Image

    with Image.open(path) as picture:
        strip = picture.convert("L" if picture.mode == "L" else "RGB")
    if strip.height > MOST_HEIGHT:
        strip = strip.resize((strip.width * MOST_HEIGHT // strip.height, MOST_HEIGHT), Image.Resampling.BOX)
    size = strip.height
    return [strip.crop((x, 0, x + size, size)) for x in range(0, strip.width - size + 1, size)]


def data_url(samples: Sequence[Any]) -> str:
    """Samples (pictures or arrays) of one size side by side as a PNG; "" for none."""
    if not len(samples):
        return ""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.hstack([np.asarray(sample) for sample in samples])).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
