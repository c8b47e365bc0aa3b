"""A saved view of a wandb project that holds runs of accel (accel.results.tracked): the same panels for everybody.

Parallel coordinates of the axes and headline values, quality against cost, the samples of each cell, the front of each
study; a table of runs by study, with the axes, values and verdicts as its columns. Panels name flat keys of runs:
`CONFIG` of their configuration, `VALUES` and `WORDS` of their summary, `PICTURES` of what they logged. Built by the
package wandb-workspaces (extra `workspace`), without a network; `save` sends it.
"""

from __future__ import annotations

import re
from typing import Any

from accel.errors import ConfigError, needs
from accel.results.frame import AXES, LATER_AXES
from accel.results.tracking import not_ready

STUDY, ROLE = "study", "role"
EVERY = (*AXES, *LATER_AXES)
CONFIG = (ROLE, *EVERY, "suite", "n", "seed")
VALUES = ("fid", "delta", "macs_ratio", "nfe", "speedup", "ms")
WORDS = ("verdict", "all_values")
FRONTS = (("macs_ratio", "fid"), ("macs_ratio", "delta"), ("speedup", "delta"))  # cost, quality
LINES = ("fid", "delta", "macs_ratio", "speedup")
PICTURES = ("samples", "pareto")  # of cells and studies; of studies
MOST_RUNS = 500  # that a panel shows; wandb's default is 10
PROJECT = re.compile(r"[\w.-]+/[\w.-]+")


def workspace(project: str, name: str = "accel") -> Any:
    """The view called `name` of `<entity>/<project>`, as wandb_workspaces has it; nothing is sent. ConfigError for
    another form of project, and where the package is not installed."""
    if not PROJECT.fullmatch(project):
        raise ConfigError(f"the wandb project is {project!r}; allowed: <entity>/<project>, such as team/accel.")
    made = needs("wandb_workspaces.workspaces", "workspace", "a saved wandb workspace")
    panels = needs("wandb_workspaces.reports.v2", "workspace", "a saved wandb workspace")
    expr = needs("wandb_workspaces.expr", "workspace", "a saved wandb workspace")

    class View(made.Workspace):
        """Panels show runs, though the table of runs is grouped: a mean over a study says nothing."""

        def _to_model(self) -> Any:
            view = super()._to_model()
            section = view.spec.section
            for own in (section.settings, *(one.local_panel_settings for one in section.panel_bank_config.sections)):
                own.use_runs_table_grouping_in_panels = False
            return view

    entity, _, short = project.partition("/")
    config, summary = panels.Config, panels.SummaryMetric
    axes = [panels.ParallelCoordinatesPlotColumn(metric=config(axis)) for axis in EVERY]
    values = [panels.ParallelCoordinatesPlotColumn(metric=summary(value)) for value in LINES]
    sections = {
        "Axes and values": (1, [panels.ParallelCoordinatesPlot(columns=[*axes, *values])]),
        "Quality against cost": (3, [_front(panels, *pair) for pair in FRONTS]),
        "Samples, the same seeds of every recipe": (1, [panels.MediaBrowser(media_keys=[PICTURES[0]], num_columns=1)]),
        "Fronts of studies": (2, [panels.MediaBrowser(media_keys=[PICTURES[1]], num_columns=2)]),
    }
    return View(
        entity=entity,
        project=short,
        name=name,
        sections=[
            made.Section(
                name=title,
                panels=own,
                is_open=True,
                layout_settings=made.SectionLayoutSettings(columns=columns, rows=1),
            )
            for title, (columns, own) in sections.items()
        ],
        settings=made.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=made.RunsetSettings(
            groupby=[expr.Config(STUDY)],
            order=[expr.Ordering(expr.Summary(VALUES[0]), ascending=True)],
            pinned_columns=[
                *(f"config:{key}.value" for key in CONFIG),
                *(f"summary:{key}" for key in (*VALUES, *WORDS)),
            ],
        ),
    )


def described(view: Any) -> dict[str, Any]:
    """What would be sent of a view, as plain data."""
    return view._spec


def save(view: Any) -> str:
    """Send a view to wandb as a new one; its address. ConfigError without a login, and with what the server says."""
    if reason := not_ready():
        raise ConfigError(
            f"the workspace cannot be saved: {reason}. Log in where there is a network (wandb login), or look at it "
            "with --dry-run."
        )
    try:
        return view.save().url
    except Exception as error:  # the package's, wandb's, the transport's
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"wandb did not save the workspace of {view.entity}/{view.project}: {said.rstrip('.')}. Allowed: a project "
            "that is there, of an entity that you may write to."
        ) from error


def _front(panels: Any, cost: str, quality: str) -> Any:
    return panels.ScatterPlot(
        title=f"{quality} against {cost}", x=panels.SummaryMetric(cost), y=panels.SummaryMetric(quality), log_x=True
    )
