"""Studies that several processes share, small enough to be made anew, and all that they leave."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from rich.console import Console

from accel.config import choice_of
from accel.core.recipe import Recipe
from accel.core.seeds import generators
from accel.records import Results
from accel.samplers import DiffusersSampler
from accel.samplers.ode import initial_latents
from accel.studies.evaluation import Evaluation
from accel.studies.study import Study
from accel.suites.mixture import MixtureSuite

EVALUATION = Evaluation(n=64, distance_n=64, shard=16, timing=False, device="cpu")


class Quick(MixtureSuite):
    """The mixture, with an exact solution that takes no time."""

    def converged(self, guidance):
        return euler(20)

    def solve(self, pipe, recipe, seed, a, b):
        return initial_latents(pipe, {"batch_size": b - a, "generator": generators(seed, a, b)}).float() / 100


def euler(steps: int, **axes) -> Recipe:
    return Recipe(DiffusersSampler("EulerDiscreteScheduler", steps, "euler"), **axes)


AG = euler(6, guidance=choice_of("guidance", "ag", "guidance.threshold=0.9"))  # it has controls


def made(root: Path, cells, evaluation=EVALUATION, locks: str = "auto", lease: float = 120.0, **settings) -> Study:
    console = Console(file=io.StringIO(), width=200)
    return Study("s", "t", Quick(), evaluation, Results(root, locks, lease), euler(4), cells, console=console,
                 **{"wandb": "disabled"} | settings)  # fmt: skip


def measured(root: Path) -> dict[str, object]:
    """All that a study leaves, bit for bit, without what is a time or says who made it."""
    found: dict[str, object] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.name.endswith(".lock")):
        if ".workers" in path.parts:
            continue
        content: object = path.read_bytes()
        if path.suffix == ".json":
            content = json.loads(content)
            for key in ("environment", "sha256"):
                content.pop(key, None)
            (content.get("cost") or {}).pop("setup_s", None)
        if "artefacts" in path.parts:  # they hold the seconds that they took
            content = None
        if "tables" in path.parts:  # a column of the seconds of calibrations
            content = re.sub(r"(\| [\d.]+ \|$|(?<=,)\d+\.\d+(?=,|$))", "", path.read_text(), flags=re.M)
        found[path.relative_to(root).as_posix()] = content
    return found


def printed(study: Study) -> str:
    """What a study has printed, without seconds and the lines of its progress."""
    lines = study.console.file.getvalue().replace("alone", "many").splitlines()
    return "\n".join(re.sub(r"[\d.]+ s\.", "", line) for line in lines if "elapsed" not in line)


def rows(study: Study) -> dict[str, dict]:
    return {row["label"]: row for row in study.results.load_study("s")["rows"]}
