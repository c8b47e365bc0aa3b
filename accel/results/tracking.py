"""wandb runs of records and studies, for browsing: offline unless asked, and never in the way of a benchmark.

Records are the truth and wandb is a view of them. Every run is made from records, under an id that is a hash of what
it shows, so that it can be made again and is not made twice. A problem with wandb is one warning line. Files go to
<results>/wandb; `upload_command` says how to send them.
"""

from __future__ import annotations

import inspect
import logging
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from accel.errors import joined, unknown
from accel.records import Results, digest
from accel.results.comparison import Comparison, metric_of
from accel.results.figures import FIGURES, figure_path
from accel.results.frame import AXES, column_of, spread, study_frame

PROJECT = "accel"
MODES = ("offline", "online", "disabled")
INIT_SECONDS = 20  # the longest that an unreachable server may hold up one online run
MOST_OF_A_TAG = 64  # characters that wandb allows
logger = logging.getLogger(__name__)


def log_record(
    results: Results,
    study_name: str,
    quality: Mapping[str, Any],
    timing: Mapping[str, Any] | None = None,
    mode: str = "offline",
) -> Path | None:
    """Make the wandb run of one recipe in a study; its folder, or None where there is none.

    Project `accel`, group = study, job type `quality` or `timing`, name = label, tags = the axes in use; config =
    recipe, axes, environment; scalars fid, fid_lo, fid_hi, ..., ms, speedup, nfe, macs; a picture of the first samples.
    """
    with _harmless(quality.get("label"), mode) as allowed:
        return _log(results, mode, *_record_run(results, study_name, quality, timing)) if allowed else None


def log_study(results: Results, study_name: str, mode: str = "offline", records: bool = False) -> Path | None:
    """Make the wandb run of a study: its table and figures; with `records`, first the run of each of its records."""
    with _harmless(study_name, mode) as allowed:
        if not allowed:
            return None
        study = Comparison.load(results, study_name)
        for row in study.done if records else ():
            log_record(results, study_name, row.quality, row.timing, mode)
        return _log(results, mode, *_study_run(results, study))


def upload_command(root: Path) -> str:
    """The command line that uploads the offline runs below a results folder (those already uploaded are skipped).

    Runs one by one, as every version of wandb takes them; the folder above them only the latest ones do.
    """
    return f"wandb sync {shlex.quote(str(root / 'wandb'))}/offline-run-*"


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


Fill = Callable[[Any, Any], None]  # logs to a run: (wandb, run)


def _record_run(
    results: Results, study_name: str, quality: Mapping[str, Any], timing: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Fill]:
    axes = quality.get("axes") or {}
    keys = ("id", "suite", "n", "seed", "simulated", "reference", "recipe", "environment", "strip")
    config = {"study": study_name, "metric": metric_of(quality), "axes": axes} | {k: quality.get(k) for k in keys}
    if timing:
        config["timing"] = {k: timing.get(k) for k in ("id", "device_name", "threads", "batch", "repetitions")}
    picture = results.path("quality", quality["id"]).with_suffix(".png")

    def fill(wandb: Any, run: Any) -> None:
        images = {"samples": wandb.Image(str(picture))} if picture.exists() else {}
        run.log(joined(f"the run of {quality['label']}", flat, images))

    flat = scalars(quality, timing)
    arguments = {
        "id": digest([study_name, quality["id"], timing and timing["id"], flat]),
        "group": study_name,
        "job_type": "timing" if timing else "quality",
        "name": quality["label"],
        "tags": [f"{a}:{axes[a]}"[:MOST_OF_A_TAG] for a in AXES if axes.get(a, "none") != "none"],
        "config": config,
    }
    return arguments, fill


def _study_run(results: Results, study: Comparison) -> tuple[dict[str, Any], Fill]:
    frame = study_frame(results, study.name).drop(columns="strip", errors="ignore")
    rows = frame.astype(object).where(frame.notna(), None).values.tolist()
    figures = {name: figure_path(results, study.name, name) for name in FIGURES}

    def fill(wandb: Any, run: Any) -> None:
        table = wandb.Table(columns=list(frame.columns), data=rows, allow_mixed_types=True)
        images = {name: wandb.Image(str(path)) for name, path in figures.items() if path.exists()}
        run.log({"table": table} | images)

    arguments = {
        "id": digest([study.name, study.title, frame.to_csv(index=False)]),
        "group": study.name,
        "job_type": "study",
        "name": study.name,
        "config": {"study": study.name, "title": study.title, "suite": study.suite, "margins": study.margins.to_dict()},
    }
    return arguments, fill


@contextmanager
def _harmless(name: Any, mode: str) -> Iterator[bool]:
    """Turns whatever goes wrong inside into one warning; yields whether there is anything to do."""
    if mode not in MODES:
        logger.warning("wandb did not log %s: %s", name, unknown("tracking mode", mode, MODES))
    try:
        yield mode in MODES and mode != "disabled"
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        logger.warning("wandb did not log %s (%s: %s); the records are complete", name, type(error).__name__, reason)


def _log(results: Results, mode: str, arguments: dict[str, Any], fill: Fill) -> Path:
    """Open a run, let `fill` log to it, finish it. A run of this id that is there already stays as it is."""
    import wandb

    mode = "online" if mode == "online" and _online(results.root) else "offline"
    pattern = f"{'offline-' * (mode == 'offline')}run-*-{arguments['id']}"
    if existing := sorted((results.root / "wandb").glob(pattern)):
        return existing[-1]
    results.root.mkdir(parents=True, exist_ok=True)
    where = {"project": PROJECT, "dir": str(results.root), "mode": mode, "reinit": "finish_previous"}
    run = wandb.init(**where, **arguments, settings=_settings())
    folder = Path(run.dir).parent
    try:
        fill(wandb, run)
    except BaseException:
        with suppress(Exception):
            run.finish(exit_code=1)
        shutil.rmtree(folder, ignore_errors=True)  # or it would count as logged
        raise
    run.finish()
    return folder


def _settings() -> Any:
    """Quiet, and no capture of console, code, git, host or system load: the record says what matters."""
    import wandb

    quiet = {"silent": True, "quiet": True, "console": "off", "init_timeout": INIT_SECONDS}
    off = ("disable_code", "disable_git", "disable_job_creation", "x_disable_stats", "x_disable_meta")
    wanted = quiet | dict.fromkeys((*off, "x_disable_machine_info"), True)
    return wandb.Settings(**{k: v for k, v in wanted.items() if k in wandb.Settings.model_fields})


@cache
def _online(root: Path) -> bool:
    """Whether a key is configured and the server answers; asked once a process, without a prompt."""
    import wandb

    try:
        wandb.setup(settings=_settings())
        prompts = "prompt" not in inspect.signature(wandb.login).parameters  # before 0.31
        ready = bool(wandb.api.api_key) if prompts else wandb.login(prompt=False)
        reason = "no API key is configured (wandb login)"
    except Exception as error:
        ready, reason = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not ready:
        logger.warning("wandb is offline: %s; upload later: %s", reason, upload_command(root))
    return ready
