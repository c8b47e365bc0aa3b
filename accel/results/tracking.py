"""wandb runs of cells, studies and searches, for browsing: offline unless asked, and never in the way of a benchmark.

Records are the truth and wandb is a view of them. A run is made from records under an id that says what it is of
(`accel.results.tracked`), so that it can be made again, is not made twice, and is updated where there is more to show:
of runs that wait for their upload only the newest is kept, and one that is there already is resumed. A problem with
wandb is one warning line. Files go to <results>/wandb; `upload_command` says how to send them.
"""

from __future__ import annotations

import inspect
import logging
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from accel.errors import unknown
from accel.locks import locked
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.tracked import Shown, record_run, scalars, search_run, study_run

__all__ = ["LiveSearch", "log_record", "log_study", "scalars", "track_search", "upload_command"]

PROJECT = "accel"
MODES = ("offline", "online", "disabled")
INIT_SECONDS = 20  # the longest that an unreachable server may hold up one online run
CONTENT = "content.txt"  # in a run's folder, once it is whole: the digest of what it shows
logger = logging.getLogger(__name__)


def log_record(
    results: Results,
    study_name: str,
    quality: Mapping[str, Any],
    timing: Mapping[str, Any] | None = None,
    mode: str = "offline",
) -> Path | None:
    """Make or update the wandb run of one recipe in a study; its folder, or None where there is none.

    Project `accel`, group = study, job type `quality` or `timing`, name = label and seeds, tags = the axes in use;
    config, flat: axes, role, seed, N, device, command, versions; scalars fid, fid_lo, fid_hi, delta, ..., ms, speedup,
    nfe, macs, macs_ratio; in the summary verdicts in words; a picture of the first samples.
    """
    with _harmless(quality.get("label"), mode) as allowed:
        return _log(results, mode, record_run(results, study_name, quality, timing)) if allowed else None


def log_study(results: Results, study_name: str, mode: str = "offline", records: bool = False) -> Path | None:
    """Make or update the wandb run of a study: its table and figures, also as versioned artifacts that came of weights
    and reference; with `records`, first the run of each of its cells."""
    with _harmless(study_name, mode) as allowed:
        if not allowed:
            return None
        study = Comparison.load(results, study_name)
        for quality, timing in _cells(results, study) if records else ():
            log_record(results, study_name, quality, timing, mode)
        return _log(results, mode, study_run(results, study))


def _cells(results: Results, study: Comparison) -> Iterable[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The records of each cell's run, once: of several N the largest."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {}
    for row in sorted(study.done, key=lambda row: row.quality["n"]):
        found[record_run(results, study.name, row.quality, row.timing).id] = row.quality, row.timing
    return found.values()


def upload_command(root: Path) -> str:
    """The command line that uploads the offline runs below a results folder (those already uploaded are skipped).

    Runs one by one, as every version of wandb takes them; the folder above them only the latest ones do.
    """
    return f"wandb sync {shlex.quote(str(root / 'wandb'))}/offline-run-*"


class LiveSearch:
    """The wandb run of a search while it runs; whatever goes wrong with it is one warning, and then it is silent."""

    def __init__(self, run: Any = None) -> None:
        self._run = run

    def log(self, row: Mapping[str, Any]) -> None:
        """A trial: its place, score, N, the best so far, and what all of them have cost."""
        self._try(lambda run: run.log({key: value for key, value in row.items() if value is not None}))

    def found(self, summary: Mapping[str, Any]) -> None:
        """What the search has found."""
        self._try(lambda run: run.summary.update(dict(summary)))

    def _try(self, act: Any) -> None:
        if self._run is not None:
            try:
                act(self._run)
            except Exception as error:
                self._run = None
                _warn("the search", error)


@contextmanager
def track_search(
    results: Results, study_name: str, key: str, label: str, settings: Mapping[str, Any], mode: str = "offline"
) -> Iterator[LiveSearch]:
    """The wandb run of a search, open within the context: job type `search`, one step of its history a trial. A search
    that is begun again replaces what waits for its upload; one that ends in an error keeps its trials."""
    run = None
    with _harmless(label, mode) as allowed:
        if allowed:
            run = _opened(results, mode, search_run(study_name, key, label, settings))
    live = LiveSearch(run)
    try:
        yield live
    except BaseException:
        _finished(run, 1)
        raise
    _finished(run, 0)


def _finished(run: Any, code: int) -> None:
    if run is not None:
        with suppress(Exception):
            run.finish(exit_code=code)


@contextmanager
def _harmless(name: Any, mode: str) -> Iterator[bool]:
    """Turns whatever goes wrong inside into one warning; yields whether there is anything to do."""
    if mode not in MODES:
        logger.warning("wandb did not log %s: %s", name, unknown("tracking mode", mode, MODES))
    try:
        yield mode in MODES and mode != "disabled"
    except Exception as error:
        _warn(name, error)


def _warn(name: Any, error: Exception) -> None:
    reason = (str(error).splitlines() or [""])[0]
    logger.warning("wandb did not log %s (%s: %s); the records are complete", name, type(error).__name__, reason)


def _log(results: Results, mode: str, shown: Shown) -> Path:
    """Open a run, let it be filled, finish it. A run that shows the same already stays as it is."""
    import wandb

    with _alone(results, shown):
        if (there := _there(results, _mode(results, mode), shown)) and _content(there[-1]) == shown.content:
            return there[-1]
        run = _opened(results, mode, shown)
        folder = Path(run.dir).parent
        try:
            shown.fill(wandb, run)
        except BaseException:
            _finished(run, 1)
            shutil.rmtree(folder, ignore_errors=True)  # or it would count as logged
            raise
        run.finish()
        (folder / CONTENT).write_text(shown.content)
        return folder


@contextmanager
def _alone(results: Results, shown: Shown) -> Iterator[None]:
    """While it lasts no other process logs this run."""
    path = results.root / "wandb" / f".{shown.id}.lock"
    with locked(path):
        yield
        with suppress(OSError):
            path.unlink()


def _opened(results: Results, mode: str, shown: Shown) -> Any:
    """The run, begun or resumed; of its folders those that would be uploaded beside it are gone."""
    import wandb

    mode = _mode(results, mode)
    for folder in _there(results, mode, shown) if mode == "offline" else ():
        if not any(folder.glob("*.synced")):
            shutil.rmtree(folder, ignore_errors=True)
    results.root.mkdir(parents=True, exist_ok=True)
    where = {"project": PROJECT, "dir": str(results.root), "mode": mode, "reinit": "finish_previous"}
    run = wandb.init(**where, **shown.arguments, resume=_resume(mode, wandb.__version__), settings=_settings())
    if mode == "online":  # what a resumed run says of itself is of before
        run.config.update(shown.arguments["config"], allow_val_change=True)
    return run


def _resume(mode: str, version: str) -> str | None:
    """What wandb is told of a run that may be there already. Before 0.31 it heeds that online only, and warns."""
    heeded = tuple(int(part) for part in version.split(".")[:2]) >= (0, 31)
    return "allow" if mode == "online" or heeded else None


def _there(results: Results, mode: str, shown: Shown) -> list[Path]:
    """The folders of a run, the newest last."""
    return sorted((results.root / "wandb").glob(f"{'offline-' * (mode == 'offline')}run-*-{shown.id}"))


def _content(folder: Path) -> str | None:
    try:
        return (folder / CONTENT).read_text()
    except OSError:
        return None


def _mode(results: Results, mode: str) -> str:
    return "online" if mode == "online" and _online(results.root) else "offline"


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
    if reason := not_ready():
        logger.warning("wandb is offline: %s; upload later: %s", reason, upload_command(root))
    return not reason


def not_ready() -> str | None:
    """Why nothing can be sent to wandb now; None: a key is configured and the server answers. Never a prompt."""
    try:
        import wandb

        wandb.setup(settings=_settings())
        prompts = "prompt" not in inspect.signature(wandb.login).parameters  # before 0.31
        ready = bool(wandb.api.api_key) if prompts else wandb.login(prompt=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None if ready else "no API key is configured (wandb login)"
