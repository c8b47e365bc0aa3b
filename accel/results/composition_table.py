"""Composition as tables: the section of a study's page, and a page of all studies of a suite, by axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from accel.files import file_name, write_atomic
from accel.records import Results
from accel.results.columns import Column, grid
from accel.results.comparison import APART, HOCHBERG, HOLM, PROMPTED, Comparison, device_of, seed_of
from accel.results.composition import (
    HELP,
    QUARREL,
    Composition,
    compositions,
    macs,
    mark_key,
    marks,
    quality,
    quality_word,
    speed,
    speed_word,
    values_of,
)
from accel.results.text import POINTS, Interval, device_text, interval, metric_name, plus_minus, significant

RULE = (
    "Predicted: what the parts promise, each alone at the same sampler, steps and grid: the product of their MACs and "
    "of their speed-ups over the plain recipe, and of each value the sum of their paired differences to it. "
    "Interaction: measured ÷ predicted of MACs and speed-ups, measured − predicted of values, on common seeds, with "
    f"its 95 % interval. *{HELP.capitalize()}*: better than the parts promise; *{QUARREL}*: worse; else *{APART}*, "
    "which is no evidence that they are independent. Of more than two parts it is the interaction of the whole. Marks "
    f"({HOLM} Holm, {HOCHBERG} Benjamini-Hochberg): the family is this table's interactions of values."
)
HEAD = """# Composition on {suite}

Which accelerating methods work together: every combined recipe of the studies here whose parts were evaluated, too.

{rule}

## Which pairs

{summary}
"""


class Found(NamedTuple):
    """A composition and the study that it is of."""

    study: Comparison
    own: Composition


class Line(NamedTuple):
    """A line of a study's section: of which composition, of what, and the three numbers as text."""

    own: Composition
    of: str
    predicted: str
    measured: str
    interaction: str


LINE_COLUMNS = (
    Column("recipe", lambda line: line.own.row.label),
    Column("parts", lambda line: axes_text(line.own)),
    Column("of", lambda line: line.of),
    Column("predicted", lambda line: line.predicted),
    Column("measured", lambda line: line.measured),
    Column("interaction", lambda line: line.interaction),
)


def composition_section(study: Comparison) -> str | None:
    """What the page of a study says of its compositions: a line for MACs, each device's speed-up and each value of a
    combined recipe; None without any."""
    lines = composition_lines(study)
    return f"{RULE}\n\n{grid(LINE_COLUMNS, lines)}" if lines else None


def composition_lines(study: Comparison) -> list[Line]:
    """The lines of that section, as LINE_COLUMNS has them."""
    found = [Found(study, own) for own in compositions(study)]
    survive = marks(found)
    return [line for each in found for line in _lines(each, survive)]


def _lines(each: Found, survive: Mapping[tuple, str]) -> Iterator[Line]:
    study, own = each
    if x := macs(own):
        yield Line(own, "MACs ÷ plain", significant(x.predicted), significant(x.measured), _macs(own))
    for device in study.devices:
        if x := speed(study, own, device):
            where = f", batch {device[2]}" if study.side_by_side else f", {device_text(device)}"
            shown = (interval(part, unit="×") for part in (x.predicted, x.measured))
            yield Line(own, "speed-up over plain" + where * (len(study.devices) > 1), *shown, _speed(each, device))
    for key in values_of(study, [own]):
        x = quality(study, own, key)
        shown = (_written(part, key) for part in (x.predicted, x.measured))
        yield Line(own, f"Δ{_heading(key)}", *shown, _value(each, key, survive))


def axes_text(own: Composition) -> str:
    """`cache × precision`."""
    return " × ".join(own.axes)


def write_composition(results: Results) -> list[Path]:
    """Write tables/composition_pairs_<suite>.md for each suite of whose combined recipes the parts are there."""
    by_suite: dict[str, dict[tuple, Found]] = {}
    for name in results.studies():
        study = Comparison.load(results, name)
        for own in compositions(study):  # of records that several studies share, the first one's
            by_suite.setdefault(study.suite, {}).setdefault(mark_key(own, ""), Found(study, own))
    paths = []
    for suite, found in sorted(by_suite.items()):
        path = results.root / "tables" / f"composition_pairs_{file_name(suite)}.md"
        write_atomic(path, _page(suite, [*found.values()]).encode())
        paths.append(path)
    return paths


def _page(suite: str, found: Sequence[Found]) -> str:
    groups: dict[tuple[str, ...], list[Found]] = {}
    for each in sorted(found, key=lambda each: (len(each.own.axes), each.own.axes)):
        groups.setdefault(each.own.axes, []).append(each)
    keys = list(dict.fromkeys(key for each in found for key in values_of(each.study, [each.own])))
    text = HEAD.format(suite=suite, rule=RULE, summary=grid(_summary_columns(keys), [*groups.values()]))
    columns = _columns(keys, marks(found))
    for members in groups.values():
        shown = [column for column in columns if any(map(column.text, members))]
        text += f"\n## {axes_text(members[0].own)}\n\n{grid(shown, members)}\n"
    return text


def _summary_columns(keys: Sequence[str]) -> list[Column]:
    """Columns of the groups of one combination of axes: how often it helps, how often it quarrels."""

    def of_value(key: str) -> Column:
        def words(members: Sequence[Found]) -> list[str]:
            return [quality_word(x, key) for each in members if (x := quality(*each, key))]

        return Column(metric_name(key), lambda members: _counted(words(members)))

    def of_speed(members: Sequence[Found]) -> str | None:
        return _counted([w for each in members if (d := _device(each)) and (w := speed_word(*each, d))])

    def of_macs(members: Sequence[Found]) -> str | None:
        ratios = sorted(x.beyond for each in members if (x := macs(each.own)))
        return " to ".join(dict.fromkeys(map(significant, (ratios[0], ratios[-1])))) if ratios else None

    return [
        Column("parts", lambda members: axes_text(members[0].own)),
        Column("recipes", lambda members: str(len(members))),
        Column("MACs, measured ÷ predicted", of_macs),
        Column("speed-up", of_speed),
        *map(of_value, keys),
    ]


def _columns(keys: Sequence[str], survive: Mapping[tuple, str]) -> list[Column]:
    return [
        Column("recipe", lambda each: each.own.row.label),
        Column("study", lambda each: each.study.name),
        Column("N", lambda each: str(each.own.row.quality["n"])),
        Column("seed", lambda each: str(seed_of(each.own.row.quality))),
        Column("MACs, measured ÷ predicted", lambda each: _macs(each.own)),
        Column("speed-up, measured ÷ predicted", lambda each: _speed(each, _device(each))),
        Column("timed on", lambda each: device_text(d) if (d := _device(each)) and speed(*each, d) else None),
        *(Column(f"Δ{_heading(key)}", lambda each, k=key: _value(each, k, survive)) for key in keys),
    ]


def _device(each: Found) -> tuple | None:
    """Where the combined row was timed, at its study's own batch."""
    return device_of(each.own.row.timing) if each.own.row.timing else None


def _counted(words: Sequence[str]) -> str | None:
    counts = Counter(words)
    return ", ".join(f"{counts[word]} {word}" for word in (HELP, QUARREL, APART) if counts[word]) or None


def _macs(own: Composition) -> str | None:
    return (found := macs(own)) and significant(found.beyond)


def _speed(each: Found, device: tuple | None) -> str | None:
    if device is None or (found := speed(*each, device)) is None:
        return None
    return f"{interval(found.beyond)} {speed_word(*each, device)}"


def _value(each: Found, key: str, survive: Mapping[tuple, str]) -> str | None:
    if (found := quality(*each, key)) is None:
        return None
    return f"{_written(found.beyond, key)} {quality_word(found, key)}{survive.get(mark_key(each.own, key), '')}"


def _scale(key: str) -> int:
    return 100 if key in POINTS else 1


def _heading(key: str) -> str:
    return metric_name(key) + " %" * (key in POINTS)


def _written(x: Interval, key: str) -> str:
    """As tables write a value's differences: in points what is shown in per cent."""
    even = key in POINTS or key in PROMPTED or key == "distance"
    return plus_minus(x, _scale(key), sign=True) if even else interval(x, sign=True)
