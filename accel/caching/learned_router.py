"""Learned caches: a table, trained for one model and sampler, of which modules run at which step.

HarmoniCa: Huang et al. 2024, "HarmoniCa: Harmonizing Training and Inference for Better Feature Caching in Diffusion
Transformer Acceleration" (arXiv:2410.01723). Learning-to-Cache (L2C): Ma et al. 2024 (arXiv:2406.01733).

Each step i and cached module m have a logit r_im with score w = sigmoid(r). Deployed, a module runs where w > threshold
and its last output is reused elsewhere: a fixed table, nothing depends on the input. Trained, it returns

    w F + (1 - w) C,     F its fresh output, C the kept one

and only r learns, from the error of the prediction that the sampler would step with (guided, if there is guidance) to
that of the full network at the same x_t:

    harmonica   all steps but the first may reuse. The whole trajectory is walked from noise, the next x_t is the
                student's own, and a kept output is replaced only where w > threshold, as when deployed, so it may be
                many steps old. loss_i = lambda_i |error|^2 + beta sum_m w_im, one optimiser step each; lambda_i,
                refreshed every `refresh` trajectories, is the mean squared change of the final image when only step i
                follows the table, over its mean across steps.
    l2c         every second step may reuse, always from the full step before it; the next x_t is the full network's.
                loss_i = |error|^2 + beta sum_m w_im.

Deviations. No images are needed: L2C noises real ones, here x_t comes from the full network's own trajectories.
HarmoniCa's code adds up its image errors over cumulative soft masks; here each step is judged alone, with the hard
table. |error|^2 is relative to the prediction's own mean square and the sum over m a mean, so that beta means the same
for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from accel.caching.inheritance import FeatureInheritance
from accel.caching.learning import learned_on
from accel.caching.module_cache import ModuleCache, Shape
from accel.core.artefacts import unlike
from accel.core.denoiser import Denoise, Inputs, Node, Sample, denoiser_name, replaced_forward
from accel.core.guidance import guided
from accel.core.method import Method
from accel.core.recipe import accelerate
from accel.core.threshold import Learned, ThresholdRule, Watched
from accel.digests import settings_digest, weights_digest
from accel.errors import ConfigError, IncompatibleError, check_float, check_int, unknown

# The steps of so many at which everything runs, by objective.
OBJECTIVES: Mapping[str, Callable[[int], list[int]]] = {
    "harmonica": lambda steps: [0],
    "l2c": lambda steps: list(range(0, steps, 2)),
}
CERTAIN = 5.0  # the logit of a step that always runs; logits stay within +-CERTAIN
FREE = 0.993307  # just below the score of CERTAIN: above that these steps would not run, either


@dataclass(frozen=True)
class Table:
    """Modules, and for each step which of them run."""

    modules: tuple[str, ...]
    rows: tuple[tuple[bool, ...], ...]


@dataclass(frozen=True)
class LearnedRouter(ModuleCache):
    """`trajectories` of `batch` samples train it; `beta` weighs what runs against the error; `match`: the modules."""

    objective: str = "harmonica"
    beta: float = 0.005
    threshold: float = 0.1
    trajectories: int = 200
    batch: int = 16
    lr: float = 0.05
    refresh: int = 50
    match: str = r"transformer_blocks\.\d+\.(attn\d?|ff)$"
    fitted: Table | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown("cache.objective", str(self.objective), OBJECTIVES)
        for name in ("beta", "lr"):
            check_float(f"cache.{name}", getattr(self, name), 0.0)
        check_float("cache.threshold", self.threshold, 0.0, 1.0)
        for name in ("trajectories", "batch", "refresh"):
            check_int(f"cache.{name}", getattr(self, name), 1)

    @property
    def label(self) -> str:
        threshold = "" if self.threshold == 0.1 else f",>{self.threshold:g}"
        return f"{self.objective}(beta={self.beta:g}{threshold})"

    @property
    def calibrated(self) -> bool:
        return self.fitted is None

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        if not self.calibrated:
            return None
        words = f"score that {self.objective} learned of each module at each step that may reuse (it runs above)"
        return ThresholdRule(
            "threshold", self.threshold, words, True, FREE, lambda value: replace(self, threshold=value), None,
            self._scores, of_images=False, fixed=True,
        )  # fmt: skip

    def _scores(self, recipe: Any, artefact: Learned) -> Watched:
        if artefact is None:
            raise ConfigError(
                f"the recipe has no scores of {self.label}, so nothing can be said of its threshold; save it with its "
                "artefacts (accel recipe does)."
            )
        free = torch.ones(len(artefact["scores"]), dtype=torch.bool)
        free[OBJECTIVES[self.objective](len(free))] = False
        return None, artefact["scores"][free].flatten().tolist()

    def check(self, nets, recipe) -> None:
        if len(nets) > 1:
            raise IncompatibleError(f"the table of {self.label} is learned for one network; use stitch=none.")
        if recipe.sampler is None:
            raise IncompatibleError(f"the table of {self.label} is learned for a sampler; choose one.")
        for name, net in nets.items():
            self.modules(net, name)

    def modules(self, net: nn.Module, name: str) -> list[str]:
        return FeatureInheritance("unit", self.match).modules(net, name)

    def runs(self, modules: Sequence[str], num_steps: int) -> list[frozenset[str]]:
        if self.fitted is None:
            raise ConfigError(f"the table of {self.label} is still to be learned; run it through `python -m accel`.")
        if tuple(modules) != self.fitted.modules or num_steps != len(self.fitted.rows):
            raise ConfigError(
                f"the table of {self.label} is for {len(self.fitted.rows)} steps of {len(self.fitted.modules)} "
                f"modules; found {num_steps} of {len(modules)}. Learn it again for this sampler."
            )
        pairs = [zip(modules, row, strict=True) for row in self.fitted.rows]
        return [frozenset(name for name, runs in row if runs) for row in pairs]

    def prepared(self, pipe: Any, recipe: Any, artefact: Mapping[str, torch.Tensor] | None = None) -> LearnedRouter:
        if not self.calibrated:
            return self
        if artefact is None:
            raise ConfigError(
                f"the table of {self.label} is still to be learned; run the recipe through `python -m accel` (the "
                "artefact is then below results/artefacts/), or pass artefacts={'cache': cache.calibrate(...)}."
            )
        if other := unlike(artefact, self._made_for(pipe, recipe)):
            raise ConfigError(f"the table of {self.label} was learned for another {other}; learn it again.")
        names = tuple(self.modules(getattr(pipe, denoiser_name(pipe)), "base"))
        rows = tuple(tuple(row) for row in (artefact["scores"] > self.threshold).tolist())
        return replace(self, fitted=Table(names, rows))

    def _made_for(self, pipe: Any, recipe: Any) -> dict[str, torch.Tensor]:
        parts = {"sampler": recipe.sampler, "grid": recipe.grid, "guidance": recipe.guidance}
        model = weights_digest(getattr(pipe, denoiser_name(pipe)))
        return {name: settings_digest(part) for name, part in parts.items()} | {"model": model}

    # training ------------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        pipe: Any,
        recipe: Any,
        sample: Sample,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        artefacts: Mapping[str, Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The artefact: `table` (steps, modules), `scores`, what they are for, and the `loss` of each trajectory.

        `sample(recipe, start, stop)` generates those samples of `pipe`, which runs that recipe meanwhile.
        `artefacts`: what sampler and guidance have learned.
        """
        torch.manual_seed(0)
        training = _Training(self, recipe.guidance_scale)
        plain = learned_on(pipe, recipe, artefacts)
        with accelerate(pipe, replace(plain, cache=training)):
            for done in range(self.trajectories):
                if self.objective == "harmonica" and done % self.refresh == 0 and done:
                    training.weigh(lambda: sample(plain, 0, self.batch))
                sample(plain, self.batch * (done + 1), self.batch * (done + 2))
                on_step(done + 1, self.trajectories)
        scores = training.logits.detach().sigmoid()
        return {
            "scores": scores,
            "table": gate(training.logits.detach(), self.threshold).to(torch.uint8),
            "loss": torch.tensor(training.losses),
            **self._made_for(pipe, recipe),
        }


class _Training(Method):
    """Attached while a router learns: each evaluation is one of the full network, one mixed, and an optimiser step."""

    def __init__(self, router: LearnedRouter, scale: float) -> None:
        self.router, self.scale = router, scale
        self.logits: nn.Parameter | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.losses: list[float] = []
        self.only: int | None = None  # while weights are measured: the step that follows the table, -1 for none
        self.weights: list[float] | None = None

    @property
    def label(self) -> str:
        return "training"

    def weigh(self, sample: Callable[[], torch.Tensor]) -> None:
        """lambda of each step, from whole trajectories in which it alone follows the table."""
        images = {}
        for step in range(-1, len(self.logits)):
            self.only = step
            images[step] = sample().double()
        self.only = None
        change = [float((images[i] - images[-1]).square().mean()) for i in range(len(self.logits))]
        self.weights = step_weights(change)

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        clock, names, router = node.clock, self.router.modules(node.net, node.name), self.router
        mixer = _Mixer(node, names, inner)
        for p in [p for p in node.net.parameters() if p.requires_grad]:
            p.requires_grad_(False)
            node.undo.callback(p.requires_grad_, True)

        def denoise(inputs: Inputs) -> torch.Tensor:
            with torch.inference_mode(False), torch.no_grad():
                inputs, step = inputs.cloned(), clock.step
                if self.logits is None:
                    self._start(clock.num_steps, len(names))
                runs = gate(self.logits[step], router.threshold).tolist()
                running = {name for name, runs_now in zip(names, runs, strict=True) if runs_now}
                if self.only is not None:
                    running = running if step == self.only else set(names)
                    return mixer.run(inputs, dict.fromkeys(set(names) - running, 0.0), running)
                if step in OBJECTIVES[router.objective](clock.num_steps):
                    return mixer.run(inputs, {}, names)
                teacher = mixer.run(inputs, {}, ())
                follows = router.objective == "harmonica"
                with torch.enable_grad():
                    scores = self.logits[step].sigmoid()
                    student = mixer.run(inputs, dict(zip(names, scores, strict=True)), running if follows else ())
                    pair = (guided(prediction, inputs, self.scale) for prediction in (student, teacher))
                    loss = router_loss(*pair, scores, 1.0 if self.weights is None else self.weights[step], router.beta)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.logits.clamp_(-CERTAIN, CERTAIN)
                self.losses.append(float(loss.detach()))
                return student.detach() if follows else teacher

        return denoise

    def _start(self, steps: int, modules: int) -> None:
        logits = torch.randn(steps, modules)
        logits[OBJECTIVES[self.router.objective](steps)] = CERTAIN
        self.logits = nn.Parameter(logits)
        self.optimizer = torch.optim.AdamW([self.logits], lr=self.router.lr, weight_decay=0.0)


def gate(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Whether each module runs, by its logit r: sigmoid(r) > threshold."""
    return logits.sigmoid() > threshold


def mixed(fresh: torch.Tensor, kept: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """w F + (1 - w) C of a module's fresh and kept outputs, of one shape."""
    return weight * fresh + (1 - weight) * kept


def router_loss(
    student: torch.Tensor, teacher: torch.Tensor, scores: torch.Tensor, weight: float, beta: float
) -> torch.Tensor:
    """lambda |student - teacher|^2 / |teacher|^2 + beta mean_m w_m, of predictions (B, C, ...) and scores (M,)."""
    error = (student - teacher).square().mean() / teacher.square().mean()
    return weight * error + beta * scores.mean()


def step_weights(change: Sequence[float]) -> list[float] | None:
    """lambda of each step: the image's change by that step alone over its mean; None where nothing changes."""
    mean = sum(change) / len(change)
    return [c / mean for c in change] if mean > 0 else None


class _Mixer:
    """Modules of one network that return weight * fresh + (1 - weight) * kept output."""

    def __init__(self, node: Node, names: Sequence[str], inner: Denoise) -> None:
        self.node, self.inner = node, inner
        self.kept: dict[tuple, list[torch.Tensor]] = {}
        self.weights: Mapping[str, Any] = {}
        self.keep: Collection[str] = ()
        self.pending: dict[tuple, list[torch.Tensor]] = {}
        node.clock.on_reset(self.kept.clear)
        for name in names:
            module = node.net.get_submodule(name)
            node.undo.enter_context(replaced_forward(module, self._mixing(name, module.forward)))

    def run(self, inputs: Inputs, weights: Mapping[str, Any], keep: Collection[str]) -> torch.Tensor:
        """One evaluation; modules without a weight run plainly, and fresh outputs of `keep` become the kept ones."""
        self.weights, self.keep = weights, keep
        prediction = self.inner(inputs)
        self.kept.update(self.pending)
        self.pending.clear()
        return prediction

    def _mixing(self, name: str, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        clock = self.node.clock

        def mixing(*args: Any, **kwargs: Any) -> Any:
            output, key = forward(*args, **kwargs), (clock.slot, clock.call, name)
            shape, fresh = Shape.of(output)  # joint attention returns two tensors
            if name in self.keep:
                self.pending[key] = [tensor.detach() for tensor in fresh]
            old, weight = self.kept.get(key), self.weights.get(name)
            if weight is None or old is None:
                return output
            return shape.restored([mixed(a, b, weight) for a, b in zip(fresh, old, strict=True)])

        return mixing
