"""Tables of a study, rebuilt from its records: CSV with everything, Markdown to read, a short form for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from accel.files import write_atomic
from accel.records import Results
from accel.results.comparison import COMPETES, PROMPTED, UNKNOWN, Row, Study, device_of, metric_of, speed_tie, verdict
from accel.results.text import (
    Interval,
    device_text,
    interval,
    listed,
    macs_unit,
    metric_name,
    parts,
    plus_minus,
    point,
    significant,
)

if TYPE_CHECKING:
    import pandas
    from rich.console import Console

AXES = ("sampler", "steps", "grid", "guidance", "cache", "stitch", "precision", "skip")
ABSENT = "–"
HASH_DIGITS = 12
NARROW = 96  # columns of a terminal below which the table leaves out what the others imply


def study_frame(results: Results, study: str) -> pandas.DataFrame:
    """Everything that the study's records say, one row a manifest row, in the manifest's order."""
    import pandas

    loaded = Study.load(results, study)
    values = sorted({key for row in loaded.done for key in row.quality["values"]})
    frame = pandas.DataFrame([_flat(loaded, row, values) for row in loaded.rows])
    counts = (
        "rank",
        "steps",
        "n",
        "seed",
        "reference_n",
        "model_bytes",
        "peak_bytes",
        "repetitions",
        "threads",
        "batch",
    )
    return frame.astype({name: "Int64" for name in counts if name in frame})


def _flat(study: Study, row: Row, values: Sequence[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {"role": row.role, "label": row.label, "of": row.of, "refused": row.refused}
    if row.refused:
        return flat
    record, timing, metric = row.quality, row.timing or {}, metric_of(row.quality)
    reference, place = record.get("reference") or {}, study.ranks.get(record["id"]) if row.role in COMPETES else None
    flat |= {"rank": place and place.place, "shared": place and place.shared}
    flat |= {"quality_id": record["id"], "timing_id": timing.get("id")}
    flat |= {axis: (record.get("axes") or {}).get(axis) for axis in AXES}
    flat |= {key: record[key] for key in ("suite", "n", "seed")}
    flat |= {"simulated": row.simulated, "metric": metric, "reference": reference.get("name")}
    flat |= {"reference_n": reference.get("n"), "reference_sha256": _short(reference.get("sha256"))}
    for key in values:
        x = row.value(key)
        flat |= _spread(key, x) | {f"{key}_corrected": x.corrected if x else None}
    for name, key in (("delta", metric), ("delta_distance", "distance")):
        x = study.delta(row, study.baseline, key)
        flat |= _spread(name, x) | {f"{name}_tie": x.tie if x else None}
    flat |= {key: row.cost(key) for key in ("nfe", "macs", "bit_operations", "model_bytes", "peak_bytes", "setup_s")}
    flat |= {"macs_ratio": study.macs_ratio(row), "strip": record.get("strip")}
    for name, key in (("ms", "ms_per_image"), ("baseline_ms", "baseline_ms"), ("speedup", "speedup"), ("aa", "aa")):
        flat |= _spread(name, timing.get(key))
    flat |= {key: timing.get(key) for key in ("repetitions", "device_name", "threads", "batch")}
    return flat | {"torch": _torch(timing) or _torch(record)}


def _spread(name: str, x: Interval | None) -> dict[str, float | None]:
    value, lo, hi = parts(x) if x else (None, None, None)
    return {name: value, f"{name}_lo": lo, f"{name}_hi": hi}


def _torch(record: Mapping[str, Any]) -> str | None:
    environment = record.get("environment") or {}
    return environment.get("torch") or environment.get("packages", {}).get("torch")


def _short(sha256: str | None) -> str | None:
    return sha256 and sha256[:HASH_DIGITS]


class Column(NamedTuple):
    """A heading and the text of a row; on a terminal `brief`, and `short` if the text is too long (None: not shown)."""

    name: str
    text: Callable[[Any], str | None]
    brief: str | None = None
    short: Callable[[Any], str | None] | None = None


def write_tables(results: Results, study: str) -> list[Path]:
    """Write tables/<study>.csv and tables/<study>.md; the same records give the same bytes."""
    csv, page = (results.root / "tables" / f"{study}.{end}" for end in ("csv", "md"))
    write_atomic(csv, study_frame(results, study).to_csv(index=False, lineterminator="\n").encode())
    write_atomic(page, markdown(Study.load(results, study)).encode())
    return [csv, page]


def markdown(study: Study) -> str:
    """The study as a page: how it was made, ranking, equal-cost controls, refused cells, notes."""
    page, several = [f"# {study.title}", _made(study)], len(study.devices) > 1
    for group in study.groups:
        if len(study.groups) > 1:
            _, n, seed, metric, sha256, own = group
            of = f" of {own} samples" if own not in (n, None) else ""
            page.append(f"## {metric_name(metric)}{of}, N = {n}, seed {seed}, reference {_short(sha256) or 'none'}")
        page.append(_grid(_columns(study, group), study.members(group)))
    for device in study.devices if several else ():
        columns = [_recipe(), *_speed(study, device)]
        page += [f"## Speed on {device_text(device)}", _grid(columns, _timed(study, device))]
    if study.controls():
        prompted = any(row.value(key) for row in study.done for key in PROMPTED)
        said = CONTROLS + " Of adherence and CLIP score positive is better." * prompted
        page += ["## Equal-cost controls", said, _grid(_control_columns(study), study.controls())]
    if refused := [row for row in study.rows if row.refused]:
        columns = [Column("recipe", lambda row: row.label), Column("reason", lambda row: row.refused)]
        page += ["## Refused or failed cells", _grid(columns, refused)]
    return "\n\n".join([*page, "## Notes", "\n".join(f"* {note}" for note in _notes(study))]) + "\n"


CONTROLS = (
    "Each accelerated recipe against the plain sampler given the same cost. Δ = recipe − control, paired on common "
    "seeds: negative is better, and it is a tie when its interval contains 0."
)


def _columns(study: Study, group: tuple) -> list[Column]:
    """The main table, without the columns that no row fills."""
    rows, metric = study.members(group), group[3]
    scale, unit = macs_unit(study)
    name = metric_name(metric)

    def value(key: str | None, text: Callable) -> Callable:
        return lambda row: text(x) if (x := row.value(key)) else None

    def cost(key: str, scale: float = 1) -> Callable:
        return lambda row: significant(row.cost(key) / scale) if row.cost(key) else None

    def place(row: Row) -> str | None:
        return str(study.ranks.get(row.quality["id"], "")) if row.role in COMPETES else None

    columns = [
        Column("rank", place, "rank"),
        _recipe(group),
        Column(f"{name} [95 %]", value(metric, interval), name, value(metric, plus_minus)),
        _change(study, metric),
        Column("accuracy %", value("accuracy", lambda x: plus_minus(x, 100))),
        *(
            column
            for key, (name, factor) in PROMPTED.items()
            for column in (
                Column(name, value(key, lambda x, s=factor: plus_minus(x, s))),
                _prompted_change(name, lambda row, k=key: (row, study.baseline, k), study, factor),
            )
        ),
        Column("exact %", value("exact", lambda x: plus_minus(x, 100))),
        Column("Inception score", value("inception_score", interval)),
        Column("distance to converged", value("distance" if metric != "distance" else None, plus_minus)),
        Column("nearest training image", value("nearest", plus_minus)),
        Column("NFE", lambda row: None if row.cost("nfe") is None else f"{row.cost('nfe'):.4g}", "NFE"),
        Column(f"MACs/image ({unit})", cost("macs", scale)),
        Column("MACs ÷ baseline", lambda row: _ratio(study.macs_ratio(row)), "MACs ÷"),
        *(_speed(study, study.devices[0]) if len(study.devices) == 1 else ()),
        Column("bit operations ÷ float", _bits),
        Column("weights MB", cost("model_bytes", 1e6)),
        Column("peak MB", cost("peak_bytes", 1e6)),
        Column("set-up s", lambda row: significant(row.cost("setup_s"), 2) if row.cost("setup_s") else None),
    ]
    return [column for column in columns if any(column.text(row) for row in rows)]


def _bits(row: Row) -> str | None:
    # In floating point each multiply-accumulate is 32 x 32 of them.
    bits = row.cost("bit_operations")
    return _ratio(bits / (row.cost("macs") * 32**2)) if bits else None


def _recipe(group: tuple | None = None) -> Column:
    def text(row: Row, marked: bool = True) -> str:
        if row.role == "cell":
            return row.label
        mark = {"baseline": "**", "control": ""}.get(row.role, "*") if marked else ""
        notes = [row.role]
        if group and row.quality["n"] != group[1]:
            notes.append(f"N = {row.quality['n']}")
        if group and row.quality["seed"] != group[2] and row.role != "floor":
            notes.append(f"seed {row.quality['seed']}")
        return f"{mark}{row.label}{mark} ({', '.join(notes)})"

    return Column("recipe", text, "recipe", lambda row: text(row, False))


def _speed(study: Study, device: tuple) -> list[Column]:
    def ms(row: Row) -> str | None:
        timing = study.timing(row, device)
        return "simulated" if row.simulated else timing and point(timing["ms_per_image"])

    def speedup(row: Row, write: Callable = interval) -> str | None:
        timing = study.timing(row, device)
        if timing is None or row is study.baseline:
            return timing and "1"
        return write(timing["speedup"], unit="×") + " tie" * speed_tie(timing)

    name = "speed-up"
    return [Column("ms/image", ms, "ms"), Column(f"{name} [95 %]", speedup, name, lambda row: speedup(row, point))]


def _timed(study: Study, device: tuple) -> list[Row]:
    timed = {id(row): x["ms_per_image"]["value"] for row in study.competing if (x := study.timing(row, device))}
    return sorted((row for row in study.competing if id(row) in timed), key=lambda row: timed[id(row)])


def _control_columns(study: Study) -> list[Column]:
    pairs = study.controls()
    scale, unit = macs_unit(study)

    def macs(pair: tuple[Row, Row]) -> str | None:
        costs = [row.cost("macs") for row in pair]
        return None if None in costs else " vs ".join(significant(x / scale) for x in costs)

    columns = [
        Column("recipe", lambda pair: pair[0].label, "recipe"),
        Column("control", lambda pair: pair[1].label, "control"),
        Column(f"MACs/image ({unit})", macs),
    ]
    for key in dict.fromkeys([study.groups[0][3], "distance"]):
        name = metric_name(key)

        def judge(pair: tuple[Row, Row], key: str = key) -> str | None:
            return verdict(study.delta(*pair, key)) if any(row.value(key) for row in pair) else None

        columns += [
            Column(name, lambda pair, key=key: interval(x) if (x := pair[0].value(key)) else None),
            Column(f"{name}, control", lambda pair, key=key: interval(x) if (x := pair[1].value(key)) else None),
            Column(f"Δ{name}", lambda pair, key=key: interval(x, True) if (x := study.delta(*pair, key)) else None),
            Column(f"{name} verdict", judge, name),
        ]
    columns += [
        _prompted_change(name, lambda pair, k=key: (*pair, k), study, factor)
        for key, (name, factor) in PROMPTED.items()
    ]
    return [column for column in columns if any(column.text(pair) for pair in pairs)]


def _change(study: Study, metric: str | None) -> Column:
    def text(row: Row, write: Callable = interval) -> str | None:
        if row is study.baseline:
            return "baseline"
        delta = study.delta(row, study.baseline, metric)
        return delta and ("tie" if delta.tie else write(delta, sign=True))

    return Column(f"Δ{metric_name(metric)} vs baseline", text, "Δ", lambda row: text(row, point))


def _prompted_change(name: str, of: Callable[[Any], tuple], study: Study, scale: float) -> Column:
    def text(item: Any) -> str | None:
        row, other, key = of(item)
        delta = None if row is other else study.delta(row, other, key)
        return delta and f"{plus_minus(delta, scale, sign=True)} {verdict(delta, key)}"

    return Column(f"Δ{name}", text)


def _ratio(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.2f}" if 0.1 <= ratio < 10 else significant(ratio)


def _grid(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    left = ("recipe", "control", "reason")
    lines = [[c.name for c in columns], [":---" if c.name in left else "---:" for c in columns]]
    lines += [[(c.text(row) or ABSENT).replace("|", "\\|").replace("\n", " ") for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _made(study: Study) -> str:
    records = [row.quality for row in study.competing]
    made = [f"Suite {study.suite}"]
    if records:
        made[0] += f", N = {listed(r['n'] for r in records)}, seed {listed(r['seed'] for r in records)}"
    references = [r["reference"] for r in records if (r.get("reference") or {}).get("sha256")]
    if references:
        made.append(
            "reference " + listed(f"{r['name']}, N = {r['n']}, sha256 {_short(r['sha256'])}" for r in references)
        )
    made.append(f"timed on {listed(map(device_text, study.devices))}" if study.devices else "not timed")
    made += [f"instructions {listed(found)}"] if (found := _instructions(study)) else []
    torches = sorted({t for row in study.done for t in (_torch(row.quality), _torch(row.timing or {})) if t})
    made += [f"torch {listed(torches)}"] if torches else []
    counts = sorted({len(x["replicates"]) for r in records for x in r["values"].values()}) or [20]
    return "; ".join([*made, f"95 % intervals: {listed(counts)}-group delete-group jackknife"]) + "."


def _instructions(study: Study) -> list[str]:
    return sorted({", ".join(isa) for row in study.done if (isa := (row.timing or {}).get("isa"))})


def _notes(study: Study) -> list[str]:
    notes = [
        "Rank: a recipe shares the rank (`=`) of the best one that it cannot be told from: the 95 % interval of their "
        "paired difference on common seeds contains 0."
    ]
    if len(study.groups) > 1:
        notes.append(
            "Rows that differ in suite, N, seed, metric or reference are never ranked together: see the sections."
        )
    if any(group[3] and group[3].startswith("fid") for group in study.groups):
        names = listed(f"`{group[3]}`" for group in study.groups)
        notes.append(
            f"{names}: Fréchet distance in the feature space of that name; do not compare it with another FID."
        )
    counts = sorted({x.n for row in study.done if (x := row.value("distance"))})
    if counts:
        notes.append(
            "Distance: from the converged trajectory of the same seed (the exact solution where a suite has one), mean "
            f"over the first {listed(counts)} samples."
        )
    what = {"reference": "the converged sampler", "floor": "scored against the reference like samples"}
    for row in study.done:
        if row.role in what:
            notes.append(f"{row.role.capitalize()} row: {row.label}, N = {row.quality['n']}, {what[row.role]}.")
    if study.baseline:
        notes.append(f"Baseline of Δ, MACs ÷ and speed-up: {study.baseline.label}.")
    notes += _timing_notes(study)
    if simulated := [row.label for row in study.done if row.simulated]:
        notes.append(
            f"Simulated precision (rounded as in the real kernel, but not faster) is never timed: {_comma(simulated)}."
        )
    served = {cell.label for cell, _ in study.controls()}
    if lonely := [row.label for row in study.done if row.accelerated and row.label not in served]:
        notes.append(f"Without an equal-cost control: {_comma(lonely)}.")
    return notes


def _timing_notes(study: Study) -> list[str]:
    notes, several = [], len(study.devices) > 1
    if several:
        notes.append("Timed under several conditions: each has its own section, and speeds do not compare across them.")
    for device in study.devices:
        where = f" on {device_text(device)}" if several else ""
        timed = [row.timing for row in study.done if row.timing and device_of(row.timing) == device]
        floors = [timing["aa"] for timing in timed if timing.get("aa")]
        if floors:
            floor = max(floors, key=lambda x: (x["hi"] - x["lo"], x["value"]))
            of = f", the widest of {len(floors)}" if len(floors) > 1 else ""
            notes.append(
                f"A/A floor of the timing{where} (the baseline against itself{of}): {interval(floor, unit='×')}; "
                "a speed-up that its own floor reaches is a tie."
            )
        counts = sorted({timing["repetitions"] for timing in timed if timing.get("repetitions")})
        if counts:
            notes.append(f"Times{where}: median of {listed(counts)} repetitions interleaved with the baseline.")
    base = study.baseline.quality["id"] if study.baseline else None
    if other := [row.label for row in study.done if base and row.timing and row.timing["baseline"] != base]:
        notes.append(f"Speed-up is against another baseline for: {_comma(other)}.")
    return notes


def _comma(values: Iterable[str]) -> str:
    return ", ".join(values)


def print_study(results: Results, study: str, console: Console | None = None) -> None:
    """The study for a terminal of 100 columns; the Markdown table has the rest."""
    from rich.console import Console
    from rich.markup import escape

    console, loaded = console or Console(), Study.load(results, study)
    narrow = ("ms", "NFE") if console.width < NARROW else ()
    for group in loaded.groups:
        devices = f"; {device_text(loaded.devices[0])}" if len(loaded.devices) == 1 else ""
        title = f"{escape(loaded.title)}\n[not bold dim]N = {group[1]}, seed {group[2]}{devices}[/]"
        columns = [column for column in _columns(loaded, group) if column.brief not in narrow]
        console.print(_terminal(title, columns, loaded.members(group)))
    for device in loaded.devices if len(loaded.devices) > 1 else ():
        columns = [_recipe(), *_speed(loaded, device)]
        console.print(_terminal(f"Speed on {device_text(device)}", columns, _timed(loaded, device)))
    if loaded.controls():
        console.print(_terminal("Equal-cost controls", _control_columns(loaded), loaded.controls()))
    for row in loaded.rows:
        if row.refused:
            console.print(f"[yellow]not run[/] {escape(f'{row.label}: {row.refused}')}", highlight=False)


def _terminal(title: str, columns: Sequence[Column], rows: Sequence[Any]) -> Any:
    """A rich table of the columns that have a brief heading."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [column for column in columns if column.brief]
    for column in shown:
        left = column.brief in ("recipe", "control")
        table.add_column(column.brief, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        cells = []
        for column in shown:
            text = (column.short or column.text)(row) or ""
            cells.append(Text(text, style=_style(column, text)))
        table.add_row(*cells, style="dim" if isinstance(row, Row) and row.role not in COMPETES else "")
    return table


def _style(column: Column, text: str) -> str:
    if text.endswith(("tie", "baseline", "simulated")) or text == UNKNOWN:
        return "dim"
    if text in ("better", "worse") or column.brief == "Δ":
        return "green" if text == "better" or text.startswith("-") else "red"
    return ""
