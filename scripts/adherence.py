"""Prompt adherence of the converged sampler on suite shapes: a record and tables/adherence_shapes.md."""

from __future__ import annotations

import argparse
import time

from accel.evaluation.adherence import adherence
from accel.evaluation.environment import environment, provenance
from accel.guidance.cfg import CFG
from accel.results.adherence import write_adherence
from accel.results.records import Results, digest
from accel.runner import Evaluation, Runner
from accel.suites.shapes import ShapesSuite, detector
from accel.suites.shapes_adherence import detect
from accel.suites.shapes_captions import wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="outputs")
    parser.add_argument("--weights", default=None, help="a folder of weights (default: those of the repository)")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale")
    args = parser.parse_args()
    suite = ShapesSuite(weights=args.weights) if args.weights else ShapesSuite()
    runner = Runner(suite, Evaluation(n=args.n, distance_n=args.n), Results(args.results), print)
    recipe = suite.converged(CFG(args.scale))
    judge = detector(suite.weights)

    def judged(images, conditions):
        found = [seen for x in images.split(64) for seen in detect(judge, suite.to_uint8(x))]
        return adherence([wanted(text) for text in conditions["prompt"]], found)

    generated = judged(runner.shards(recipe, args.n)["images"], suite.conditions(0, args.n))
    real, captions = suite.held_out()
    identity = {"samples": runner.generation_id(recipe), "n": args.n, "reference": suite.reference_identity()}
    record = {
        "kind": "adherence",
        "id": digest(identity),
        "made": time.time(),
        "label": recipe.label,
        "n": args.n,
        "seed": runner.evaluation.seed,
        "real_n": len(real),
        "rows": list(generated),  # in order
        "generated": {name: e.to_dict() for name, e in generated.items()},
        "real": {name: e.to_dict() for name, e in judged(real, captions).items()},
        "environment": environment(runner.device) | provenance(),
    }
    runner.results.save(record)
    for path in write_adherence(runner.results):
        print(path.read_text())


if __name__ == "__main__":
    main()
