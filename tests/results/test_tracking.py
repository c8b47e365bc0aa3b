"""wandb sees what the records say, and can never stop a benchmark."""

import json
import shlex
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import pytest
from offline_runs import read_run, runs_of

import accel.results.tracking as tracking
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.figures import write_figures
from accel.results.tracked import record_run, search_run, study_run
from accel.results.tracking import log_record, log_study, scalars, track_search, upload_command

pytestmark = pytest.mark.usefixtures("no_account")


def record_of(demo, label):
    line = next(line for line in demo.lines if line["label"] == label)
    timing = demo.results.load("timing", line["timing"]) if line["timing"] else None
    return demo.results.load("quality", line["quality"]), timing


@pytest.fixture
def warnings(caplog):
    """Says what this project warned of (pytest also captures wandb's own debug log, which users never see)."""
    return lambda: [r.getMessage() for r in caplog.records if r.name == tracking.logger.name]


def test_an_offline_run_holds_what_the_record_says(demo, capfd):
    quality, timing = record_of(demo, "deis3-20+deepcache3")
    folder = log_record(demo.results, "demo", quality, timing)
    assert folder.parent == demo.results.root / "wandb"
    assert folder.name.startswith("offline-run-")
    found = read_run(folder)
    run, history, config = found["run"], found["history"], found["config"]
    assert (run.project, run.run_group, run.job_type) == ("accel", "demo", "timing")
    assert run.display_name == "deis3-20+deepcache3 · seed 0"
    assert set(run.tags) == {"sampler:deis3", "steps:20", "cache:deepcache"}
    assert config["id"] == quality["id"]
    assert config["recipe"] == quality["recipe"]
    assert config["n"] == 1000
    assert config["axes"]["cache"] == "deepcache"
    assert config["environment"]["packages"]["torch"] == "2.13.0"
    assert config["metric"] == "fid_digits"
    assert config["timing"]["device_name"] == "Testchip 9 (AVX2)"
    fid = quality["values"]["fid_digits"]
    assert [history[k] for k in ("fid", "fid_lo", "fid_hi")] == [fid["value"], fid["lo"], fid["hi"]]
    assert history["speedup"] == timing["speedup"]["value"]
    assert history["ms"] == timing["ms_per_image"]["value"]
    assert history["macs"] == quality["cost"]["macs"]
    assert history["nfe"] == 20
    assert history["samples._type"] == "image-file"
    assert len(list(folder.glob("files/media/images/*.png"))) == 1
    assert found["exit"] == 0
    assert capfd.readouterr() == ("", "")


def test_a_cell_says_its_place_in_the_study_in_flat_keys(demo, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/accel", "experiment=demo", "title=a b"])
    study = Comparison.load(demo.results, "demo")
    row = next(row for row in study.done if row.label == "deis3-20+deepcache3")
    quality, timing = record_of(demo, row.label)
    quality["environment"] = quality["environment"] | {"accel": "1.2.3", "commit": "abc"}
    found = read_run(log_record(demo.results, "demo", quality, timing))
    config, history, summary = found["config"], found["history"], found["summary"]
    said = {"role": "cell", "seed": 0, "sampler": "deis3", "steps": 20, "cache": "deepcache", "precision": "none"}
    said |= {"accel": "1.2.3", "commit": "abc", "label": row.label, "suite": "digits", "batch": 8}
    said |= {"command": "accel experiment=demo 'title=a b'"}
    assert {key: config[key] for key in said} == said
    assert history["macs_ratio"] == study.macs_ratio(row)
    for end, key in (("", "fid_digits"), ("_distance", "distance"), ("_accuracy", "accuracy")):
        delta = study.delta(row, study.baseline, key)
        ends = [history[f"delta{end}{part}"] for part in ("", "_lo", "_hi")]
        assert ends == pytest.approx([delta.value, delta.lo, delta.hi])
        assert summary[f"verdict{end}"] == study.verdict(row, study.baseline, key)
    assert summary["all_values"]
    base = read_run(log_record(demo.results, "demo", *record_of(demo, "ddim-50")))
    assert base["config"]["role"] == "baseline"
    assert base["history"]["macs_ratio"] == 1
    assert "delta" not in base["history"]
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert log_record(demo.results, "demo", quality, timing).is_dir()
    assert len(runs_of(demo.results)) == 2, "another command line is nothing new to show"


def test_the_same_record_is_logged_once_and_more_of_it_updates_its_run(demo):
    quality, timing = record_of(demo, "deis3-10")
    first = log_record(demo.results, "demo", quality)
    assert log_record(demo.results, "demo", quality) == first
    timed = log_record(demo.results, "demo", quality, timing)
    assert read_run(timed)["history"]["speedup"] == timing["speedup"]["value"]
    other = log_record(demo.results, "other", quality)
    quality["values"]["fid_digits"]["value"] += 0.1
    last = log_record(demo.results, "demo", quality, timing)
    assert sorted((demo.results.root / "wandb").glob("offline-run-*")) == sorted([other, last])
    assert read_run(last)["history"]["fid"] == quality["values"]["fid_digits"]["value"]
    ids = {read_run(folder)["run"].run_id for folder in (last, other)}
    assert len(ids) == 2
    assert first.name.endswith(read_run(last)["run"].run_id)


def test_a_larger_n_updates_and_other_seeds_do_not(fabric):
    def one(n, **more):
        record = fabric.quality("a", 2.0, macs=1e9, n=n) | more
        return record_run(fabric.results, "demo", record, None)

    assert one(1000).id == one(2000).id
    assert one(1000).content != one(2000).content
    assert one(1000).id != one(1000, seed=1).id
    assert one(1000, seeds=[0, 1]).id == one(1000, seeds=[0, 1, 2]).id != one(1000).id
    assert one(1000, seeds=[0, 1, 2]).arguments["name"] == "a · seed 0, 1, 2"
    assert one(1000).id != record_run(fabric.results, "other", fabric.quality("a", 2.0, macs=1e9), None).id
    for n in (1000, 2000, 1000):
        record = fabric.quality("a", 2.0, macs=1e9, n=n)
        fabric.line("baseline" if not fabric.lines else "cell", record)
    fabric.save()
    log_study(fabric.results, "demo", records=True)
    assert runs_of(fabric.results)["a · seed 0"]["config"]["n"] == 2000


def test_what_was_uploaded_is_kept_and_its_update_has_the_same_id(demo):
    quality, timing = record_of(demo, "deis3-10")
    first = log_record(demo.results, "demo", quality)
    read_run(first)
    (path,) = first.glob("run-*.wandb")
    path.with_name(path.name + ".synced").touch()
    time.sleep(1.1)  # folders are named by the second
    second = log_record(demo.results, "demo", quality, timing)
    assert first.is_dir()
    assert second != first
    assert len({read_run(folder)["run"].run_id for folder in (first, second)}) == 1


@pytest.mark.parametrize(
    ("mode", "version", "told"),
    [
        ("online", "0.20.0", "allow"),
        ("offline", "0.30.0", None),
        ("offline", "0.31.0", "allow"),
        ("offline", "1.2", "allow"),
    ],
)
def test_a_version_that_would_not_heed_it_is_not_told_to_resume(mode, version, told):
    assert tracking._resume(mode, version) == told


def test_runs_are_resumed_where_they_are_there_already(demo, monkeypatch):
    import wandb

    asked = []
    init = wandb.init

    def spy(**arguments):
        asked.append(arguments)
        return init(**arguments)

    monkeypatch.setattr(wandb, "init", spy)
    log_study(demo.results, "demo")
    demo.line("cell", demo.quality("more-10", fid=3.0, macs=1e9))
    demo.save()
    log_study(demo.results, "demo")
    assert len({one["id"] for one in asked}) == 1
    heeded = tuple(map(int, wandb.__version__.split(".")[:2])) >= (0, 31)
    assert all(one["resume"] == ("allow" if heeded else None) for one in asked)
    [found] = runs_of(demo.results).values()
    assert found["summary"]["rows"] == len(demo.lines)


def test_table_and_figures_are_artifacts_that_came_of_weights_and_reference(fabric, tmp_path):
    base = fabric.quality("base", 2.0, macs=1e9) | {"weights": {"unet": "ab" * 32}}
    fabric.results.save(base)
    fabric.line("baseline", base)
    fabric.save()
    write_figures(fabric.results, "demo")
    folder = log_study(fabric.results, "demo")
    found = read_run(folder)["artifacts"]
    own = {name: one for name, one in found.items() if not name.startswith("run-")}  # those of run.log itself
    kinds = {name: (one.type, one.use_after_commit) for name, one in own.items()}
    assert kinds == {
        "digits-weights": ("weights", True), "digits-reference": ("reference", True),
        "demo-table": ("table", False), "demo-figures": ("figures", False),
    }  # fmt: skip
    metadata = json.loads(own["demo-table"].metadata)
    assert metadata["weights"] == [{"unet": "ab" * 32}]
    assert metadata["reference"] == [base["reference"]]
    for one in own.values():
        for entry in one.manifest.contents:
            path = Path(entry.local_path)
            assert path.is_relative_to(folder)
            assert path.stat().st_size == entry.size
    files = {entry.path for entry in own["demo-table"].manifest.contents}
    assert files == {"table.csv", "table.md"}
    first = own["demo-table"].digest
    fabric.line("cell", fabric.quality("more", 3.0, macs=1e9))
    fabric.save()
    again = read_run(log_study(fabric.results, "demo"))["artifacts"]
    assert again["demo-table"].digest != first
    assert again["digits-reference"].digest == own["digits-reference"].digest


ROWS = [{"trial": 1, "score": 0.2, "best": None, "nfe": 10}, {"trial": 2, "score": 0.1, "best": 0.1, "nfe": 20}]


def test_a_search_is_logged_trial_by_trial(fabric):
    with track_search(fabric.results, "found", "key", "ddim-4 nsga2", {"budget": 900}) as live:
        for row in ROWS:
            live.log(row)
        live.found({"found": "ddim-4@searched"})
    [found] = runs_of(fabric.results).values()
    assert (found["run"].display_name, found["run"].job_type, found["exit"]) == ("ddim-4 nsga2", "search", 0)
    assert found["config"]["budget"] == 900
    shown = [{k: v for k, v in row.items() if not k.startswith("_")} for row in found["rows"]]
    assert shown == [{k: v for k, v in row.items() if v is not None} for row in ROWS]
    assert found["summary"]["found"] == "ddim-4@searched"


def test_a_search_that_ends_early_keeps_its_trials_and_is_replaced(fabric, warnings):
    def searched(count):
        with track_search(fabric.results, "found", "key", "x", {}) as live:
            for row in ROWS[:count]:
                live.log(row)
            if count == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(1)
    [found] = runs_of(fabric.results).values()
    assert (len(found["rows"]), found["exit"]) == (1, 1)
    searched(2)
    [found] = runs_of(fabric.results).values()
    assert (len(found["rows"]), found["exit"]) == (2, 0)
    assert warnings() == []


def test_a_search_goes_on_without_wandb(fabric, monkeypatch, warnings):
    import wandb

    class Run:
        def log(self, row):
            raise OSError("gone")

        def finish(self, exit_code=0):
            raise OSError("gone")

    monkeypatch.setattr(wandb, "init", lambda **arguments: Run())
    with track_search(fabric.results, "found", "key", "x", {}) as live:
        for row in ROWS:
            live.log(row)
    assert len(warnings()) == 1
    monkeypatch.setitem(sys.modules, "wandb", None)
    with track_search(fabric.results, "found", "key", "x", {}) as live:
        live.log(ROWS[0])
    assert len(warnings()) == 2
    with track_search(fabric.results, "found", "key", "x", {}, mode="disabled") as live:
        live.log(ROWS[0])
    assert len(warnings()) == 2


def test_ids_are_of_what_runs_are(demo):
    study = Comparison.load(demo.results, "demo")
    runs = [study_run(demo.results, study), search_run("demo", "k", "x", {}), search_run("demo", "other", "x", {})]
    runs += [record_run(demo.results, "demo", row.quality, row.timing) for row in study.competing]
    assert len({run.id for run in runs}) == len(runs)
    assert all(run.id.isalnum() for run in runs)


def test_a_study_is_one_run_with_its_table_and_figures(demo):
    paths = write_figures(demo.results, "demo")
    paths[0].with_name("demo_two_pareto.png").write_bytes(paths[0].read_bytes())  # of a study demo_two
    folder = log_study(demo.results, "demo")
    found = read_run(folder)
    assert found["run"].job_type == "study"
    assert found["run"].display_name == "demo"
    assert {"table", "pareto", "samples"} == {k.split(".")[0] for k in found["history"] if not k.startswith("_")}
    (path,) = folder.glob("files/media/table/*.json")
    table = json.loads(path.read_text())
    assert len(table["data"]) == len(demo.lines)
    assert "speedup_lo" in table["columns"]
    row = dict(zip(table["columns"], table["data"][4], strict=True))
    assert (row["label"], row["fid_digits"], row["steps"]) == ("ddim-10", 9.8, 10)
    assert log_study(demo.results, "demo") == folder


def test_a_metric_does_not_take_the_place_of_the_axis_of_its_name(fabric):
    record = fabric.quality("a", 2.0, macs=1e9, more={"precision": 0.9}, precision="w8a8")
    fabric.line("baseline", record)
    fabric.save()
    flat = scalars(record)
    assert flat["pr_precision_lo"] == record["values"]["precision"]["lo"]
    assert "precision" not in flat
    (path,) = log_study(fabric.results, "demo").glob("files/media/table/*.json")
    table = json.loads(path.read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert (row["precision"], row["pr_precision"]) == ("w8a8", 0.9)


@pytest.mark.parametrize("name", ["fid", "macs", "samples"])
def test_a_value_that_would_overwrite_another_is_one_warning(fabric, warnings, name):
    record = fabric.quality("a", 2.0, macs=1e9, more={name: 0.9})
    assert log_record(fabric.results, "demo", record) is None
    assert len(warnings()) == 1
    assert f"two values are called '{name}" in warnings()[0]


def test_all_records_can_be_logged_again_from_the_folder(fabric):
    base = fabric.quality("base", 2.0)
    fabric.line("baseline", base)
    fabric.line("cell", fabric.quality("b", 3.0))
    fabric.line("cell", label="x", refused="no")
    fabric.save()
    log_study(fabric.results, "demo", records=True)
    folders = (fabric.results.root / "wandb").glob("offline-run-*")
    assert sorted(read_run(folder)["run"].display_name for folder in folders) == ["b · seed 0", "base · seed 0", "demo"]


def test_simulated_records_never_log_a_time(fabric):
    quality = fabric.quality("w8a8", 2.0, macs=1e9, simulated=True)
    flat = scalars(quality, fabric.timing(quality, quality, 3.0))
    assert flat["fid"] == 2.0
    assert flat["macs"] == 1e9
    assert not {"ms", "speedup"} & set(flat)


def test_a_broken_wandb_is_one_warning(demo, monkeypatch, warnings):
    import wandb

    quality, timing = record_of(demo, "deis3-10")

    def broken(**kwargs):
        raise RuntimeError("the service died\nwith a long story")

    monkeypatch.setattr(wandb, "init", broken)
    assert log_record(demo.results, "demo", quality, timing) is None
    assert log_study(demo.results, "demo") is None
    assert len(warnings()) == 2
    assert "deis3-10 (RuntimeError: the service died); the records are complete" in warnings()[0]


def test_a_run_that_breaks_midway_is_a_warning_and_can_be_logged_later(demo, monkeypatch, warnings):
    import wandb

    quality, _ = record_of(demo, "deis3-10")

    def broken(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "Image", broken)
        assert log_record(demo.results, "demo", quality) is None
    assert len(warnings()) == 1
    assert wandb.run is None
    assert read_run(log_record(demo.results, "demo", quality))["history"]["fid"] == 2.05


def test_an_absent_wandb_is_one_warning(demo, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert log_record(demo.results, "demo", record_of(demo, "deis3-10")[0]) is None
    assert len(warnings()) == 1
    assert "records are complete" in warnings()[0]


def test_what_cannot_be_logged_is_one_warning(demo, warnings):
    assert log_study(demo.results, "no such study") is None
    assert log_record(demo.results, "demo", {"id": "x"}) is None
    assert len(warnings()) == 2


def test_an_unknown_mode_warns_with_the_nearest_name(demo, warnings):
    assert log_study(demo.results, "demo", mode="ofline") is None
    assert "Did you mean offline" in warnings()[0]
    assert len(warnings()) == 1


def test_online_without_a_key_falls_back_to_offline_with_one_line(demo, warnings):
    quality, timing = record_of(demo, "deis3-10")
    start = time.perf_counter()
    assert log_record(demo.results, "demo", quality, mode="online").name.startswith("offline-run-")
    assert log_record(demo.results, "demo", quality, timing, mode="online").name.startswith("offline-run-")
    assert time.perf_counter() - start < 10
    assert len(warnings()) == 1
    assert "no API key" in warnings()[0]
    assert upload_command(demo.results.root) in warnings()[0]


def test_the_command_that_uploads_runs_is_one_of_the_installed_wandb(fabric, tmp_path):
    """Its words and options are wandb's (removed ones are hidden there), and it finds the runs; no network."""
    from click.testing import CliRunner
    from wandb.cli.cli import cli

    fabric.results = Results(tmp_path / "my results")
    folder = log_record(fabric.results, "demo", fabric.quality("a", 2.0))
    read_run(folder)  # waits until it is whole
    program, *words = shlex.split(upload_command(fabric.results.root))
    assert program == "wandb"
    command, known = cli.commands[words[0]], set()
    for param in command.params:
        known |= set() if getattr(param, "hidden", False) else {*param.opts, *param.secondary_opts}
    assert {word for word in words if word.startswith("-")} <= known
    paths = [path for word in words[1:] if not word.startswith("-") for path in glob(word)]
    assert paths == [str(folder)]
    if "--dry-run" in known:  # versions before 0.30 have none
        shown = CliRunner().invoke(cli, [*words[:1], *paths, "--dry-run"])
        assert shown.exit_code == 0
        assert "Would sync 1 run(s)" in shown.output
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert upload_command(Path("RESULTS")).replace("RESULTS", "<results>") in readme


def test_disabled_imports_nothing(demo):
    code = (
        "import sys\n"
        "from accel.records import Results\n"
        "from accel.results.tracking import log_record, log_study\n"
        "results = Results(sys.argv[1])\n"
        "record = results.all('quality')[0]\n"
        "assert log_record(results, 'demo', record, mode='disabled') is None\n"
        "assert log_study(results, 'demo', mode='disabled') is None\n"
        "print('wandb' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(demo.results.root)], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
    assert not (demo.results.root / "wandb").exists()
