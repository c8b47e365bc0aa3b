"""Prompt adherence of suite `shapes` by what the prompts ask for, in the spirit of GenEval (arXiv:2310.11513)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from accel.benches.adherence_table import write_adherence
from accel.benches.options import parser
from accel.core.environment import environment, provenance
from accel.guidance import CFG
from accel.metrics.statistics import Estimate, jackknife
from accel.records import Results, digest
from accel.studies.evaluation import Evaluation
from accel.studies.runner import Runner
from accel.suites.shapes import ShapesSuite
from accel.suites.shapes.adherence import detect, judged
from accel.suites.shapes.captions import Order, wanted
from accel.suites.shapes.scene import HELD_OUT, Seen
from accel.suites.shapes.suite import detector

LEAST = 40  # prompts of a row


def adherence(orders: Sequence[Order], found: Sequence[Sequence[Seen]]) -> dict[str, Estimate]:
    """Shares, with intervals over prompts (delete-group jackknife), of what pictures with the objects `found` show of
    what `orders` ask for; rows of fewer than LEAST prompts are left out.

    Of objects: sum over prompts of those right / sum of those wanted.
    """
    verdicts = [judged(order, seen) for order, seen in zip(orders, found, strict=True)]
    placed = [[t.place is not None for t in o.things] for o in orders]
    related = [[i in {b for _, _, b in o.relations} for i in range(len(o.things))] for o in orders]
    new = [[(t.shape, t.colour) in HELD_OUT for t in o.things] for o in orders]
    objects = {
        "objects right": [[True] * len(o.things) for o in orders],
        **{
            f"of prompts of {name}": [[len(o.things) == count] * len(o.things) for o in orders]
            for count, name in ((1, "one object"), (2, "two objects"), (3, "three objects"))
        },
        "with their place said": placed,
        "in a relation said": related,
        "of a shape and colour seen together in training": [[not u for u in row] for row in new],
        "of a shape and colour never seen together": new,
    }
    counted = {
        name: [(sum(g and m for g, m in zip(good, mask, strict=True)), sum(mask)) for (good, _), mask in zip(
            verdicts, masks, strict=True)]
        for name, masks in objects.items()
    }  # fmt: skip
    counted["pictures with the right number of objects"] = [
        (int(len(o.things) == len(f)), 1) for o, f in zip(orders, found, strict=True)
    ]
    counted["pictures exact in every detail said"] = [(int(exact), 1) for _, exact in verdicts]
    return {name: made for name, pairs in counted.items() if (made := _share(pairs))}


def _share(pairs: Sequence[tuple[int, int]]) -> Estimate | None:
    good, wanted = np.array([p for p in pairs if p[1]], float).reshape(-1, 2).T
    if len(good) < LEAST:
        return None
    return jackknife(lambda kept: good[kept].sum() / wanted[kept].sum(), len(good))


def main(words: Sequence[str]) -> None:
    """`accel bench adherence`: the converged sampler's; a record and tables/adherence_shapes.md."""
    options = parser(__doc__, "bench adherence")
    options.add_argument("--weights", default=None, help="a folder of weights (default: those that ship)")
    options.add_argument("--n", type=int, default=512)
    options.add_argument("--scale", type=float, default=3.0, help="guidance scale")
    args = options.parse_args(words)
    suite = ShapesSuite(weights=args.weights) if args.weights else ShapesSuite()
    runner = Runner(suite, Evaluation(n=args.n, distance_n=args.n), Results(args.results), print)
    recipe = suite.converged(CFG(args.scale))
    judge = detector(suite.weights)

    def seen(images, conditions):
        found = [seen for x in images.split(64) for seen in detect(judge, suite.to_uint8(x))]
        return adherence([wanted(text) for text in conditions["prompt"]], found)

    generated = seen(runner.shards(recipe, args.n)["images"], suite.conditions(0, args.n))
    real, captions = suite.held_out()
    identity = {"samples": runner.generation_id(recipe), "n": args.n, "reference": suite.reference_identity()}
    record = {
        "kind": "adherence",
        "id": digest(identity),
        "made": time.time(),
        "label": recipe.label,
        "n": args.n,
        "seed": runner.evaluation.seeds[0],
        "real_n": len(real),
        "rows": list(generated),  # in order
        "generated": {name: e.to_dict() for name, e in generated.items()},
        "real": {name: e.to_dict() for name, e in seen(real, captions).items()},
        "environment": environment(runner.device) | provenance(),
    }
    runner.results.save(record)
    for path in write_adherence(runner.results):
        print(path.read_text())
