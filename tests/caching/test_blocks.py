"""Blocks that are left out by a table: residual paths, counted MACs, which units there are, what is refused."""

from __future__ import annotations

import pytest
import torch

from accel.caching import BlockTable
from accel.caching.blocks import RESIDUALS, units
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.samplers import DiffusersSampler
from tests.caching.test_unet_view import unet_sd
from tests.tiny import dit, dit_pipeline, run_dit

EULER = DiffusersSampler("DEISScheduler", 3, "ddim_accel", {"variant": "tab", "ab_order": 0})


def test_units_are_what_can_be_left_out():
    net, _ = unet_sd()
    names = units(net)
    assert len(names) == 6 + 4 + 2 + 1 + 9 + 6
    assert "mid_block.attentions.0" in names
    assert not [n for n in names if "sampler" in n or "transformer_blocks" in n]
    assert units(dit(layers=3)) == [f"transformer_blocks.{i}" for i in range(3)]


@pytest.mark.parametrize("kind", ["resnets", "attentions"])
def test_a_removed_unit_is_its_residual_path(kind, pipe, run):
    """Also where it is: the hidden state passes an attention as it came, a residual block by its shortcut."""
    names = units(pipe.unet)
    for number in [i for i, n in enumerate(names) if f".{kind}." in n][:: 3 if kind == "resnets" else 2]:
        unit = pipe.unet.get_submodule(names[number])
        seen = []
        inside = unit.conv1 if kind == "resnets" else unit.to_q
        handles = [
            inside.register_forward_hook(lambda *a: pytest.fail("it ran")),
            unit.register_forward_hook(lambda m, args, out, seen=seen: seen.append((args[0], out))),
        ]
        try:
            table = ((number,),) * 3
            with accelerate(pipe, Recipe(EULER, cache=BlockTable(table))) as traced:
                run(steps=3)
            assert [e.mode for e in traced.trace] == ["partial"] * 3
        finally:
            for handle in handles:
                handle.remove()
        for x, out in seen:
            shortcut = getattr(unit, "conv_shortcut", None)
            assert torch.equal(out, x if shortcut is None else shortcut(x))
            assert len(seen) == 3


def test_macs_fall_by_those_of_the_units_that_do_not_run(pipe, run):
    plain, names = Recipe(EULER), units(pipe.unet)

    def macs(recipe) -> float:
        with accelerate(pipe, recipe, count_macs=True) as traced:
            run(steps=3)
        return traced.macs

    one = {i: macs(plain) - macs(Recipe(EULER, cache=BlockTable(((), (i,), ())))) for i in (0, len(names) - 1)}
    assert all(saved > 0 for saved in one.values())
    both = macs(plain) - macs(Recipe(EULER, cache=BlockTable(((), tuple(one), ()))))
    assert both == pytest.approx(sum(one.values()))


@pytest.mark.parametrize("mode", ["remove", "reuse"])
def test_only_the_steps_of_the_table_differ(mode, pipe, run):
    """Trajectories agree up to the first step that leaves something out."""
    states: list[list[torch.Tensor]] = []
    for cache in (None, BlockTable(((), (), (1, 4)), mode)):
        own: list[torch.Tensor] = []
        with accelerate(pipe, Recipe(EULER, cache=cache)):
            handle = pipe.unet.register_forward_hook(lambda m, args, out, own=own: own.append(out[0]))
            try:
                run(steps=3)
            finally:
                handle.remove()
        states.append(own)
    same = [torch.equal(a, b) for a, b in zip(*states, strict=True)]
    assert same == [True, True, False]


def test_a_reused_unit_returns_what_it_computed_last(pipe, run):
    number = 3
    unit = pipe.unet.get_submodule(units(pipe.unet)[number])
    seen: list[torch.Tensor] = []
    with accelerate(pipe, Recipe(EULER, cache=BlockTable(((), (number,), (number,)), "reuse"))):
        handle = unit.register_forward_hook(lambda m, args, out: seen.append(out))
        try:
            run(steps=3)
        finally:
            handle.remove()
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("mode", ["remove", "reuse"])
def test_transformers(mode):
    pipe = dit_pipeline()
    plain = run_dit(pipe, 2.0)
    with accelerate(pipe, Recipe(cache=BlockTable(((), (0,), (1,), ()), mode))):
        changed = run_dit(pipe, 2.0)
    with accelerate(pipe, Recipe(cache=BlockTable(((),) * 4, mode))):
        assert torch.equal(run_dit(pipe, 2.0), plain)
    assert not torch.equal(changed, plain)
    assert torch.equal(run_dit(pipe, 2.0), plain)


def test_conditional_unets():
    """A Transformer2DModel that is left out is the identity, as a tuple or as an output object."""
    x = torch.randn(1, 4, 2, 2)
    for given, unpacked in (({"return_dict": False}, lambda out: out[0]), ({}, lambda out: out.sample)):
        assert torch.equal(unpacked(RESIDUALS["Transformer2DModel"](None, x, given)), x)


REFUSED = {
    "mode": ({"mode": "skip"}, "unknown cache.mode 'skip'"),
    "unit": ({"table": ((-1,),)}, "cache.table is -1"),
    "empty": ({"table": ()}, "cache.table is empty"),
    "first step": ({"table": ((1,), ()), "mode": "reuse"}, "the first step has nothing to reuse"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_settings(case):
    settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        BlockTable(**settings)


def test_tables_that_do_not_fit(pipe):
    count = len(units(pipe.unet))
    with pytest.raises(ConfigError, match=rf"names unit {count}, but 'base' has {count}; allowed: 0\.\.{count - 1}"):
        Recipe(EULER, cache=BlockTable(((), (count,), ()))).check(pipe)
    with pytest.raises(ConfigError, match=r"cache\.table has 2 steps, but the sampler has 3; give one list for each"):
        Recipe(EULER, cache=BlockTable(((), ()))).check(pipe)
    with pytest.raises(IncompatibleError, match="no residual blocks or attentions that could be left out"):
        BlockTable().modules(torch.nn.Linear(2, 2), "base")
