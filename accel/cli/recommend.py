"""Recommend a recipe for a model: search, validate on fresh seeds, and write the recipe as a file:

    accel recommend model=<folder or hub id> prompts=prompts.txt reference=<folder of images> budget=60m
    accel recommend model=<folder or hub id> prompts=prompts.txt plan=true       what it would do, and how long
    accel recommend suite=shapes budget=20m                                      a suite that ships

  prompts=          a file with one prompt a line (or COCO captions, .csv, .tsv); none for models without prompts
  reference=        real images: FID and recall are judged. features=inception|dinov2|clip, feature_weights=<file>
  clip=             folder or id of a CLIP model: the CLIP score is judged
                    with neither of them images must stay as the converged sampler draws them, within
                    evaluation.margins.distance
  small=            a smaller model of the same kind, for stitching
  steps=, scale=    what you run today, where it is not the pipeline's own default
  budget=60m        the time for all of it (s, m, h): it decides N and how much is searched
  plan=true         what would be done and how long it takes; ms=<number>: with so many milliseconds an evaluation of
                    the denoiser for one image, in place of measuring them here: a plan for another machine
  to=recommended    the folder of the recipe file            results=outputs     where records and tables go
  suite.*, evaluation.*, search.*, optimiser.*, baseline=    have the last word

The same command again resumes. Exit codes: 0 recommended; 3 nothing could be recommended; 2 the request is wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from accel.cli import recipe
from accel.cli.build import build, check_request
from accel.config import compose, instantiate
from accel.core.silence import silence_libraries
from accel.errors import Refusals
from accel.recommend.answer import answer, told
from accel.recommend.axes import propose
from accel.recommend.request import Wanted, read
from accel.recommend.study import division, draft, judged, overrides, plan_text
from accel.records import Results
from accel.results.comparison import Comparison
from accel.studies.evaluation import MIN_N, Evaluation
from accel.studies.runner import Runner

NOTHING = 3  # exit code


def main(words: Sequence[str]) -> int:
    """`accel recommend <name>=<value> ...`; the exit code."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if {"--help", "-h"} & set(words):
        say(__doc__ or "")
        return 0
    silence_libraries()
    wanted = read(words, _check)
    study = _study(wanted, say)
    if wanted.plan:
        say("Nothing was run or written.")
        return 0
    failed = study.run()
    comparison = Comparison.load(study.results, study.name)
    searched = study.results.load("search", study.results.load("recipe_search", study.name)["search"])
    found = answer(comparison, searched.get("rates", {}))
    say(told(comparison, found, searched))
    if found.recommended is None:
        return NOTHING
    row = found.recommended.quality["id"]
    recipe.main([study.name, row, "--results", wanted.results, "--to", str(wanted.to), *wanted.suite])
    say(f"Next: {following(wanted.to)}")
    say(f"In Python: accel.apply(pipe, {str(wanted.to)!r}), and call pipe as before (docs/deploy.md).")
    return 1 if failed else 0


def following(folder: Path) -> str:
    """What to type next, as a shell takes it."""
    to = shlex.quote(str(folder))
    return f"accel verify {to}; accel generate {to}; accel export {to} --to code"


def _check(wanted: Wanted) -> None:
    """ConfigError with all that is wrong with the model's files and the settings, before anything is timed."""
    words = draft(wanted)
    with Refusals() as refusals:
        cfg = refusals.ask(compose, words)
        if cfg is None:  # the rest is asked about without the words that are refused as such
            said = [str(reason) for reason in refusals.reasons]
            words = [word for word in words if not any(repr(word.partition("=")[0]) in text for text in said)]
            cfg = refusals.ask(compose, words)
        if cfg is not None:
            refusals.ask(check_request, cfg, words)


def _study(wanted: Wanted, say: Any) -> Any:
    """The study, after its plan was shown. The networks that the plan needed are gone when it begins."""
    device, batch = wanted.evaluation("device", "auto"), wanted.evaluation("batch", "64")
    cfg = compose([*wanted.suite, f"evaluation.device={device}", f"evaluation.batch={batch}"])
    suite = instantiate(cfg["suite"])
    few = Evaluation(n=MIN_N, distance_n=MIN_N, device=device, batch=cfg["evaluation"]["batch"])
    runner = Runner(suite, few, Results(wanted.results), say)
    offered = propose(runner, wanted.steps, wanted.scale)
    plan = division(wanted, runner, offered)
    offered = offered.narrowed(plan.precisions)
    known = judged(suite)
    words = overrides(wanted, offered, plan, known)
    study = build(compose(words), words)
    study.brief = True
    say(plan_text(wanted, offered, plan, study, known))
    return study
