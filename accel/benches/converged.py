"""The converged samples that ship with a suite, made again: `accel bench converged [--suite digits]`.

Samples 0..N-1 of the suite's converged recipe without guidance (`Suite.converged`), seed 0, on the CPU in batches of
64, as float32. They never change while weights and recipe stay, and every study of the suite compares with them: what
ships is read in place of 50 evaluations a sample. The file holds them under their generation id, so other weights,
another recipe or seed find nothing in it and make their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from accel.benches.options import Parser
from accel.config import compose, instantiate
from accel.core.recipe import accelerate
from accel.errors import ConfigError, check_int
from accel.evaluation.generate import generate
from accel.files import save_tensors
from accel.records import Results
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner

SAMPLES = 512  # of a study, as long as it says nothing else


def main(words: Sequence[str]) -> int:
    """`accel bench converged`."""
    options = Parser(__doc__, "bench converged")
    options.add_argument("--suite", default="digits")
    options.add_argument("--samples", type=int, default=SAMPLES, help="how many of them (default: %(default)s)")
    args = options.parse_args(words)
    check_int("--samples", args.samples, 1)
    suite = instantiate(compose([f"suite={args.suite}"]).suite)
    if (path := suite.shipped()) is None:
        raise ConfigError(f"--suite is {args.suite}, with which no samples ship; allowed: digits.")
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(suite, Evaluation(device="cpu"), Results(Path(folder)))
        recipe = suite.converged(None)
        with accelerate(runner.pipe, recipe, models=runner.models):
            images = generate(runner.pipe, suite, recipe, 0, 0, args.samples, runner.evaluation.batch)
        save_tensors(path, {runner.generation_id(recipe): suite.stored(images)})
    print(f"{args.samples} converged samples of {suite.name} written to {path}")
    return 0
