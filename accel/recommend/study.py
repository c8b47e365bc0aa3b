"""The study that a recommendation rests on, as overrides: a search over whole recipes, its front validated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accel.config import recipe_by
from accel.grammar import quoted
from accel.recommend.axes import Proposal
from accel.recommend.plan import FRONT, MOST_N, RUNGS, TIMED, Division, divide, kept, known
from accel.recommend.precisions import BATCH, ROUNDS, STEPS, Rates, measured
from accel.recommend.request import Wanted
from accel.registry import load
from accel.studies.estimate import rows_per_image, seconds_per_row
from accel.studies.evaluation import MIN_N
from accel.studies.runner import Runner
from accel.suites.base import Suite

# What the division decides; where the request does, its words hold.
DIVIDED = (
    "evaluation.n=", "evaluation.distance_n=", "evaluation.controls=", "evaluation.timing", "evaluation.repetitions=",
    "evaluation.most_repetitions=", "search.budget=", "search.front=", "search.halving.first=",
)  # fmt: skip
DISTANCE = 0.04  # on -1..1: five grey levels of 255, root mean square


def division(wanted: Wanted, runner: Runner, offered: Proposal) -> Division:
    """How the budget is divided, and what each precision costs; asked again for the same request, what was said
    before."""
    suite = runner.suite
    request = {"words": [*wanted.suite, *wanted.others], "budget": wanted.budget, "baseline": offered.baseline,
               "axes": {axis: list(own) for axis, own in offered.axes.items()}, "weights": suite.fingerprint(),
               "device": str(runner.device)}  # fmt: skip
    root = runner.results.root
    if not wanted.plan and (before := known(root, request)) is not None:
        return before
    today = recipe_by(list(offered.baseline))
    rows, exact = rows_per_image(today), rows_per_image(suite.converged(today.exact_guidance))
    row = seconds_per_row(runner) if wanted.ms is None else wanted.ms / 1000
    choices = offered.axes["precision"][1:]
    if wanted.ms is not None:
        precisions = Rates(
            {}, dict.fromkeys(choices, "what it saves is measured where the search runs, and ms= is not.")
        )
    else:
        precisions = Rates() if _own_cost(wanted) else measured(runner, choices, row, wanted.budget)
    made = divide(wanted.budget, row, rows, exact, _most(suite), precisions)
    return made if wanted.plan else kept(root, request, made)


def _own_cost(wanted: Wanted) -> bool:
    """Whether the request itself says which precisions are searched, or what recipes cost."""
    keys = {word.lstrip("+").partition("=")[0] for word in wanted.others}
    return bool(keys & {"search.axes.precision", "search.cost", "search.rates"})


def _own_rounds(wanted: Wanted) -> bool:
    """Whether the request itself says how many rounds are timed."""
    return any(word.startswith(("evaluation.repetitions=", "evaluation.most_repetitions=")) for word in wanted.others)


def draft(wanted: Wanted) -> list[str]:
    """The study before anything is known of the model, to find what is wrong with the words of the request."""
    nothing = Proposal(("sampler=ddim",), {"sampler": ["sampler=ddim"], "steps": ["sampler.steps=2"]}, {})
    return overrides(wanted, nothing, Division(MIN_N, MIN_N, 1, RUNGS[-1], 0.0), known=True)


def judged(suite: Suite) -> bool:
    """Whether real images, or prompts, say what a recipe loses."""
    return suite.reference() is not None or bool(suite.scoring())


def overrides(wanted: Wanted, offered: Proposal, plan: Division, known: bool) -> list[str]:
    """The study; the words of the request come last. `known`: what `judged` says. If it is False, the images must stay
    what the converged sampler draws: the distance to it is the gate."""
    # An axis of conf/search/recipes.yaml that is not offered is switched off.
    axes = {axis: [f"{axis}=none"] for axis in load("search", "recipes")["axes"]} | dict(offered.axes)
    return [
        *wanted.suite,
        *(word for choice in offered.baseline for word in choice.split()),
        f"baseline={_listed(offered.baseline)}",
        f"study={wanted.name}",
        "title=Recommendation",
        f"results={quoted(wanted.results)}",
        "wandb=disabled",
        "search=recipes",
        "optimiser=nsga2",
        "search.metric=distance",
        f"search.budget={plan.nfe}",
        f"search.halving.first={plan.first}",
        f"search.front={FRONT}",
        "search.beside=false",
        *(f"search.axes.{axis}={_listed(own)}" for axis, own in axes.items()),
        *([f"search.rates={[1.0, *offered.rates.values()]}".replace(" ", "")] if offered.rates else []),
        f"evaluation.n={plan.n}",
        f"evaluation.distance_n={plan.distance_n if known else plan.n}",
        f"evaluation.timing_batch={plan.timing_batch}",
        *(
            []
            if _own_rounds(wanted)
            else [f"evaluation.repetitions={plan.least}", f"evaluation.most_repetitions={plan.most}"]
        ),
        "evaluation.converged=false",
        *([] if known else [f"evaluation.margins.distance={DISTANCE}"]),
        *wanted.others,
    ]


def plan_text(wanted: Wanted, offered: Proposal, plan: Division, study: Any, known: bool) -> str:
    """What will be done, by what it will be judged, and how long it takes."""
    lines = [f"Today: {study.baseline.label}; a recipe has to cost less. What the search is offered:"]
    lines += [f"  {axis:<9} {', '.join(own)}" for axis, own in offered.axes.items()]
    reasons: dict[str, list[str]] = {}
    for choice, why in offered.refused.items():
        reasons.setdefault(why, []).append(choice)
    lines += [f"  not {', '.join(choices)}: {why}" for why, choices in reasons.items()]
    if offered.rates:
        told = ", ".join(f"{choice} {rate:g}" for choice, rate in offered.rates.items())
        lines.append(
            f"Time of a step in that of precision=none, measured now ({ROUNDS} rounds in alternation, {STEPS} steps, "
            f"batch {BATCH} at most): {told}. The search counts MACs by it."
        )
    margins = {key: value for key, value in study.margins.to_dict().items() if value is not None}
    margins = {key: value for key, value in margins.items() if known or key == "distance"}
    given = "as given" if wanted.ms is not None else "measured, with its share of decoding"
    lines += [
        f"An evaluation of the denoiser for one image: {1000 * plan.row:.3g} ms ({given}).",
        f"Search: {plan.nfe:,} evaluations, {_minutes(plan.nfe * plan.row)}.",
        f"Validation: {FRONT} recipes of its front, and plain samplers of their cost, N = {plan.n:,} on fresh seeds: "
        f"at most {(1 + TIMED) * plan.n:,} images, about {plan.validation:,} evaluations, "
        f"{_minutes(plan.validation * plan.row)}.",
        f"Times: {plan.least} to {plan.most} rounds at batch {plan.timing_batch}, {_minutes(plan.timing)}.",
    ]
    lines.append(f"Margins: {', '.join(f'{key} {value:g}' for key, value in margins.items()) or 'none'}.")
    lines.append(f"At most about {_minutes(plan.seconds)} in all, beside scoring.")
    if own := [word for word in wanted.others if word.startswith(DIVIDED)]:
        lines.append(f"In place of what is said above, by the request: {', '.join(own)}.")
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    count = max(1, round(seconds / 60))
    return f"{count} minute{'s' * (count > 1)}"


def _most(suite: Suite) -> int:
    """As many samples as there are prompts."""
    prompts = getattr(suite, "prompts", None)
    few = prompts is not None and getattr(prompts, "path", None) is not None and prompts.beyond == "refuse"
    return min(MOST_N, len(prompts.texts())) if few else MOST_N


def _listed(words: Sequence[str]) -> str:
    return "[" + ",".join(quoted(word) for word in words) + "]"
