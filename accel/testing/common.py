"""The contract of every method: it does something, restores everything, repeats itself, leaks nothing, says why not."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass, replace

import torch

from accel.core.recipe import accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.records import canonical, describe
from accel.testing.bench import Case
from accel.testing.snapshots import assert_same, snapshot


def is_a_configuration(case: Case) -> None:
    """A frozen dataclass with a label, whose copy is equal and has the same identity in records."""
    method = case.method
    assert is_dataclass(method), f"{case.label} is no dataclass; its fields are its settings, and part of a record's id"
    assert type(method).__dataclass_params__.frozen, f"{case.label} can be changed; make it @dataclass(frozen=True)"
    again = replace(method, **{f.name: copy.deepcopy(getattr(method, f.name)) for f in fields(method) if f.init})
    assert again == method, f"{case.label} is not equal to a copy of itself"
    assert canonical(describe(again)) == canonical(describe(method)), f"the identity of {case.label} is not stable"
    assert getattr(method, "label", None) or getattr(method, "name", None), "a method needs a label for the tables"


def neutral_setting_changes_nothing(case: Case) -> None:
    """At its neutral setting, if it has one, the result is the plain pipeline's bit for bit."""
    if case.neutral is None:
        return
    on = case.first()
    with_it, without = on.images(case.with_method(case.neutral))[0], on.fresh(case.with_method(None))
    assert torch.equal(with_it, without), f"{case.label} at its neutral setting {case.neutral} changes the result"


def changes_the_result(case: Case) -> None:
    """Guards the other checks: a method that silently does nothing would pass them all."""
    on = case.first()
    with_it, without = (on.fresh(case.with_method(method)) for method in (case.method, None))
    changed = not torch.equal(with_it, without)
    steps = case.recipe.sampler.steps
    assert changed == case.changes, (
        f"{case.label} changes nothing in {steps} steps; give settings that act within so few, or more `steps`"
        if case.changes
        else f"{case.label} changes the result, though it is said not to"
    )


class _Interrupted(Exception):
    pass


def restores_the_pipeline(case: Case) -> None:
    """After the context, also after an exception in mid-trajectory, the pipeline is bit for bit what it was."""
    on = case.first()
    before = on.untouched()
    state = snapshot(on.pipe, on.models.values())
    on.images(case.recipe)
    assert_same(state, snapshot(on.pipe, on.models.values(), copy=False))
    last = [module for module in on.net.modules() if not list(module.children())][-1]

    def interrupt(*args):
        raise _Interrupted

    try:
        with on.accelerated(case.recipe):
            handle = last.register_forward_hook(interrupt)  # in the middle of an evaluation
            try:
                on.generate(case.recipe)
                raise _Interrupted  # a quantised or compiled module does not call the original's hook
            finally:
                handle.remove()
    except _Interrupted:
        pass
    assert_same(state, snapshot(on.pipe, on.models.values(), copy=False))
    assert torch.equal(before, on.plain()), f"after {case.label} the pipeline makes other images than before"


def same_seeds_same_images(case: Case) -> None:
    """The same batch twice is equal bit for bit; a sample alone is what it is in a batch, within the tolerance."""
    on = case.first()
    first, again = on.fresh(case.recipe), on.images(case.recipe)[0]
    assert torch.equal(first, again), f"{case.label} gives other images for the same seeds"
    # Kernels sum in another order for another batch.
    alone = on.images(case.recipe, 1, 2, 1)[0]
    off = float((first[1:2] - alone).abs().max())
    assert off < case.tolerance, f"with {case.label} a sample depends on the others of its batch: {off:.2g} off"


def nothing_leaks(case: Case) -> None:
    """Batches of other sizes, one after the other inside one context, are those of a fresh context each."""
    on = case.first()
    sizes = (2, 1, 2)
    fresh = [on.fresh(case.recipe, n) for n in sizes]
    with on.accelerated(case.recipe):
        inside = [on.generate(case.recipe, 0, n, n) for n in sizes]
    for n, a, b in zip(sizes, fresh, inside, strict=True):
        assert torch.equal(a, b), (
            f"{case.label} keeps something from one batch to the next: a batch of {n} differs from that of a fresh "
            "context; drop what is kept in clock.on_reset"
        )


def refuses_with_a_reason(case: Case) -> None:
    """Where the recipe cannot run, accelerate() says why in a sentence, before anything has changed."""
    for on in case.all():
        if (reason := on.refusal(case.recipe)) is None:
            continue
        assert len(reason) >= 30, f"{case.label} is refused on {on.suite.name} without a reason: {reason!r}"
        state = snapshot(on.pipe, on.models.values())
        try:
            with accelerate(on.pipe, case.recipe, models=on.models):
                raise AssertionError(f"check() of {case.label} refuses, but accelerate() does not: {reason}")
        except (ConfigError, IncompatibleError):
            assert_same(state, snapshot(on.pipe, on.models.values(), copy=False))


COMMON = {
    "configuration": is_a_configuration,
    "refusals": refuses_with_a_reason,
    "restores": restores_the_pipeline,
    "repeats": same_seeds_same_images,
    "leaks": nothing_leaks,
}
AT_DENOISER = {"neutral": neutral_setting_changes_nothing, "changes": changes_the_result}
