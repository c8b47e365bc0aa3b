"""Classifier guidance with an off-the-shelf classifier of clean images (EluCD).

Ma, Hu, Wang & Sun 2023, "Elucidating the Design Space of Classifier-Guided Diffusion Generation", ICLR 2024
(arXiv:2310.11311). A classifier f that never saw noise looks at the prediction of x_0, and the gradient is taken at it,
not through the denoiser. From the paper and the authors' released code:

    g = grad_{x_0} ln [ exp(tau_1 f_y(x_0)) / sum_k exp(tau_2 f_k(x_0)) ],   x_0 clipped to [-1, 1] first
    tau_1: `joint_temperature`; tau_2 = tau_1 * `margin_discount`, below tau_1 because the joint part is more reliable
    ReLU -> Softplus(`softplus_beta`), so that the gradient is smooth
    DDPM: mean += (variance + `sine` max_variance sin(pi t / T)) s g;   DDIM: eps_g = eps - s sigma g

Our reading, for deterministic samplers of any kind: x_0 is moved by s w(t) h g with w(t) = 1 + `sine` sin(pi t / T),
the ratio of both terms taken at the largest variance. `jacobian=one` is the code's DDIM form, h = sigma^2 / alpha: it
takes g for the gradient at x, as if dx_0/dx were 1, and grows without limit where alpha -> 0 (a flow begins there, and
is refused). `jacobian=prior`, the default, keeps the chain rule with dx_0/dx = alpha / (alpha^2 + sigma^2), exact for
data of unit variance: h = sigma^2 / (alpha^2 + sigma^2). The two agree at low noise.

x_0 is that of u + scale (c - u), or of the conditional prediction alone with scale 1, as in the paper; the same change
goes to both halves, so that the pipeline steps with u + scale (c - u) + change. One classifier pass forwards and back
an evaluation; its MACs are counted, it is no NFE. Shapes: predictions (B or 2 B, C, ...), logits (B, K).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from accel.core.denoiser import Inputs, Node, signature_of
from accel.core.guidance import Scaled, guided
from accel.errors import ConfigError, IncompatibleError, check_float, unknown
from accel.guidance.spaces import latents, level, own, shifted
from accel.samplers.noise_schedule import is_flow

# h of (alpha, sigma): what a gradient at x_0 is multiplied by, for dx_0/dx = alpha / (alpha^2 + sigma^2) or 1.
JACOBIANS: Mapping[str, Callable[[float, float], float]] = {
    "prior": lambda alpha, sigma: sigma**2 / (alpha**2 + sigma**2),
    "one": lambda alpha, sigma: sigma**2 / alpha,
}
CLASSES = ("num_class_embeds", "num_embeds_ada_norm")  # config entries of denoisers that get `class_labels`


@dataclass(frozen=True)
class ByClassifier(Scaled):
    """Common part of guidances that ask the suite's classifier: CFG of `scale` below (1: the conditional model)."""

    scale: float = 1.0
    strength: float = 1.0
    uses_classifier: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("guidance.strength", self.strength, 0.0)

    @property
    def neutral(self) -> bool:
        return self.strength == 0.0

    def check(self, nets, recipe) -> None:
        super().check(nets, recipe)
        base = nets["base"]
        if "class_labels" not in signature_of(base).parameters or not any(base.config.get(k) for k in CLASSES):
            raise IncompatibleError(
                f"guidance {self.label} asks a classifier about the class of each row, but {type(base).__name__} gets "
                "no class labels; use a class-conditional model, or guidance=cfg."
            )


@dataclass(frozen=True)
class ClassifierGuidance(ByClassifier):
    """EluCD: `strength` times the gradient of the classifier at the predicted x_0."""

    joint_temperature: float = 1.0
    margin_discount: float = 0.5
    softplus_beta: float = 3.0
    sine: float = 0.3
    jacobian: str = "prior"
    clip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_float("guidance.joint_temperature", self.joint_temperature, 0.0)
        check_float("guidance.margin_discount", self.margin_discount, 0.0)
        check_float("guidance.softplus_beta", self.softplus_beta, 1e-3)
        check_float("guidance.sine", self.sine, 0.0)
        if self.jacobian not in JACOBIANS:
            raise unknown("guidance.jacobian", str(self.jacobian), JACOBIANS)

    @property
    def label(self) -> str:
        below = f"cfg{self.scale:g}+" if self.scale > 1 else ""
        return f"{below}elucd{self.strength:g}"

    def check_around(self, scheduler, models) -> None:
        super().check_around(scheduler, models)
        if self.jacobian == "one" and is_flow(scheduler.config):
            raise IncompatibleError(
                "guidance.jacobian=one has no finite value where a flow begins, at alpha = 0; use jacobian=prior."
            )

    def attach(self, node, inner):
        node.classifier = node.classifier and smoothed(node.classifier, self.softplus_beta)
        return super().attach(node, inner)

    def guide(self, inputs, inner, node):
        prediction = inner(inputs)
        if self.neutral:
            return prediction
        rows, at = conditional(inputs), level(node.clock)
        x = latents(rows, prediction)
        x0 = at.to("x0", own(guided(prediction, inputs, self.scale), x), x)
        gradient = self.gradient(node, x0, rows.kwargs["class_labels"])
        wave = sine_weight(node.clock.timestep, node.clock.scheduler.config.num_train_timesteps, self.sine)
        moved = elucd(gradient, self.strength, wave, JACOBIANS[self.jacobian](at.alpha, at.sigma))
        change = at.change("x0", moved)
        return shifted(prediction, change.repeat(len(inputs.parts), *[1] * (change.ndim - 1)))

    def gradient(self, node: Node, x0: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """g (B, C, ...) at x_0 (B, C, ...) for `labels` (B,)."""

        def work() -> torch.Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                at = x0.detach().clone()
                at = (at.clamp(-1, 1) if self.clip else at).requires_grad_()
                # A copy, because the hooks that count MACs take no leaves of the graph.
                logits = logits_of(node, at.clone(), labels)
                value = evidence(logits, labels, self.joint_temperature, self.margin_discount).sum()
                return torch.autograd.grad(value, at)[0]

        return node.aside("classifier", "gradient", len(x0), work).to(x0.dtype)


def evidence(
    logits: torch.Tensor, labels: torch.Tensor, joint_temperature: float, margin_discount: float
) -> torch.Tensor:
    """ln [exp(tau_1 f_y) / sum_k exp(tau_2 f_k)] (B,) of logits f (B, K) and labels y (B,); tau_2 = tau_1 discount."""
    joint = joint_temperature * logits.gather(1, labels[:, None])[:, 0]
    return joint - torch.logsumexp(joint_temperature * margin_discount * logits, 1)


def sine_weight(timestep: float, timesteps: int, sine: float) -> float:
    """w(t) = 1 + sine sin(pi t / T), T training timesteps."""
    return 1 + sine * math.sin(math.pi * timestep / timesteps)


def elucd(gradient: torch.Tensor, strength: float, wave: float, posterior: float) -> torch.Tensor:
    """The move of x_0: s w(t) h g (B, C, ...), g the gradient of the evidence, h one of JACOBIANS."""
    return strength * wave * posterior * gradient


def conditional(inputs: Inputs) -> Inputs:
    """The conditional rows of a call, doubled or not."""
    return inputs.take("cond")


def logits_of(node: Node, x0: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (B, K) of the node's classifier at x_0 (B, C, ...); ConfigError if the labels are not among the classes
    (read at a trajectory's first evaluation alone, because reading waits for the GPU)."""
    weight = next(node.classifier.parameters(), x0)
    logits = node.classifier(x0.to(weight.dtype)).to(x0.dtype)
    if logits.ndim != 2 or (node.clock.stage == 0 and int(labels.max()) >= logits.shape[1]):
        raise ConfigError(
            f"the classifier gives {tuple(logits.shape)} for {len(x0)} samples with labels up to {int(labels.max())}; "
            "allowed: one logit for each class of the model."
        )
    return logits


def smoothed(classifier: nn.Module, beta: float) -> nn.Module:
    """A copy of the classifier with Softplus(beta) for every ReLU; itself where there is none."""
    found = [name for name, module in classifier.named_modules() if isinstance(module, nn.ReLU)]
    if not found:
        return classifier
    smooth = copy.deepcopy(classifier)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(smooth.get_submodule(parent), last, nn.Softplus(beta))
    return smooth
