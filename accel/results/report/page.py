"""The page: studies, their tables, fronts and pictures, and the legend, in one file of HTML.

Data goes into it as JSON in script elements. All that can end such an element, or begin another, is escaped
(`inlined`); everything else is text that the template escapes. The page asks nobody for anything: its policy forbids
it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from accel.errors import needs
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.find import named
from accel.results.headline import sentences
from accel.results.markdown import head_text, notes_of
from accel.results.report.fronts import front_data
from accel.results.report.legend import GRAMMAR, Describe, entries
from accel.results.report.pictures import pictures
from accel.results.report.sections import tables
from accel.results.report.terms import terms

HERE = Path(__file__).parent


def page(results: Results, names: Sequence[str], describe: Describe, version: str) -> str:
    """The HTML of the studies `names`, each once; the same records give the same bytes. ConfigError for an unknown one.

    `describe` says what a method is (accel.results.report.legend.Describe).
    """
    jinja2 = needs("jinja2", "bench", "accel report")
    from markupsafe import Markup  # which jinja2 is made with

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"inlined": lambda data: Markup(inlined(data)),
                            "marked": lambda text: Markup(marked(text))}  # fmt: skip
    studies = [named(results, name) for name in dict.fromkeys(names)]
    shown = [_study(study, results) for study in studies]
    headings = [heading for study in shown for table in study["tables"] for heading in table.headings]
    axes = [axis for study in shown if (front := study["front"]) for axis in (*front["x"], *front["y"])]
    return environment.get_template("page.html").render(
        title=" · ".join(study.title for study in studies) if len(studies) < 3 else f"{len(studies)} studies",
        studies=shown,
        terms=terms([*headings, *(axis["name"] for axis in axes)]),
        grammar=GRAMMAR,
        labels=entries(studies, describe),
        version=version,
        css=(HERE / "report.css").read_text(encoding="utf-8"),
        js=(HERE / "report.js").read_text(encoding="utf-8"),
    )


def _study(study: Comparison, results: Results) -> dict[str, Any]:
    return {
        "name": study.name,
        "title": study.title,
        "made": head_text(study),
        "said": sentences(study) if study.against else (),
        "tables": tables(study),
        "front": front_data(study),
        "pictures": pictures(study, results),
        "notes": notes_of(study),
    }


def inlined(data: Any) -> str:
    """Data as JSON that may stand in a script element, whatever text is in it. ValueError for what is not finite."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def marked(text: str) -> str:
    """Text with the little Markdown that notes are written in, as HTML: `code` and *emphasis*; all else is escaped."""
    text = escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"(?<![\w*])\*([A-Za-z][\w, -]*?)\*(?![\w*])", r"<em>\1</em>", text)
