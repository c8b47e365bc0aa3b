"""`python -m accel search=...`: plan, run, table, the command to deploy, transfer, and requests that are wrong."""

from __future__ import annotations

import shlex
import sys

import pytest

from accel import __main__ as cli
from accel.cli.build import build_search, searches
from accel.config import compose, recipe_of
from accel.errors import ConfigError
from accel.records import Results
from accel.results.search import write_searches

QUICK = [
    "suite=mixture", "search=timesteps", "search.metric=distance", "search.halving.first=8",
    "search.halving.doublings=0", "search.budget=700", "search.finalists=1", "search.rescore_n=8",
    "search.compare=[trailing,karras]", "sampler=ddim_accel", "sampler.steps=3", "evaluation.n=60",
    "evaluation.distance_n=60", "evaluation.timing=false", "study=s",
]  # fmt: skip


@pytest.fixture
def accel(monkeypatch, capsys, root):
    """accel(*overrides) -> (exit code, everything printed); and the results folder."""
    folder = root()

    def accel(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["accel", *QUICK, f"results={folder}", *overrides])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    return accel, folder


def test_search_table_and_deployment(accel):
    run, folder = accel
    code, printed = run("optimiser=random")
    assert code == 0, printed
    (record,) = Results(folder).all("search")
    (line,) = [x for x in printed.splitlines() if x.strip().startswith("python -m accel")]
    overrides = shlex.split(line)[3:]
    deployed = recipe_of(compose(overrides))
    assert list(deployed.grid.timesteps) == record["timesteps"]
    assert deployed.label == "ddim_accel-3@explicit"
    table = (folder / "tables" / "s.md").read_text()
    for name in ("random (distance)", "*trailing*", "*karras*"):
        assert f"| {name} |" in table
    assert " ".join(map(str, record["timesteps"])) in table
    assert f"{record['cost']['nfe']:,}" in table
    assert not list((folder / "shards").glob("*/.search")), table

    # Again: nothing is searched; another optimiser joins the table.
    before = {p: p.read_bytes() for p in (folder / "records").rglob("*.json") if p.parent.name != "search_study"}
    assert run("optimiser=random")[0] == 0
    assert {p: p.read_bytes() for p in before} == before
    assert run("optimiser=coordinate")[0] == 0
    table = (folder / "tables" / "s.md").read_text()
    assert table.count("(distance) |") >= 4, "both in the verdicts and in the rows"
    assert "| coordinate (distance) |" in table
    written = {p: p.read_bytes() for p in write_searches(Results(folder))}
    assert all((folder / "tables" / p.name).read_bytes() == content for p, content in written.items())


def test_plan_runs_and_writes_nothing(accel):
    run, folder = accel
    code, printed = run("plan=true")
    assert code == 0
    assert "700" in printed
    assert not (folder / "records").exists()


def test_what_is_found_is_evaluated_elsewhere_too(accel):
    run, folder = accel
    code, printed = run("optimiser=random", 'transfer=[["sampler=deis_tab"]]')
    assert code == 0, printed
    study = Results(folder).load("search_study", "s")
    kinds = [(row["kind"], row["name"], row["of"]) for row in study["rows"]]
    assert ("transfer", "random (distance) of ddim_accel-3", "deis_tab-3") in kinds
    assert ("grid", "trailing", "deis_tab-3") in kinds
    table = (folder / "tables" / "s.md").read_text()
    assert "## deis_tab-3" in table


def test_only_the_scores_of_candidates_are_kept(accel):
    run, folder = accel
    before = set((folder / "shards").iterdir())
    assert run("optimiser=random")[0] == 0
    shards = {p.name for p in set((folder / "shards").iterdir()) - before if p.is_dir()}
    runs = {r["samples"] for r in Results(folder).all("quality") if "samples" in r}
    assert runs <= shards
    assert len(shards) <= len(runs) + 3, "beside the evaluated runs: exact solutions, nothing of the candidates"


BAD = {
    "optimiser": (["optimiser=nsga3"], "unknown optimiser 'nsga3'. Did you mean nsga2"),
    "search": (["search=timestep"], "unknown search 'timestep'. Did you mean timesteps"),
    "setting": (["search.budgets=5"], "unknown setting 'search.budgets'. Did you mean search.budget"),
    "budget": (["search.budget=40"], "allowed: search.budget of several times that"),
    "steps": (["sampler.steps=1001"], "allowed: "),
    "metric": (["search.metric=fid"], "use search.metric=distance"),
    "sampler": (["sampler=ddim"], "DDIMScheduler.set_timesteps takes no timesteps"),
    "grid": (["grid=karras"], "a search of timesteps is asked for grid=karras, which it would replace; leave that out"),
    "grid elsewhere": (['transfer=[["sampler.steps=5","grid=t_quadratic"]]'], "grid=t_quadratic, which it would"),
    "grid of the sampler": (["+sampler.options.grid=karras"], "asked for sampler.options.grid=karras, which it would"),
    "seed": (["evaluation.seed=2000003"], "is one that the search selects by"),
    "workers": (["search.workers=0"], "search.workers is 0; allowed: an integer in [1, "),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_requests_get_one_clear_error(case, accel):
    overrides, message = BAD[case]
    code, printed = accel[0](*overrides)
    assert code == 2, printed
    assert message in " ".join(printed.split()), printed
    assert "Traceback" not in printed


def test_searches_that_do_not_go_together():
    for cells, message in (
        ([["search=recipes"], ["search=timesteps"]], "a search of whole recipes; allowed: that search alone"),
        ([["search=timesteps"], ["sampler=ddim"]], "has search=none among cells that search; leave it out"),
    ):
        cfg = compose([])
        cfg.cells = cells
        assert searches(cfg)
        with pytest.raises(ConfigError, match=message):
            build_search(cfg, [])
    assert not searches(compose(["sampler=ddim"]))
