"""The saved view of a wandb project: panels name keys that runs have, and nothing is sent unasked."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest
from offline_runs import runs_of

from accel.cli import workspace as cli
from accel.errors import ConfigError
from accel.results import workspace as made
from accel.results.figures import write_figures
from accel.results.tracking import log_study

pytestmark = pytest.mark.usefixtures("no_account")
there = pytest.mark.skipif(
    find_spec("wandb_workspaces") is None, reason="needs the package wandb-workspaces (extra workspace)"
)


@pytest.fixture
def keys(demo):
    """Flat keys by section that the offline runs of a study with times and figures have."""
    write_figures(demo.results, "demo")
    log_study(demo.results, "demo", records=True)
    runs = runs_of(demo.results).values()
    logged = {key.split(".")[0] for run in runs for key in (*run["history"], *run["summary"])}
    return {"config": {key for run in runs for key in run["config"]}, "summary": logged}


def named(view):
    """(section, key) of all that a view names."""
    section = view["spec"]["section"]
    [runs] = section["runSets"]
    panels = [panel for own in section["panelBankConfig"]["sections"] for panel in own["panels"]]
    found = [key for key in runs["runFeed"]["columnOrder"] if key != "run:displayName"]
    found += [f"{key['section']}:{key['name']}" for key in runs["grouping"]]
    found += [f"{own['key']['section']}:{own['key']['name']}" for own in runs["sort"]["keys"]]
    for panel in panels:
        config = panel["config"]
        found += [column["accessor"] for column in config.get("columns", ())]
        found += [config[axis] for axis in ("xAxis", "yAxis", "zAxis") if axis in config]
        found += [f"summary:{key}" for key in config.get("mediaKeys", ())]
    return [(kind, key.removesuffix(".value")) for kind, _, key in (one.partition(":") for one in found)]


def test_every_key_is_one_that_runs_have(keys):
    assert {made.STUDY, *made.CONFIG} <= keys["config"]
    values = {*made.VALUES, *made.WORDS, *made.LINES, *made.PICTURES, *(key for pair in made.FRONTS for key in pair)}
    assert values <= keys["summary"]
    assert "no_such_key" not in keys["summary"]


@there
def test_panels_and_columns_name_keys_that_runs_have(keys):
    view = made.described(made.workspace("team/accel"))
    found = named(view)
    assert [one for one in found if one[1] not in keys[one[0]]] == []
    section = view["spec"]["section"]
    kinds = {panel["viewType"] for own in section["panelBankConfig"]["sections"] for panel in own["panels"]}
    assert kinds == {"Parallel Coordinates Plot", "Scatter Plot", "Media Browser"}
    assert {("config", axis) for axis in made.EVERY} | {("summary", value) for value in made.VALUES} <= set(found)
    assert found.count(("config", "study")) == 1, "the table is grouped by study"
    settings = [section["settings"], *(own["localPanelSettings"] for own in section["panelBankConfig"]["sections"])]
    assert not any(own["useRunsTableGroupingInPanels"] for own in settings), "panels show runs, no means"


@there
def test_a_view_is_shown_or_written_without_a_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(made, "save", None)
    assert cli.main(["team/accel", "--dry-run", "--name", "mine"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["entity"], shown["project"], shown["displayName"]) == ("team", "accel", "mine")
    assert cli.main(["team/accel", "--to", str(tmp_path / "view.json")]) == 0
    assert named(json.loads((tmp_path / "view.json").read_text())) == named(shown)


@there
def test_saving_asks_for_a_login_and_says_what_the_server_says(monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"cannot be saved: no API key is configured.*wandb login"):
        cli.main(["team/accel"])
    sent = []
    monkeypatch.setattr(made, "not_ready", lambda: None)

    def upsert(view):
        sent.append(view)
        return {"upsertView": {"view": {"name": view.name, "id": "x"}}}

    monkeypatch.setattr("wandb_workspaces.workspaces.internal.upsert_view2", upsert)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.Workspace.url", "https://wandb.example/team/accel")
    assert cli.main(["team/accel"]) == 0
    assert "https://wandb.example/team/accel" in capsys.readouterr().out
    assert sent[0].spec.section.settings.use_runs_table_grouping_in_panels is False

    def refuse(view):
        raise ValueError("project not found.")

    monkeypatch.setattr("wandb_workspaces.workspaces.internal.upsert_view2", refuse)
    with pytest.raises(ConfigError, match=r"did not save the workspace of team/accel: project not found\. Allowed"):
        cli.main(["team/accel"])


def test_what_is_wrong_is_one_sentence(monkeypatch):
    for project in ("accel", "a/b/c", "https://wandb.ai/team/accel", ""):
        with pytest.raises(ConfigError, match=r"the wandb project is .*; allowed: <entity>/<project>"):
            cli.main([project, "--dry-run"])
    with pytest.raises(ConfigError, match=r"--to is 'x\.yaml'; allowed: a file to write that ends in \.json"):
        cli.main(["team/accel", "--to", "x.yaml"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ConfigError, match=r"needs wandb_workspaces.*pip install 'accel-diffusion\[workspace\]'"):
        cli.main(["team/accel", "--dry-run"])
