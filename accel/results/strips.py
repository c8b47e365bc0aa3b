"""What a recipe did at each step, as lines of characters: which network ran, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence

from accel.core.trajectory import Event, NetworkCall

NOTHING = "·"
LETTERS = {"full": "F", "shallow": "s", "decoder": "d", "partial": "p", "reused": "r"}
LEGEND = (
    "F full, s shallow, d decoder alone, p some modules or samples reused, r all reused, · not run; rows: network rows "
    "for each image"
)


def strip(trace: Sequence[NetworkCall], images: int, stages: int, events: Sequence[Event] = ()) -> str:
    """One line for each network, one for the rows; one column for each of the sampler's `stages`.

    A network that is evaluated several times within a column shows its fullest evaluation. Rows of 10 or more, as of
    predictions that are made ahead, are shown as `+`. A last line says what methods decided where.
    """
    if not trace:
        return "nothing was evaluated"
    networks = list(dict.fromkeys(call.model for call in trace))
    width = max(len("step"), len("rows"), *map(len, networks)) + 1
    steps = {call.stage: call.step for call in trace}
    ruler = [steps.get(stage) for stage in range(stages)]
    marks = "".join(_tick(step, ruler[:i]) for i, step in enumerate(ruler))
    lines = [f"{'step':<{width}}{marks.rstrip()}"]
    for network in networks:
        line = [NOTHING] * stages
        for call in trace:
            if call.model == network and line[call.stage] != LETTERS["full"]:
                line[call.stage] = LETTERS.get(call.mode, call.mode[:1])
        lines.append(f"{network:<{width}}{''.join(line)}")
    rows = [sum(call.rows for call in trace if call.stage == stage and call.denoiser) for stage in range(stages)]
    lines.append(f"{'rows':<{width}}{''.join(_digit(count / images) for count in rows)}")
    decided = dict.fromkeys((event.step, event.name) for event in events if event.name not in LETTERS)
    lines += [f"{'':<{width}}step {step}: {name}" for step, name in decided]
    return "\n".join(lines)


def _tick(step: int | None, before: Sequence[int | None]) -> str:
    # The last digit of every fifth step, at its first column.
    return str(step % 10) if step is not None and step % 5 == 0 and step not in before else " "


def _digit(rows: float) -> str:
    return NOTHING if rows == 0 else "+" if rows >= 10 else f"{rows:.0f}"
