"""Guidance by a classifier: its gradient (EluCD) or its opinion alone (GFCG)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import Proportional, dit_pipeline, pixels, run_dit, run_pixels, stable_diffusion
from torch import nn

from accel.caching import DeepCache
from accel.core.recipe import Recipe, accelerate
from accel.errors import ConfigError, IncompatibleError
from accel.guidance import CFG, ClassifierGuidance, GradientFreeClassifierGuidance
from accel.guidance.classifier import evidence, smoothed
from accel.samplers import DiffusersSampler
from accel.suites.digits.flow import DigitsFlowSuite
from accel.suites.mixture import MixtureSuite

DDIM = DiffusersSampler("DDIMScheduler", 4, "ddim", {"set_alpha_to_one": True, "clip_sample": False})
BOTH = [ClassifierGuidance, GradientFreeClassifierGuidance]


class Linear(nn.Module):
    """Logits (B, 3) = W x_0 of two by two pixels, in float64."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


class Told(nn.Module):
    """Logits that were told, whatever the image."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images):
        return self.logits[: len(images)] + 0 * images.mean()


@pytest.fixture
def toy():
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    return pixels(Proportional(num_class_embeds=4), scheduler)


# --- EluCD


def test_gradient_is_that_of_the_evidence(models):
    """Against finite differences, through the shipped classifier in float64."""
    import copy

    classifier = copy.deepcopy(models["classifier"]).double()
    method = ClassifierGuidance(joint_temperature=0.9, margin_discount=0.6, clip=False)
    source = torch.Generator().manual_seed(0)
    x0, direction = torch.randn(2, 3, 1, 16, 16, generator=source, dtype=torch.float64) * 0.4
    labels = torch.tensor([3, 0, 7])

    class Node:
        clock = SimpleNamespace(stage=0)

        def aside(self, name, mode, rows, work):
            assert (name, mode, rows) == ("classifier", "gradient", 3)
            return work()

    node = Node()
    node.classifier = classifier
    with torch.no_grad():
        gradient = method.gradient(node, x0, labels)
        step = 1e-5
        ends = [evidence(classifier(x0 + s * step * direction), labels, 0.9, 0.6) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-8)


def test_evidence_is_joint_over_tempered_margin():
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    found = evidence(logits, torch.tensor([2, 0]), joint_temperature=0.8, margin_discount=0.5)
    first = 0.8 * 0.5 - math.log(math.exp(0.4) + math.exp(-0.8) + math.exp(0.2))
    second = -math.log(1 + math.exp(1.2) + math.exp(0.4))
    torch.testing.assert_close(found, torch.tensor([first, second], dtype=torch.float64))
    plain = evidence(logits, torch.tensor([2, 0]), joint_temperature=1.0, margin_discount=1.0)
    torch.testing.assert_close(plain, logits.log_softmax(1)[[0, 1], [2, 0]])


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("jacobian", ["one", "prior"])
def test_sampling_by_hand(toy, scale, jacobian):
    """x_0 moves by s (1 + sine sin(pi t / T)) times sigma^2 / alpha or sigma^2 times the gradient."""
    classifier, labels = Linear(), (0, 2)
    method = ClassifierGuidance(scale, 0.2, 1.0, 0.5, sine=0.3, jacobian=jacobian, clip=False)
    with accelerate(toy, Recipe(DDIM, guidance=method), models={"classifier": classifier}) as run:
        found = run_pixels(toy, scale, labels)
    scheduler = DDIM.build(toy.scheduler.config)
    scheduler.set_timesteps(4)
    sources = [torch.Generator().manual_seed(i) for i in range(2)]
    x = torch.cat([torch.randn(1, 1, 2, 2, generator=g, dtype=torch.float64) for g in sources])
    for t in scheduler.timesteps:
        a = float(scheduler.alphas_cumprod[t])
        u, c = (toy.unet(x, t, torch.full((2,), y))[0] for y in (3, 0))
        x0 = u + scale * (c - u)
        logits = classifier(x0)
        p = (0.5 * logits).softmax(1)
        gradient = (classifier.weight[list(labels)] - 0.5 * p @ classifier.weight).reshape(x.shape)
        wave = 1 + 0.3 * math.sin(math.pi * float(t) / 1000)
        x0 = x0 + 0.2 * wave * (1 - a) / (a**0.5 if jacobian == "one" else 1.0) * gradient
        x = scheduler.step(x0, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
    assert run.nfe == (4 if scale == 1 else 8), "a classifier is no denoiser"
    assert sum(e.model == "classifier" for e in run.trace) == 4


def test_relu_becomes_softplus_and_the_classifier_stays_what_it_was():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.ReLU(), nn.SiLU()))
    smooth = smoothed(net, 3.0)
    assert [type(m).__name__ for m in smooth.modules() if not list(m.children())] == [
        "Linear", "Softplus", "Softplus", "SiLU",
    ]  # fmt: skip
    assert smooth[1].beta == 3.0
    assert isinstance(net[1], nn.ReLU)
    other = nn.Sequential(nn.SiLU())
    assert smoothed(other, 3.0) is other


def test_the_wanted_class_becomes_more_certain(small, run_small, models):
    labels = tuple(range(10))
    certain = {}
    for strength in (0.0, 2.0):
        method = ClassifierGuidance(strength=strength)
        with accelerate(small, Recipe(DDIM, guidance=method), models=models), torch.no_grad():
            logits = models["classifier"](run_small(1.0, labels))
        certain[strength] = float(logits.log_softmax(1)[range(10), labels].mean())
    assert certain[2.0] > certain[0.0]


def test_macs_of_the_classifier_count(small, run_small, models):
    macs, unused = {}, GradientFreeClassifierGuidance(confident=0.0)
    for name, method in (("none", None), ("elucd", ClassifierGuidance()), ("gfcg", unused)):
        with accelerate(small, Recipe(DDIM, guidance=method), models=models, count_macs=True) as run:
            run_small()
        macs[name] = run.macs
        assert run.nfe == 4
    assert macs["none"] < macs["gfcg"] < macs["elucd"]


def test_a_flow_begins_where_only_the_prior_is_finite(models):
    pipe = DigitsFlowSuite().pipeline()
    euler = DiffusersSampler("FlowMatchEulerDiscreteScheduler", 4)
    with accelerate(pipe, Recipe(euler, guidance=ClassifierGuidance()), models=models):
        found = run_pixels(pipe, labels=(0, 1))
    assert torch.isfinite(found).all()
    with pytest.raises(IncompatibleError, match=r"jacobian=one has no finite value where a flow begins.*=prior"):
        Recipe(euler, guidance=ClassifierGuidance(jacobian="one")).check(pipe, models)


# --- GFCG


def test_reference_and_weight_are_the_classifiers():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [9.0, 0.0, 1.0]], dtype=torch.float64)
    method = GradientFreeClassifierGuidance(strength=2.0, confident=0.99)

    class Node:
        classifier = Told(logits.tolist()).double()
        clock = SimpleNamespace(stage=0)

        def aside(self, name, mode, rows, work):
            return work()

    weight, reference = method.decide(Node(), torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 2, 0]))
    p = logits.softmax(1)
    torch.testing.assert_close(weight, 2.0 * torch.tensor([1 - p[0, 0], 1 - p[1, 2], 0.0], dtype=torch.float64))
    assert reference.tolist() == [1, 1, 2], "the most probable of the other classes"


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_only_unsure_samples_pay_for_a_reference(small, models, scale):
    """By hand: c + (scale - 1) (c - u) + w (c - r) for samples 0 and 2, nothing for the sure sample 1."""
    logits = [[0.0] * 10 for _ in range(3)]
    logits[0][5], logits[1][1], logits[2][8] = 3.0, 30.0, 2.0
    classifier = Told(logits)
    method = GradientFreeClassifierGuidance(scale, 1.5, 0.99)
    with accelerate(small, Recipe(DDIM, guidance=method), models={"classifier": classifier}) as run:
        found = run_pixels(small, scale, (0, 1, 2))
    rows = 3 if scale == 1 else 6
    assert [e.rows for e in run.trace if e.denoiser] == [rows, 2] * 4
    p = torch.tensor(logits).softmax(1)
    weight = 1.5 * torch.tensor([1 - p[0, 0], 0.0, 1 - p[2, 2]]).reshape(3, 1, 1, 1)
    scheduler = DDIM.build(small.scheduler.config)
    scheduler.set_timesteps(4)
    x = torch.cat([torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            u, c, r = (small.unet(x, t, class_labels=torch.tensor(y)).sample for y in ([10] * 3, [0, 1, 2], [5, 1, 8]))
            x = scheduler.step(u + scale * (c - u) + weight * (c - r), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)


def test_features_of_another_class_are_not_cached(pipe, models):
    with pytest.raises(IncompatibleError, match=r"guides with a class that changes from step to step.*cache=none"):
        Recipe(DDIM, guidance=GradientFreeClassifierGuidance(), cache=DeepCache()).check(pipe, models)


# --- both


@pytest.mark.parametrize("method", BOTH)
def test_strength_0_is_cfg_bit_for_bit(small, run_small, models, method):
    for scale in (1.0, 2.0):
        with accelerate(small, Recipe(DDIM, guidance=CFG(scale))):
            wanted = run_small(scale)
        with accelerate(small, Recipe(DDIM, guidance=method(scale, 0.0)), models=models) as run:
            assert torch.equal(run_small(scale), wanted)
        assert all(e.denoiser for e in run.trace)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_both_batch_layouts(method, scale):
    """DiTPipeline stacks (conditional, null); its first class is 7."""
    asked = []

    class Thousand(nn.Module):
        def forward(self, latents):
            asked.append(len(latents))
            return torch.nn.functional.one_hot(torch.tensor([9, 9]), 1000) * 3.0 + 0 * latents.mean()

    pipe = dit_pipeline()
    with accelerate(pipe, Recipe(DDIM, guidance=method(scale, 1.0)), models={"classifier": Thousand()}) as run:
        images = run_dit(pipe, scale)
    assert torch.isfinite(images).all()
    assert asked == [2] * 4
    assert run.nfe == (4 if scale == 1 else 8) + (4 if method is GradientFreeClassifierGuidance else 0)


@pytest.mark.parametrize("method", BOTH)
def test_what_has_no_classifier_or_no_classes_is_refused(pipe, models, method):
    with pytest.raises(IncompatibleError, match="needs a classifier of clean images, and there is none; use a suite"):
        Recipe(DDIM, guidance=method()).check(pipe)
    suite = MixtureSuite()
    assert suite.classifier() is None
    with pytest.raises(IncompatibleError, match="needs a classifier"):
        Recipe(DDIM, guidance=method()).check(suite.pipeline(), suite.networks())
    with pytest.raises(IncompatibleError, match="gets no class labels; use a class-conditional model, or guidance=cfg"):
        Recipe(DDIM, guidance=method()).check(stable_diffusion(), models)


def test_a_classifier_of_fewer_classes_is_an_error(small, run_small):
    classifier = Told([[0.0, 1.0], [0.0, 1.0]])
    for method in BOTH:
        recipe, said = Recipe(DDIM, guidance=method()), r"gives \(2, 2\) for 2 samples with labels up to 7; allowed: "
        with accelerate(small, recipe, models={"classifier": classifier}), pytest.raises(ConfigError, match=said):
            run_small(1.0, (7, 1))


@pytest.mark.parametrize(("method", "setting", "said"), [
    (ClassifierGuidance, {"strength": -1}, "guidance.strength is -1"),
    (ClassifierGuidance, {"scale": 0.0}, "guidance.scale is 0.0"),
    (ClassifierGuidance, {"joint_temperature": -1}, "guidance.joint_temperature is -1"),
    (ClassifierGuidance, {"margin_discount": -1}, "guidance.margin_discount is -1"),
    (ClassifierGuidance, {"softplus_beta": 0}, "guidance.softplus_beta is 0"),
    (ClassifierGuidance, {"sine": -1}, "guidance.sine is -1"),
    (ClassifierGuidance, {"jacobian": "two"}, "unknown guidance.jacobian 'two'"),
    (GradientFreeClassifierGuidance, {"confident": 1.5}, "guidance.confident is 1.5"),
])  # fmt: skip
def test_bad_settings(method, setting, said):
    with pytest.raises(ConfigError, match=said):
        method(**setting)
