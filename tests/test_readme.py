"""README and findings tell the truth: their tables are those of the tracked records, code runs, links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accel.config import compose, expand_cells

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FINDINGS = (ROOT / "docs/findings.md").read_text()
DOCUMENTS = [
    "README.md",
    "docs/findings.md",
    "docs/in_short.md",
    "docs/design.md",
    "docs/hub.md",
    "docs/extending.md",
    "docs/deploy.md",
    "docs/recommend.md",
    "docs/review.md",
]


def rows(text: str, heading: str) -> list[dict[str, str]]:
    """The first Markdown table after `heading`."""
    lines = text.split(heading, 1)[1].splitlines()
    table = []
    for line in lines:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif table:
            break
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def test_result_table_is_the_tracked_one():
    tracked = {row["recipe"]: row for row in rows((ROOT / "results/tables/demo.md").read_text(), "# Demo")}
    assert (
        README.split("## One result table", 1)[1].strip().splitlines()[0]
        in (ROOT / "results/tables/demo.md").read_text()
    )
    shown = rows(README, "## One result table")
    assert len(shown) >= 8
    for row in shown:
        source = tracked[row["recipe"]]
        for column, cell in row.items():
            assert source[column] == cell, (row["recipe"], column)


def test_sampler_table_is_that_of_the_tracked_studies():
    tracked = {}
    for study in ("samplers_digits", "samplers_digits_cfg2", "samplers_digits_cfg4"):
        for row in rows((ROOT / f"results/tables/{study}.md").read_text(), "# Samplers"):
            tracked[row["recipe"].replace("*", "").removesuffix(" (baseline)")] = row["distance to converged"]
    shown = rows(FINDINGS, "## Samplers")
    assert len(shown) >= 8
    for row in shown:
        name, _, guidance = row.pop("distance to converged").partition(" + ")
        for steps, cell in row.items():
            assert tracked.get(f"{name}-{steps}" + (f" + {guidance}" if guidance else ""), "–") == cell, (name, steps)


@pytest.mark.parametrize(
    ("heading", "study"),
    [
        ("## Guidance", "guidance_digits"),
        ("On `shapes`, text to image,", "guidance_shapes"),
        ("## Caching", "caching_digits"),
        ("On `digits_dit`, a transformer", "caching_dit"),
        ("## Stitching", "stitching_dit"),
        ("## Precision", "precision_digits"),
    ],
)
def test_tables_are_those_of_the_tracked_studies(heading, study):
    tracked = {row["recipe"]: row for row in rows((ROOT / f"results/tables/{study}.md").read_text(), "# ")}
    shown = rows(FINDINGS, heading)
    assert len(shown) >= 8
    for row in shown:
        assert row == {column: tracked[row["recipe"]][column] for column in row}


def test_search_table_is_the_tracked_one():
    text = (ROOT / "results/tables/step_search_digits.md").read_text()
    tracked = {row["schedule"]: row for row in rows(text, "## Side by side")}
    shown = rows(FINDINGS, "## Search")
    assert [row["schedule"] for row in shown] == list(tracked)
    for row in shown:
        assert row == {column: tracked[row["schedule"]][column] for column in row}


def test_table_of_executed_precision_is_the_tracked_one():
    text = (ROOT / "results/tables/precision_executed_amd_epyc_avx512.md").read_text()
    tracked = {}
    for section in text.split("\n## ")[1:]:
        size = section.partition(",")[0]
        tracked[size] = {row["precision"]: row for row in rows(section, "\n")}
    shown = rows(FINDINGS, "*What runs faster on this machine?*")
    assert len(shown) >= 8
    for row in shown:
        name, largest = row.pop("precision"), tracked["Stable Diffusion 1.5"]
        assert row.pop("SQNR dB") == largest[name]["SQNR dB"]
        assert row == {size: tracked[size].get(name, {}).get("speed", "") for size in row}, name


def test_overhead_table_is_the_tracked_one():
    tracked = rows((ROOT / "results/tables/overhead.md").read_text(), "# Overhead")
    assert rows(FINDINGS, "## Overhead") == tracked
    assert all(float(row["ratio"].split()[0]) <= 1.02 for row in tracked if row["suite"] == "digits")


def test_tracked_tables_are_those_of_the_records(tmp_path):
    """Rebuilding from the tracked records gives the tracked bytes."""
    import shutil

    from accel.benches.adherence_table import write_adherence
    from accel.benches.architectures_table import write_architectures
    from accel.benches.cascade_table import write_cascade
    from accel.benches.convergence_table import write_convergence
    from accel.benches.overhead_table import write_deepcache, write_overhead, write_schedulers
    from accel.benches.precision_table import write_precision
    from accel.records import Results
    from accel.results.composition_table import write_composition
    from accel.results.search import write_searches
    from accel.results.tables import write_tables

    for part in ("records", "studies"):
        shutil.copytree(ROOT / "results" / part, tmp_path / part)
    results = Results(tmp_path)
    assert {"demo", "judge", "judge_cfg"} <= set(results.studies())
    for study in results.studies():
        for path in write_tables(results, study):
            assert path.read_bytes() == (ROOT / "results/tables" / path.name).read_bytes(), path.name
    others = (write_overhead, write_schedulers, write_deepcache, write_architectures, write_cascade, write_convergence)
    for path in write_precision(results):  # of the devices that it was measured on, if any
        assert path.read_bytes() == (ROOT / "results/tables" / path.name).read_bytes(), path.name
    for write in (*others, write_adherence, write_searches, write_composition):
        written = [path for path in write(results) if path.suffix != ".png"]
        assert written, write.__name__
        for path in written:
            assert path.read_bytes() == (ROOT / "results/tables" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("document", ["README.md", "docs/design.md"])
def test_python_blocks_run(document):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, document, "exec"), {})


def test_commands_compose():
    commands = re.findall(r"^accel ((?:-m )?\w+=.*?)(?:  +#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        overrides = [a for a in command.split() if a != "-m"]
        for cell in expand_cells([overrides]):
            compose(cell)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_exist(document):
    text = (ROOT / document).read_text()
    for target, section in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", text):
        if not target.startswith("http"):
            path = (ROOT / document).parent / target
            assert path.exists(), target
            if section:
                assert f"## {section}\n" in path.read_text().lower(), (target, section)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^|\$ )make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "train"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_make_results_computes_every_tracked_study():
    studies = re.search(r"^STUDIES := (.*?)\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)[1]
    named = studies.replace("\\\n", " ").split()
    assert len(named) == len(set(named))
    assert set(named) == {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")} - {"none"}
