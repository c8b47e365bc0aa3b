"""The tables of a study as files, rebuilt from its records: CSV with everything, Markdown to read."""

from __future__ import annotations

from pathlib import Path

from accel.files import write_atomic
from accel.results.comparison import Comparison
from accel.results.frame import study_frame
from accel.results.markdown import markdown
from accel.results.records import Results


def write_tables(results: Results, study: str) -> list[Path]:
    """Write tables/<study>.csv and tables/<study>.md; the same records give the same bytes."""
    csv, page = (results.root / "tables" / f"{study}.{end}" for end in ("csv", "md"))
    write_atomic(csv, study_frame(results, study).to_csv(index=False, lineterminator="\n").encode())
    write_atomic(page, markdown(Comparison.load(results, study)).encode())
    return [csv, page]
