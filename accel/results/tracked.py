"""What the wandb runs of cells, studies and searches show: names, flat keys, numbers, artifacts.

Ids say what a run is of, never what it shows: a cell by its study, suite, recipe and seeds; a study by its name and
suite; a search by all that its result depends on. So a larger N, new times or further rows update a run, and what a
run shows has a digest of its own, by which nothing is logged twice.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accel.errors import joined
from accel.files import file_name, write_atomic
from accel.metrics.verdicts import Margins
from accel.records import Results, canonical, digest
from accel.results.columns import all_values
from accel.results.comparison import COMPETES, Comparison, Row, metric_of, seed_of
from accel.results.figures import FIGURES, figure_path
from accel.results.frame import AXES, LATER_AXES, column_of, spread, study_frame, torch_of
from accel.results.markdown import head_text, markdown

MOST_OF_A_TAG = 64  # characters that wandb allows
Fill = Callable[[Any, Any], None]  # logs to a run: (wandb, run)


class Shown(NamedTuple):
    """A run to be: the arguments of `wandb.init`, what logs to it, and a digest of all that it then shows."""

    arguments: dict[str, Any]
    fill: Fill
    content: str

    @property
    def id(self) -> str:
        return self.arguments["id"]


def scalars(quality: Mapping[str, Any], timing: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Flat numbers of a record: the FID that it is ranked by as fid, fid_lo, fid_hi; the others as in the table.

    ConfigError if two of them have one name.
    """
    metric = metric_of(quality)
    values = [("fid" if k == metric and k.startswith("fid") else column_of(k), x) for k, x in quality["values"].items()]
    if timing and not quality.get("simulated"):
        values += [("ms", timing["ms_per_image"]), ("speedup", timing["speedup"])]
    costs = {k: v for k, v in (quality.get("cost") or {}).items() if v is not None}
    return joined(f"the scalars of {quality['label']}", *(spread(name, x) for name, x in values), costs)


def record_run(
    results: Results, study_name: str, quality: Mapping[str, Any], timing: Mapping[str, Any] | None
) -> Shown:
    """The run of one recipe in a study, with its role there and its differences to the baseline."""
    axes, environment = quality.get("axes") or {}, quality.get("environment") or {}
    row, study = _place(results, study_name, quality, timing)
    compared, words = _compared(study, row) if study else ({}, {})
    keys = ("id", "suite", "n", "simulated", "reference", "recipe", "environment", "strip")
    config = {"study": study_name, "metric": metric_of(quality), "axes": axes} | {k: quality.get(k) for k in keys}
    config |= {"label": quality["label"], "role": row.role if row else None, "of": row.of if row else None}
    config |= {"seed": seed_of(quality), "accel": environment.get("accel"), "commit": environment.get("commit")}
    config |= {axis: axes.get(axis) for axis in AXES} | {axis: axes.get(axis, "none") for axis in LATER_AXES}
    config |= {"torch": torch_of(timing or quality)}
    if timing:
        own = {k: timing.get(k) for k in ("id", "device_name", "threads", "batch", "repetitions")}
        config |= {"timing": own} | {k: own[k] for k in ("device_name", "threads", "batch")}
    picture = results.path("quality", quality["id"]).with_suffix(".png")
    flat = joined(f"the scalars of {quality['label']}", scalars(quality, timing), compared)

    def fill(wandb: Any, run: Any) -> None:
        images = {"samples": wandb.Image(str(picture))} if picture.exists() else {}
        run.log(joined(f"the run of {quality['label']}", flat, images))
        run.summary.update(words)

    arguments = {
        "id": _cell_id(study_name, quality),
        "group": study_name,
        "job_type": "timing" if timing else "quality",
        "name": f"{quality['label']} · seed {seed_of(quality)}",
        "tags": [f"{a}:{axes[a]}"[:MOST_OF_A_TAG] for a in AXES if axes.get(a, "none") != "none"],
        "config": config | {"command": _typed()},
    }
    return Shown(arguments, fill, digest([config, flat, words, timing and timing["id"]]))


def _cell_id(study_name: str, quality: Mapping[str, Any]) -> str:
    recipe = {"recipe": quality.get("recipe"), "axes": quality.get("axes"), "label": quality["label"]}
    pooled = len(quality.get("seeds") or ()) > 1  # a further pooled seed adds samples, as a larger N does
    return digest(["cell", study_name, quality["suite"], recipe, quality["seed"], pooled])


def _place(
    results: Results, study_name: str, quality: Mapping[str, Any], timing: Mapping[str, Any] | None
) -> tuple[Row | None, Comparison | None]:
    """The row of a record in the study's manifest, and a comparison of it with the study's baseline alone: what that
    says of the two does not depend on further rows. (None, None) where the study does not name the record."""
    manifest = results.load_study(study_name) or {"rows": ()}
    order = [role for role in COMPETES if role != "control"]
    own = [line for line in manifest["rows"] if line["quality"] == quality["id"]]
    own.sort(key=lambda line: order.index(line["role"]) if line["role"] in order else len(order))
    if not own:
        return None, None
    line = own[0]
    row = Row(line["role"], line["label"], line.get("of"), None, dict(quality), dict(timing) if timing else None)
    first = next((other for other in manifest["rows"] if other["role"] == "baseline" and other["quality"]), None)
    base = results.load("quality", first["quality"]) if first and first["quality"] != quality["id"] else None
    rows = (Row("baseline", first["label"], None, None, base, None), row) if base else (row,)
    margins = Margins.from_dict(manifest.get("margins"))
    return row, Comparison(study_name, study_name, manifest["suite"], rows, margins)


def _compared(study: Comparison, row: Row) -> tuple[dict[str, float | None], dict[str, str]]:
    """The differences of a row to the baseline, the ratio of MACs, and what the former say, flat."""
    base, metric = study.baseline, metric_of(row.quality)
    ratio = study.macs_ratio(row)
    flat: dict[str, float | None] = {} if ratio is None else {"macs_ratio": ratio}
    words: dict[str, str] = {}
    for key in dict.fromkeys([metric, *study.compared]) if base else ():
        if row is not base and (delta := study.delta(row, base, key)) is not None:
            end = "" if key == metric else f"_{column_of(key)}"
            flat |= spread(f"delta{end}", delta)
            words[f"verdict{end}"] = study.verdict(row, base, key)
    if base and row is not base and (said := all_values(study, row)):
        words["all_values"] = said
    return flat, words


def study_run(results: Results, study: Comparison) -> Shown:
    """The run of a study: its table, its figures, and both as artifacts that came of weights and reference."""
    frame = study_frame(results, study.name)
    shown = frame.drop(columns="strip", errors="ignore")
    rows = shown.astype(object).where(shown.notna(), None).values.tolist()
    figures = {name: figure_path(results, study.name, name) for name in FIGURES}
    records = [row.quality for row in study.done]
    sources = {
        "weights": _distinct(record.get("weights") for record in records),
        "reference": _distinct(record.get("reference") for record in records),
    }
    about = {"suite": study.suite, "n": sorted({r["n"] for r in records}), "seeds": _distinct(map(seed_of, records))}
    config = {"study": study.name, "title": study.title, "margins": study.margins.to_dict()} | about | sources
    config |= {"accel": _distinct((r.get("environment") or {}).get("accel") for r in records)}
    csv = frame.to_csv(index=False, lineterminator="\n").encode()

    def fill(wandb: Any, run: Any) -> None:
        table = wandb.Table(columns=list(shown.columns), data=rows, allow_mixed_types=True)
        there = {name: path for name, path in figures.items() if path.exists()}
        run.log({"table": table} | {name: wandb.Image(str(path)) for name, path in there.items()})
        run.summary.update({"rows": len(study.rows), "refused": len(study.rows) - len(study.done)})
        for kind, found in sources.items():
            if found:
                files = {f"{kind}.json": (canonical(found) + "\n").encode()}
                used(run, artifact(wandb, run, f"{study.suite}-{kind}", kind, files, {"sha256": digest(found, 64)}))
        files = {"table.csv": csv, "table.md": markdown(study).encode()}
        run.log_artifact(artifact(wandb, run, f"{study.name}-table", "table", files, about | sources))
        if there:
            files = {path.name: path.read_bytes() for path in there.values()}
            run.log_artifact(artifact(wandb, run, f"{study.name}-figures", "figures", files, about))

    arguments = {
        "id": digest(["study", study.name, study.suite]),
        "group": study.name,
        "job_type": "study",
        "name": study.name,
        "notes": head_text(study),
        "config": config | {"command": _typed()},
    }
    pictures = [path.read_bytes().hex() if path.exists() else None for path in figures.values()]
    return Shown(arguments, fill, digest([config, csv.decode(), digest(pictures)]))


def search_run(study_name: str, key: str, label: str, settings: Mapping[str, Any]) -> Shown:
    """The run of a search, which logs trial by trial: its history is filled while it runs."""
    arguments = {
        "id": digest(["search", study_name, key]),
        "group": study_name,
        "job_type": "search",
        "name": label,
        "config": {"study": study_name, "search": key, **settings, "command": _typed()},
    }
    return Shown(arguments, lambda wandb, run: None, "")


def artifact(
    wandb: Any, run: Any, name: str, kind: str, files: Mapping[str, bytes], metadata: Mapping[str, Any]
) -> Any:
    """An artifact of these files, which lie in the run's own folder until they are uploaded; wandb makes a new version
    of it where they differ from those before."""
    made = wandb.Artifact(file_name(name), type=kind, metadata=dict(metadata))
    folder = Path(run.dir).parent / "artifacts" / file_name(name)
    for file, data in files.items():
        write_atomic(folder / file, data)
        made.add_file(str(folder / file), name=file, policy="immutable", skip_cache=True)
    return made


def used(run: Any, made: Any) -> None:
    """Note an artifact as what the run came of. Offline `run.use_artifact` refuses, though the log of a run can say so,
    and the upload then does it; where wandb has no such way, the digests stay in the configuration alone."""
    if (log := getattr(run, "_log_artifact", None)) is not None:
        log(made, is_user_created=True, use_after_commit=True)


def _distinct(values: Any) -> list[Any]:
    """Each value but None once, in order."""
    found: dict[str, Any] = {}
    for value in values:
        if value is not None:
            found.setdefault(canonical(value), value)
    return list(found.values())


def _typed() -> str | None:
    """The command line of this process, if it is accel's."""
    program: Sequence[str] = sys.argv
    own = Path(program[0]) if program else Path()
    if own.name == "accel" or (own.name == "__main__.py" and own.parent.name == "accel"):
        return shlex.join(["accel", *program[1:]])
    return None
