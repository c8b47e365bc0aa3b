"""conf/plain/<suite>.yaml from the study plain_<suite>: the plain samplers that recipes are held against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accel.config import CONF, compose, expand_cells, recipe_of, resolved
from accel.files import write_atomic
from accel.records import Results
from accel.results.comparison import Comparison
from accel.results.plain_front import chosen

PREFIX = "plain_"
HEAD = """# What recipes for {suite} are held against, found by experiment={study} on seed {seed}, N = {n}, where
# nothing else is evaluated: for each number of steps the sampler and grid that can lose least against the conventional
# sampler; `best`: the fewest steps that are non-inferior in FID and worse in nothing. `accel rebuild plain` writes this
# file; all that was tried: results/tables/{study}.md.
"""


def write_plain(results: Results, conf: Path = CONF) -> Iterator[Path]:
    """Write the file of each suite whose plain samplers were tried."""
    for name in results.studies():
        if name.startswith(PREFIX):
            path = conf / "plain" / f"{name.removeprefix(PREFIX)}.yaml"
            write_atomic(path, text_of(results, name).encode())
            yield path


def text_of(results: Results, name: str) -> str:
    """The file's text: conventional, front and best."""
    study, cfg = Comparison.load(results, name), compose([f"experiment={name}"])
    spelled = {
        recipe_of(compose([f"experiment={name}", *own])).label: own for own in expand_cells(resolved(cfg)["cells"])
    }
    found = chosen(study)
    own = [[o for o in spelled[row.label] if not o.endswith("=none")] for row in found.rows]
    conventional = [o for o in resolved(cfg)["baseline"] if o.startswith(("sampler", "grid"))]
    lines = [f"  - [{', '.join(overrides)}]" for overrides in own]
    head = HEAD.format(suite=study.suite, study=name, seed=cfg.evaluation.seed, n=cfg.evaluation.n)
    best = found.best.quality["axes"]["steps"] if found.best else "null"
    return "\n".join([f"{head}conventional: [{', '.join(conventional)}]", "front:", *lines, f"best: {best}", ""])
