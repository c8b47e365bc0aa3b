"""What a cache must not mix up: the evaluations of a step, the parts of a batch, its samples.

Each check disturbs the inputs of some rows and looks at the predictions of the others, where every row is to depend on
what was computed for the same slot, part and sample alone. A cache may evaluate more often than planned, where it lacks
what it would reuse, but never take another row's.
"""

from __future__ import annotations

from collections.abc import Callable

from accel.errors import ConfigError, IncompatibleError
from accel.samplers.noise_schedule import is_flow
from accel.testing.bench import Case, differing
from accel.testing.scripted import BOTH, EVERY, Log, predictions

TOLERANCE = 1e-4


def _check(case: Case, plain: Log, moved: Log, own: Callable[[int, str, int], bool], said: str) -> None:
    """`own(slot, part, sample)`: whether its inputs were disturbed."""
    assert plain.keys() == moved.keys()
    touched = [differing(plain[k], moved[k], [plain[k]]) for k in plain if own(*k[1:])]
    assert max(touched) > TOLERANCE, "the check does not work here: disturbed inputs change no prediction"
    for key in plain:
        if not own(*key[1:]) and (off := differing(plain[key], moved[key], [plain[key]])) > TOLERANCE:
            stage, slot, part, sample = key
            raise AssertionError(
                f"{case.label} mixes up {said}: its prediction at stage {stage} (slot {slot}) for sample {sample} of "
                f"part {part!r} changed by {off:.2g} with inputs that it has nothing to do with."
            )


def keeps_slots_apart(case: Case) -> None:
    """Under Heun, what is reused at one evaluation of a step was computed at the same one of an earlier step."""
    for on in case.fitting():
        script = "the conditional rows alone"
        heun = "flow_heun" if is_flow(on.pipe.scheduler.config) else "heun"
        try:
            plain = predictions(case, on, script, sampler=heun)
        except (ConfigError, IncompatibleError):  # an answer, too
            continue
        for slot in (0, 1):
            moved = predictions(case, on, script, [("cond", i) for i in EVERY], slot, heun)
            hint = "the evaluations of a solver step (keep what is stored by clock.slot)"
            _check(case, plain, moved, lambda s, part, sample, slot=slot: s == slot, hint)


def keeps_parts_apart(case: Case) -> None:
    """Conditional and unconditional rows are told apart, however guidance arranges them; but where the method says that
    it joins them (`joins_parts`)."""
    if case.method.joins_parts:
        return
    for on in case.fitting():
        for script in (
            "both halves in one call",
            "both halves in one call, in turns in either order",
            "each half in a call of its own",
            "both halves, then the conditional one alone",
        ):
            plain = predictions(case, on, script)
            for part in BOTH:
                moved = predictions(case, on, script, [(part, i) for i in EVERY])
                hint = f"the parts of a batch, with {script} (keep what is stored by each of inputs.parts)"
                _check(case, plain, moved, lambda slot, p, sample, part=part: p == part, hint)


def keeps_members_apart(case: Case) -> None:
    """Samples are told apart, also where guidance leaves some of them out: in calls of one part each, and in one whose
    parts differ, if the method says that it takes them (`uneven`)."""
    mixed = ("one call, another sample left unguided in it at each step",)
    for on in case.fitting():
        for script in (
            "both halves in one call",
            "ever fewer samples guided",
            "another sample left unguided at each step",
            *(mixed if case.method.uneven else ()),
        ):
            plain = predictions(case, on, script)
            for i in EVERY:
                moved = predictions(case, on, script, [(part, i) for part in BOTH])
                hint = f"the samples of a batch, with {script} (find what is stored by the samples of inputs.blocks)"
                _check(case, plain, moved, lambda slot, part, sample, i=i: sample == i, hint)


CACHE = {"slots": keeps_slots_apart, "parts": keeps_parts_apart, "members": keeps_members_apart}
