"""What the tables promise: fair ranking, speeds that are told apart, nothing lost, the same bytes again."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import accel.results
from accel.errors import ConfigError, IntegrityError
from accel.metrics.statistics import Estimate, paired
from accel.metrics.verdicts import Margins
from accel.results.comparison import Comparison, rank
from accel.results.frame import study_frame
from accel.results.markdown import markdown
from accel.results.tables import write_tables
from accel.results.terminal import print_study
from accel.results.text import interval, plus_minus, significant


def grid(text, heading):
    """The Markdown table after `heading` as a list of dicts."""
    lines = text.split(heading, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def places(records):
    ranks = rank(records)
    return [str(ranks[r["id"]]) for r in records]


def page(fabric):
    return markdown(Comparison.load(fabric.results, "demo"))


# --- ranking ----------------------------------------------------------------------------------------------------------


def test_better_is_first_whatever_the_order(fabric):
    records = [fabric.quality("c", 3.0), fabric.quality("a", 1.0), fabric.quality("b", 2.0)]
    assert places(records) == ["3", "1", "2"]


def test_a_place_counts_those_that_are_better_and_is_shared_by_those_that_are_not_told_apart(fabric):
    records = [fabric.quality(*x) for x in [("a", 2.0), ("b", 2.001), ("c", 2.002), ("d", 3.0)]]
    assert places(records) == ["1=", "1=", "1=", "4"]


def test_a_place_is_one_more_than_the_number_of_better_ones(fabric):
    """What `rank` computes for all pairs at once is what `paired` says of each."""
    records = [fabric.quality(f"step{i}", 2 * 1.0015**i) for i in range(40)]
    values = [Estimate.from_dict(record["values"]["fid_digits"]) for record in records]
    ranks = rank(records, Margins(accuracy=None))
    for record, own in zip(records, values, strict=True):
        better = sum(paired(other, own).hi < 0 for other in values)
        assert ranks[record["id"]].place == 1 + better
    assert 2 < len({x.place for x in ranks.values()}) < 40


@pytest.mark.parametrize("difference", [{"n": 500}, {"seed": 1}, {"sha": "cd" * 32}, {"suite": "shapes"}])
def test_unlike_runs_are_never_ranked_together(fabric, difference):
    records = [fabric.quality("a", 1.0), fabric.quality("b", 2.0), fabric.quality("c", 3.0, **difference)]
    assert places(records) == ["1", "2", "1"]


def test_metrics_are_never_ranked_together(fabric):
    assert places([fabric.quality("a", distance=0.5), fabric.quality("b", 2.0), fabric.quality("c", 3.0)]) == [
        "1",
        "1",
        "2",
    ]


def test_distances_over_different_numbers_of_samples_are_never_ranked_together(fabric):
    a, b = fabric.quality("a", distance=0.5), fabric.quality("b", distance=0.6)
    b["values"]["distance"]["n"] = 128
    assert places([a, b]) == ["1", "1"]


def test_sections_keep_unlike_runs_apart_and_floors_and_references_unranked(fabric):
    base = fabric.quality("base", 2.0, macs=1e9)
    fabric.line("floor", fabric.quality("real", 0.1, n=800))
    fabric.line("reference", fabric.quality("converged", 0.5, macs=9e9))
    fabric.line("baseline", base)
    fabric.line("cell", fabric.quality("slow", 3.0, macs=1e9))
    fabric.line("cell", fabric.quality("small", 1.0, macs=1e9, n=500))
    fabric.line("cell", fabric.quality("other seed", 0.9, macs=1e9, seed=4))
    fabric.save()
    text = page(fabric)
    first = grid(text, "## FID (digits), N = 1000, seed 0")
    assert [row["recipe"] for row in first] == [
        "*real* (floor, N = 800)",
        "*converged* (reference)",
        "**base** (baseline)",
        "slow",
    ]
    assert [row["rank"] for row in first] == ["–", "–", "1", "2"]
    for heading, label in (("N = 500, seed 0", "small"), ("N = 1000, seed 4", "other seed")):
        section = grid(text, f"## FID (digits), {heading}")
        assert [(row["rank"], row["recipe"]) for row in section] == [("1", label)]
        assert "ΔFID (digits) vs baseline" not in section[0]  # seeds or N differ: no paired difference
    assert "never ranked together" in text
    frame = study_frame(fabric.results, "demo").set_index("label")
    assert frame["rank"].dropna().to_dict() == {"base": 1, "slow": 2, "small": 1, "other seed": 1}
    assert frame["delta"].isna().to_dict() == {
        "real": True, "converged": False, "base": False, "slow": False, "small": True, "other seed": True,
    }  # fmt: skip


def test_a_run_that_is_control_and_cell_is_ranked_once(fabric):
    base, plain = fabric.quality("base", 2.0, 0.1, 2e9), fabric.quality("plain", 3.0, 0.2, 1e9)
    fabric.line("baseline", base)
    fabric.line("control", plain, of="cached")
    fabric.line("cell", plain)
    fabric.line("cell", fabric.quality("cached", 4.0, 0.3, 1e9, cache="deepcache"))
    fabric.save()
    rows = grid(page(fabric), "jackknife")
    assert [(row["rank"], row["recipe"]) for row in rows] == [
        ("1", "**base** (baseline)"),
        ("2", "plain"),
        ("3", "cached"),
    ]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_header_says_how_it_was_made(demo):
    head = page(demo).splitlines()[:3]
    assert head[0] == "# Digits: samplers, caches and precision at small budgets"
    for part in (
        "Suite digits, N = 1000, seed 0",
        "reference digits_train, N = 1297, sha256 abababababab;",
        "Testchip 9 (AVX2), 1 thread, batch 8",
        "torch 2.13.0",
        "95 % intervals: 20-group delete-group jackknife",
    ):
        assert part in head[2]


def test_main_table_has_every_number_of_a_row(demo):
    rows = {row["recipe"]: row for row in grid(page(demo), "jackknife")}
    row = rows["deis3-20+deepcache3"]
    record = next(r for r in demo.results.all("quality") if r["label"] == "deis3-20+deepcache3")
    fid = record["values"]["fid_digits"]
    assert row["FID (digits) [95 %]"] == f"1.86 [{fid['lo']:.2f}, {fid['hi']:.2f}]"
    assert row["ΔFID (digits) vs baseline"].startswith("+0.150 [")
    assert row["accuracy %"].startswith("98.3 ± ")
    assert row["distance to converged"].startswith("0.0410 ± ")
    assert row["NFE"] == "20"
    assert row["MACs/image (G)"] == "0.453"
    assert row["MACs ÷ baseline"] == "0.19"
    assert row["ms/image"] == "5.85"
    assert row["speed-up [95 %]"] == "4.10× [4.02, 4.18]"
    assert row["weights MB"] == "2.31"
    assert row["peak MB"] == "5.40"
    assert rows["**ddim-50** (baseline)"]["ΔFID (digits) vs baseline"] == "baseline"
    assert rows["**ddim-50** (baseline)"]["ms/image"] == "24.0"  # from the timings interleaved with it
    assert rows["**ddim-50** (baseline)"]["speed-up [95 %]"] == "1"


def test_a_speed_up_that_the_floor_reaches_is_not_told_apart(fabric):
    base = fabric.quality("base", 2.0)
    fabric.line("baseline", base)
    for label, speed in (("same", 1.0), ("barely", 1.035), ("faster", 1.2), ("slower", 0.8)):
        cell = fabric.quality(label, 2.5)
        fabric.line("cell", cell, fabric.timing(cell, base, speed))
    fabric.save()
    speeds = {row["recipe"]: row["speed-up [95 %]"] for row in grid(page(fabric), "jackknife")}
    assert speeds["same"].endswith(" not told apart")
    assert speeds["barely"] == "1.035× [1.014, 1.056] not told apart"  # clear of 1, but not of the floor's 1.018
    assert speeds["faster"].endswith("]")
    assert speeds["slower"].endswith("]")


def test_a_control_on_other_seeds_gives_no_verdict(fabric):
    fabric.line("baseline", fabric.quality("base", 1.0, 0.01, 5e9))
    fabric.line("cell", fabric.quality("cached", 2.0, 0.1, 1e9, cache="deepcache"))
    fabric.line("control", fabric.quality("plain", 3.0, 0.2, 1e9, seed=1), of="cached")
    fabric.save()
    (row,) = grid(page(fabric), "## Equal-cost controls")
    assert row["FID (digits) verdict"] == row["distance verdict"] == "not comparable"


def test_an_accelerated_cell_without_a_control_is_named(demo):
    assert "Without an equal-cost control: deis3-20+deepcache3+w4." in page(demo)


def test_refused_and_missing_cells_are_listed_with_reasons(fabric):
    fabric.line("baseline", fabric.quality("base", 2.0))
    fabric.line("cell", label="a|b", refused="needs a UNet")
    fabric.line("cell", label="gone")
    fabric.save()
    text = page(fabric)
    rows = {row["recipe"]: row["reason"] for row in grid(text, "## Refused or failed cells")}
    assert rows == {"a¦b": "needs a UNet", "gone": "no record: it failed or has not run yet"}
    assert [row["recipe"] for row in grid(text, "jackknife")] == ["**base** (baseline)"]
    assert study_frame(fabric.results, "demo")["refused"].notna().tolist() == [False, True, True]


def test_simulated_rows_carry_no_time_even_if_someone_timed_them(fabric):
    base = fabric.quality("base", 2.0)
    fake, real = fabric.quality("w8a8", 2.2, simulated=True, precision="w8a8"), fabric.quality("bf16", 2.1)
    fabric.line("baseline", base)
    fabric.line("cell", fake, fabric.timing(fake, base, 7.0))
    fabric.line("cell", real, fabric.timing(real, base, 1.5))
    fabric.save()
    rows = {row["recipe"]: row for row in grid(page(fabric), "jackknife")}
    assert rows["w8a8"]["ms/image"] == "simulated"
    assert rows["w8a8"]["speed-up [95 %]"] == "–"
    assert rows["w8a8"]["rank"] != "–"
    assert rows["bf16"]["speed-up [95 %]"].startswith("1.50×")
    frame = study_frame(fabric.results, "demo").set_index("label")
    timed = ["ms", "speedup", "timing_id", "device_name"]
    assert frame.loc["w8a8", timed].isna().all()
    assert frame.loc["bf16", timed].notna().all()


@pytest.mark.parametrize("other", [{"device": "Other GPU"}, {"threads": 4}, {"batch": 1}])
def test_two_devices_are_never_in_one_speed_table(fabric, other):
    base = fabric.quality("base", 2.0)
    fabric.line("baseline", base)
    for i, label in enumerate(("a", "b", "c", "d")):
        cell = fabric.quality(label, 2.5 + i)
        fabric.line("cell", cell, fabric.timing(cell, base, 1.5 + i, **(other if i % 2 else {})))
    fabric.save()
    text = page(fabric)
    assert not {"ms/image", "speed-up [95 %]"} & set(grid(text, "jackknife")[0])
    sections = text.split("## Speed on ")[1:]
    assert len(sections) == 2
    found = [[row["recipe"] for row in grid(section, "\n")] for section in sections]
    assert found == [["c", "a", "**base** (baseline)"], ["d", "b", "**base** (baseline)"]]
    assert "speeds do not compare across them" in text


def test_notes_give_the_timing_floor(demo):
    notes = page(demo).split("## Notes")[1]
    assert "A/A floor of the timing (the baseline against itself, the widest of 11): 1.003× [0.988, 1.018]" in notes
    assert "Simulated precision" in notes
    assert "deis3-10+w8a8" in notes
    assert "Reference row: heun-100, N = 1000, the converged sampler." in notes


# --- files ------------------------------------------------------------------------------------------------------------


def test_rebuilding_gives_the_same_bytes(demo):
    first = {path.name: path.read_bytes() for path in write_tables(demo.results, "demo")}
    assert set(first) == {"demo.csv", "demo.md"}
    for path in write_tables(demo.results, "demo"):
        assert path.read_bytes() == first[path.name]
        path.unlink()
    for path in write_tables(demo.results, "demo"):
        assert path.read_bytes() == first[path.name]


def test_csv_has_all_rows_and_exact_numbers(demo):
    csv_path, _ = write_tables(demo.results, "demo")
    rows = list(csv.DictReader(io.StringIO(csv_path.read_text())))
    assert [row["label"] for row in rows] == [line["label"] for line in demo.lines]
    row = next(r for r in rows if r["label"] == "dpmpp2m-10")
    record = demo.results.load("quality", row["quality_id"])
    for end, part in (("", "value"), ("_lo", "lo"), ("_hi", "hi"), ("_corrected", "corrected")):
        assert float(row[f"fid_digits{end}"]) == record["values"]["fid_digits"][part]
    timing = demo.results.load("timing", row["timing_id"])
    assert float(row["speedup_lo"]) == timing["speedup"]["lo"]
    assert row["batch"] == "8"
    assert row["steps"] == "10"
    assert (row["rank"], row["shared"]) == ("5", "True")
    assert row["reference_sha256"] == "abababababab"
    assert row["torch"] == "2.13.0"


def test_a_suite_with_distances_only_is_ranked_by_them(fabric):
    for role, label, distance in (("baseline", "ddim-50", 0.03), ("cell", "deis3-20", 0.0004)):
        fabric.line(role, fabric.quality(label, distance=distance, suite="mixture"))
    fabric.save(suite="mixture")
    rows = grid(page(fabric), "jackknife")
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert rows[0]["recipe"] == "deis3-20"
    assert "distance to converged" not in rows[0]


def test_a_study_without_any_result_still_makes_a_page(fabric):
    fabric.line("cell", label="x", refused="no")
    fabric.save()
    assert "| x | no |" in page(fabric)
    assert len(study_frame(fabric.results, "demo")) == 1


def test_an_unknown_study_is_named_with_its_neighbours(demo):
    with pytest.raises(ConfigError, match="Did you mean demo"):
        write_tables(demo.results, "dmo")


def test_a_damaged_record_stops_the_table(demo):
    path = demo.results.path("quality", demo.lines[3]["quality"])
    path.write_text(path.read_text().replace("3.4", "2.4", 1))
    with pytest.raises(IntegrityError):
        write_tables(demo.results, "demo")


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (2.13456, 0.0456, "2.13 [2.09, 2.18]"),
        (2.13456, 0.0156, "2.135 [2.119, 2.150]"),
        (45.678, 3.21, "46 [42, 49]"),
        (4.9, 9.6, "4.9 [-4.7, 14.5]"),
        (0.0001234, 0.0000056, "1.2e-04 [1.2e-04, 1.3e-04]"),
        (-0.0001, 0.02, "0.000 [-0.020, 0.020]"),
        (3.0, 0.0, "3.00 [3.00, 3.00]"),
    ],
)
def test_a_value_and_its_interval_are_rounded_alike(value, half, text):
    assert interval({"value": value, "lo": value - half, "hi": value + half}) == text


def test_other_numbers():
    assert [significant(x) for x in (1234.5, 48.24, 0.482, 0, 2.5e10)] == ["1234", "48.2", "0.482", "0", "2.50e+10"]
    assert plus_minus({"value": 0.9812, "lo": 0.9727, "hi": 0.9897}, 100) == "98.1 ± 0.9"


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits(demo, width):
    console = Console(width=width, record=True, file=io.StringIO())
    print_study(demo.results, "demo", console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for line in demo.lines:
        assert line["label"] in text  # nothing folded away or cut
    assert "5=" in text
    assert "not run dit+deepcache3" in text
    assert "Margins: accuracy 1 point, FID (digits) 0.171" in " ".join(text.split())
    assert ("simulated" in text) == (width == 100)  # 80 columns have no room for ms
    assert "…" not in text


def test_importing_the_room_is_light():
    """Rebuilding from records must not wait for torch; the package's own __init__ is left out of the question."""
    root = Path(accel.results.__file__).parents[1]
    code = (
        "import sys, types; package = types.ModuleType('accel'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['accel'] = package\n"
        "import accel.results.tables, accel.results.terminal, accel.results.figures, accel.results.tracking\n"
        "print({'torch', 'matplotlib', 'wandb', 'pandas', 'PIL'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
