"""Prompt adherence of suite `shapes` by what the prompts ask for, in the spirit of GenEval (arXiv:2310.11513)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from accel.metrics.statistics import Estimate, jackknife
from accel.suites.shapes.adherence import judged
from accel.suites.shapes.captions import Order
from accel.suites.shapes.scene import HELD_OUT, Seen

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
