"""What a guidance must get right whatever the pipeline: it finds its halves by name, in either order."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from accel.core.denoiser import Inputs, Node
from accel.core.guidance import CLASSIFIER
from accel.core.trajectory import Trajectory, attach_clock
from accel.testing.bench import Bench, Case, differing
from accel.testing.suites import TinySuite

ORDERS = {"uncond_first": (True, False), "cond_first": (False, True)}  # layout: which halves are the null ones


def finds_its_halves_in_either_order(case: Case) -> None:
    """A pipeline that stacks (null, conditional) and one that stacks (conditional, null) end at the same images."""
    if case.method.pipeline_scale <= 1:
        return  # it gets no doubled batch
    for on in case.fitting():
        if not isinstance(on.suite, TinySuite) or on.suite.kind == "transformer":
            continue
        one, other = (_end(case, on, layout) for layout in ORDERS)
        off = differing(one, other, [one])
        assert off < case.tolerance, (
            f"{case.label} takes one half of the batch for the other where a pipeline stacks the conditional rows "
            f"first: {off:.2g} off; use inputs.take('cond'), halves() and joined()"
        )


def _end(case: Case, on: Bench, layout: str) -> torch.Tensor:
    """x_0 of a pipeline's loop that stacks its batch as `layout` says."""
    made, net, clock = case.recipe, on.net, Trajectory()
    scheduler = made.sampler.prepared(on.pipe, made).build(on.pipe.scheduler.config, made.grid)
    guidance = made.guidance.prepared(on.pipe, made, (on.artefacts(made) or {}).get("guidance"))
    labels, null = torch.tensor([1, 2, 3]), on.pipe.null_label
    both = torch.cat([torch.full_like(labels, null) if is_null else labels for is_null in ORDERS[layout]])
    copies = 2 if layout == "cond_first" else 1  # DiTPipeline hands both halves to its scheduler
    with ExitStack() as undo, torch.no_grad():
        nets = made.nets(on.pipe, on.models)
        nodes = {name: Node(name, own, clock, undo, layout=layout) for name, own in nets.items()}
        evaluate = {name: _evaluation(node) for name, node in nodes.items()}
        base = nodes["base"]
        base.guides = {name: evaluate[name] for name in guidance.models}
        base.classifier = on.models.get(CLASSIFIER)
        denoise = guidance.attach(base, evaluate["base"])
        attach_clock(scheduler, clock, made.sampler.steps, copies)
        guidance.follow(scheduler, base)
        scheduler.set_timesteps(made.sampler.steps)
        config = net.config
        size = (3, config.in_channels, config.sample_size, config.sample_size)
        x = torch.randn(size, generator=torch.Generator().manual_seed(1)).repeat(copies, 1, 1, 1)
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            stacked = x if copies == 2 else torch.cat([x, x])
            scale = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
            inputs = Inputs({"sample": scale(stacked, t), "timestep": t, "class_labels": both}, "sample")
            clock.enter(inputs.rows, t)
            halves = denoise(inputs).chunk(2)
            uncond, cond = halves if layout == "uncond_first" else halves[::-1]
            step_with = uncond + guidance.pipeline_scale * (cond - uncond)
            x = scheduler.step(step_with.repeat(copies, 1, 1, 1), t, x, return_dict=False)[0]
    return x[:3]


def _evaluation(node: Node):
    return lambda inputs: node.evaluate(inputs, node.net.forward)


GUIDANCE = {"halves": finds_its_halves_in_either_order}
