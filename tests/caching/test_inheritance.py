"""Module caches: which modules run, what the others return, Taylor forecasts, UNets and transformers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiTTransformer2DModel

from accel.caching import FeatureInheritance
from accel.caching.module_cache import History, Shape
from accel.caching.rows import Kept
from accel.caching.schedules import Explicit, Uniform
from accel.core.denoiser import Inputs, Node
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, IntervalCFG
from accel.samplers import DiffusersSampler
from tests.caching.test_unet_view import unet_sd


def tiny_dit():
    torch.manual_seed(0)
    net = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=3, sample_size=8,
                                patch_size=2, num_embeds_ada_norm=5, norm_num_groups=4)  # fmt: skip
    for p in net.parameters():  # the output layer is zero at the start
        torch.nn.init.normal_(p, std=0.1)
    return net.eval()


def names_of(level: str, net, match: str = "") -> list[str]:
    return FeatureInheritance(level, match).modules(net, "base")


# --- which modules


def test_levels_of_a_unet():
    net, _ = unet_sd()
    blocks, layers, units = (names_of(level, net) for level in ("block", "layer", "unit"))
    assert set(blocks) == {f"{side}_blocks.{i}" for side in ("down", "up") for i in range(3)} | {"mid_block"}
    assert len(layers) == 6 + 4 + 2 + 1 + 9 + 6  # residual blocks and transformers of down, mid and up blocks
    kinds = [name.rsplit(".", 1)[-1] for name in units]
    assert {k: kinds.count(k) for k in set(kinds)} == {"conv1": 17, "conv2": 17, "attn1": 11, "attn2": 11, "ff": 11}


def test_levels_of_a_dit():
    net = tiny_dit()
    assert names_of("block", net) == names_of("layer", net) == [f"transformer_blocks.{i}" for i in range(3)]
    assert names_of("unit", net) == [f"transformer_blocks.{i}.{u}" for i in range(3) for u in ("attn1", "ff")]
    assert names_of("unit", net, r"\.1\.|attn1") == [
        "transformer_blocks.0.attn1", "transformer_blocks.1.attn1", "transformer_blocks.1.ff",
        "transformer_blocks.2.attn1",
    ]  # fmt: skip


REFUSED = {
    "level": ({"level": "units"}, "unit"),
    "order": ({"order": 5}, "cache.order is 5"),
    "window": ({"begin": 0.5, "end": 0.5}, "allowed: begin < end"),
    "expression": ({"match": "("}, "is no regular expression"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        FeatureInheritance(**settings)


def test_what_a_network_lacks_is_refused():
    with pytest.raises(IncompatibleError, match=r"names none of the 6 modules of level unit of base, such as transf"):
        names_of("unit", tiny_dit(), "attn2")
    with pytest.raises(IncompatibleError, match=r"Linear\) has no modules of cache.level=unit"):
        names_of("unit", torch.nn.Linear(2, 2))


# --- trajectories


def test_all_steps_full_is_no_cache(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(4))):
        expected = run()
    for level in ("block", "layer", "unit"):
        with accelerate(pipe, Recipe(ddim(4), cache=FeatureInheritance(level, schedule=Uniform(1)))):
            assert torch.equal(run(), expected)
    assert not [n for n, m in pipe.unet.named_modules() if "forward" in m.__dict__], "nothing is left"


@pytest.mark.parametrize("level", ["block", "layer", "unit"])
def test_macs_are_those_of_what_runs(pipe, run, ddim, level):
    recipe = Recipe(ddim(6), cache=FeatureInheritance(level, schedule=Uniform(3)))
    with accelerate(pipe, recipe, count_macs=True) as traced:
        run()
    assert "".join(e.mode[0] for e in traced.trace) == "fppfpp"
    full, partial = traced.trace[0].macs, traced.trace[1].macs
    assert {e.macs for e in traced.trace} == {full, partial}
    assert partial < {"block": 0.1, "layer": 0.2, "unit": 0.35}[level] * full


def test_window_bounds_the_steps_that_inherit(pipe, run, ddim):
    recipe = Recipe(ddim(8), cache=FeatureInheritance("layer", schedule=Uniform(8), begin=0.25, end=0.75))
    with accelerate(pipe, recipe) as traced:
        run()
    assert "".join(e.mode[0] for e in traced.trace) == "ffppppff"


def test_heun_keeps_outputs_for_each_stage(pipe, run):
    recipe = Recipe(DiffusersSampler("HeunDiscreteScheduler", 4), cache=FeatureInheritance("layer"))
    with accelerate(pipe, recipe) as traced:
        run()
    assert "".join(e.mode[0] for e in traced.trace) == "ffppffp"


def test_guidance_that_begins_runs_everything(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(6), guidance=CFG(2.0))) as probe:
        run(2.0)
    cut = (probe.trace[2].sigma + probe.trace[3].sigma) / 2
    cache = FeatureInheritance("layer", schedule=Uniform(6))
    for guidance, modes in ((IntervalCFG(2.0, sigma_hi=cut), "fppfpp"), (IntervalCFG(2.0, sigma_lo=cut), "fppppp")):
        with accelerate(pipe, Recipe(ddim(6), guidance=guidance, cache=cache)) as traced:
            run(2.0)
        assert "".join(e.mode[0] for e in traced.trace) == modes


def test_state_is_that_of_the_run(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(6), cache=FeatureInheritance("unit", order=2, schedule=Uniform(2)))) as traced:
        first = run()
        run(count=3, first=5)
        assert torch.equal(run(), first)
        assert not any(drop.__self__ for drop in traced.clock._resets)


# --- transformers


class Clock:
    """A clock of the tests: the step is set by hand."""

    def __init__(self, steps: int) -> None:
        self.num_steps, self.step, self.slot, self.call = steps, 0, 0, 0
        self.modes = []

    def on_reset(self, reset):
        pass

    def note(self, name, mode, rows, macs, denoiser=True):
        self.modes.append(mode)


def denoised(net, cache, steps: int, inputs):
    """Predictions of steps 0..steps-1 on inputs(step), and the modes."""
    from contextlib import ExitStack

    with ExitStack() as undo, torch.no_grad():
        node = Node("base", net, Clock(steps), undo)
        forward = net.forward
        denoise = cache.attach(node, lambda i: node.evaluate(i, forward))
        results = []
        for step in range(steps):
            node.clock.step = step
            x, t = inputs(step)
            kwargs = {"hidden_states": x, "timestep": torch.tensor([t, t]), "class_labels": torch.tensor([1, 2])}
            results.append(denoise(Inputs(kwargs, "hidden_states")))
    return results, node.clock.modes


def test_fora_reuses_branches_on_the_current_input():
    """By hand: the block's own gates and residuals, the branches of the last full step."""
    net, xs = tiny_dit(), [torch.randn(2, 1, 8, 8) for _ in range(2)]
    (_, found), modes = denoised(net, FeatureInheritance("unit"), 2, lambda s: (xs[s], 900 - 100 * s))
    assert modes == ["full", "partial"]
    outputs = {}
    units = names_of("unit", net)
    hooks = [net.get_submodule(n).register_forward_hook(lambda m, a, o, n=n: outputs.update({n: o})) for n in units]
    call = {"class_labels": torch.tensor([1, 2]), "return_dict": False}
    with torch.no_grad():
        net(xs[0], timestep=torch.tensor([900, 900]), **call)
        stored = dict(outputs)
        for hook in hooks:
            hook.remove()
        hooks = [net.get_submodule(n).register_forward_hook(lambda m, a, o, n=n: stored[n]) for n in units]
        (expected,) = net(xs[1], timestep=torch.tensor([800, 800]), **call)
        for hook in hooks:
            hook.remove()
        (fresh,) = net(xs[1], timestep=torch.tensor([800, 800]), **call)
    assert torch.equal(found, expected)
    assert not torch.equal(found, fresh)


def test_inherited_block_ignores_the_sample():
    net, xs = tiny_dit(), [torch.randn(2, 1, 8, 8) for _ in range(2)]
    results = [
        denoised(net, FeatureInheritance("block"), 2, lambda s, x=x: ((xs[0], x)[s], 900 - 100 * s))[0][1]
        for x in (xs[1], torch.randn_like(xs[1]))
    ]
    assert torch.equal(*results)


# --- forecasts


@pytest.mark.parametrize("order", [1, 2, 3])
def test_forecast_is_exact_for_lines(order):
    """A function that is linear in the step has no higher differences."""
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    history = History(Shape(None))
    for step in (0, 2, 5, 8):
        history.add(step, Kept((a + b * step,), None), order)
    assert len(history.factors) == order + 1
    torch.testing.assert_close(history.at(11).tensors[0], a + 11 * b, atol=1e-4, rtol=1e-4)


def test_forecast_is_the_paper_s_formula():
    """Unevenly spaced runs at 0, 1, 4 of y = 1, 3, 2: D_1 = -1/3, D_2 = (-1/3 - 2) / 3."""
    history = History(Shape(None))
    for step, y in ((0, 1.0), (1, 3.0), (4, 2.0)):
        history.add(step, Kept((torch.tensor([y]),), None), 2)
    expected = 2 - 2 / 3 + (-7 / 9) * 2**2 / 2
    assert float(history.at(6).tensors[0]) == pytest.approx(expected)


def test_orders_grow_with_the_runs_and_start_anew_for_other_rows():
    history = History(Shape(None))
    for step in range(3):
        history.add(step, Kept((torch.ones(2),), None), 5)
        assert len(history.factors) == step + 1
    history.add(3, Kept((torch.ones(2),), (1, 2)), 5)
    assert len(history.factors) == 1


def test_rows_that_stay_keep_their_orders_where_others_go():
    """Two lines at steps 0, 2, 3; only the second one is evaluated at the last."""
    a, b = torch.tensor([1.0, 5.0]), torch.tensor([2.0, -3.0])
    history = History(Shape(None))
    for step in (0, 2):
        history.add(step, Kept((a + b * step,), None), 1)
    history.add(3, Kept(((a + b * 3)[1:],), (1,)), 1)
    forecast = history.at(5)
    assert forecast.members == (1,)
    torch.testing.assert_close(forecast.tensors[0], (a + b * 5)[1:])


def test_forecast_beats_reuse_on_a_smooth_trajectory(pipe, run, ddim):
    with accelerate(pipe, Recipe(ddim(20))):
        exact = run(count=4)

    def error(order):
        cache = FeatureInheritance("unit", schedule=Explicit((0, 1, *range(3, 20, 2))), order=order)
        with accelerate(pipe, Recipe(ddim(20), cache=cache)):
            return float((run(count=4) - exact).square().mean().sqrt())

    assert error(1) < error(0)


def test_nested_outputs_come_back_as_they_were():
    output = (torch.ones(2), (torch.zeros(2), [torch.ones(1), None]))
    shape, tensors = Shape.of(output)
    assert len(tensors) == 3
    restored = shape.restored(tensors)
    assert restored[0] is output[0]
    assert restored[1][1][0] is output[1][1][0]
    assert restored[1][1][1] is None
