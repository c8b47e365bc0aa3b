"""TeaCache: reuse while the change of the timestep-modulated input, rescaled to that of the output, adds up to little.

Liu et al. 2024, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", CVPR 2025 (arXiv:2411.19108).
With F_t what the first block's attention is given (accel/caching/modulated.py says where, and what stands in its place
in other networks), |.| the mean absolute value and p a polynomial of degree 4:

    r_t = |F_t - F_(t-1)| / |F_(t-1)|,   e_t = p(r_t),   reuse while the sum of e since the last run < threshold

p makes of a change of the input one of what is reused. It depends on the model, and is fitted here on the user's own:
on `samples` of its trajectories, by least squares over all pairs (r_t, |K_t - K_(t-1)| / |K_(t-1)|) of neighbouring
steps, K what is kept (see `reuse`). The fit is an artefact, which says how well p explains the pairs (`r2`).
`coefficients` gives some of one's own, the highest power first; `published` names those of the authors' repository
(PUBLISHED), which belong to another model and are there for comparison. The first and the last step run, as there.

`reuse`: `blocks` keeps what all blocks of a transformer add, as the released code does; UNets, and transformers whose
blocks diffusers does not know, keep the `output`. `auto` (the default) is the first of both that the network has.
Deviations: a fitted p stays within what it was fitted to, where a polynomial of degree 4 would say anything: outside of
those r_t it has the value at their end, and no value below 0 or above the largest change that was seen (a published
one: below 0). Each sample is decided by itself (decision=batch: all together, as released).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from accel.caching.learning import record
from accel.caching.modulated import Modulated, looked_at
from accel.caching.polynomial import DEGREE, PUBLISHED, Polynomial, fit
from accel.caching.step_cache import DECISIONS, Mean, Signal, StepCache, relative_change
from accel.caching.step_reuse import AUTO, KEEPERS, resolved
from accel.caching.step_rows import Rows
from accel.core.artefacts import unlike
from accel.core.denoiser import Block, Denoise, Inputs, Node, Sample, denoiser_name
from accel.core.method import Method
from accel.core.threshold import Learned
from accel.digests import settings_digest, weights_digest
from accel.errors import ConfigError, IncompatibleError, check_int, unknown


@dataclass(frozen=True)
class TeaCache(StepCache):
    """`threshold` of the rescaled change; the `first` and `last` solver steps run; p is fitted on `samples`, or
    given."""

    threshold: float = 0.2
    first: int = 1
    last: int = 1
    decision: str = "per_sample"
    reuse: str = AUTO
    coefficients: Sequence[float] = ()
    published: str = ""
    samples: int = 16
    fitted: Polynomial | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("cache.samples", self.samples, 1)
        object.__setattr__(self, "coefficients", tuple(float(c) for c in self.coefficients))
        if self.published and self.published not in PUBLISHED:
            raise unknown("cache.published", str(self.published), PUBLISHED)
        if self.published and self.coefficients:
            raise ConfigError("cache.published and cache.coefficients both say the polynomial; give one of them.")

    @property
    def label(self) -> str:
        return f"teacache({self.said(*([self.published] if self.published else ['own'] * bool(self.coefficients)))})"

    @property
    def indicator(self) -> str:
        return "rescaled relative change of the modulated input"

    @property
    def given(self) -> Polynomial | None:
        """p, where a setting says it."""
        own = self.coefficients or PUBLISHED.get(self.published, ())
        return Polynomial(tuple(own)) if own else None

    @property
    def calibrated(self) -> bool:
        return self.fitted is None and self.given is None

    def signal(self, node: Node, inner: Denoise) -> Signal:
        return Modulated(node, inner)

    def change(self, past: Rows, now: torch.Tensor, mean: Mean) -> torch.Tensor:
        return (self.fitted or self.given)(relative_change(now, past["seen"], mean))

    def check(self, nets: Mapping[str, nn.Module], recipe: Any) -> None:
        super().check(nets, recipe)
        for name, net in nets.items():
            looked_at(net, name)
        if self.calibrated and len(nets) > 1:
            raise IncompatibleError(f"the polynomial of {self.label} is fitted for one network; use stitch=none.")
        if self.calibrated and recipe.sampler is None:
            raise IncompatibleError(f"the polynomial of {self.label} is fitted for a sampler; choose one.")
        if self.calibrated and recipe.guidance and recipe.guidance.uses_classifier:
            raise IncompatibleError(
                f"the polynomial of {self.label} is fitted on the pipeline alone, and guidance {recipe.guidance.label} "
                "needs a classifier; use another one, or give cache.coefficients=[...]."
            )

    # fit -----------------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        pipe: Any,
        recipe: Any,
        sample: Sample,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        artefacts: Mapping[str, Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The artefact: `coefficients`, their `bounds` (low, high, most), their `r2`, and what they are for; nan where
        trajectories have no two steps. `sample(recipe, start, stop)` generates those samples of `pipe`, which runs that
        recipe meanwhile. `artefacts`: what sampler and guidance have learned."""
        changes = _Changes(self)
        record(pipe, recipe, artefacts, changes, sample, self.samples)
        on_step(1, 1)
        r, change = (
            torch.cat([torch.zeros(0), *(one.cpu() for one in found)]).double()
            for found in (changes.of_signal, changes.of_kept)
        )
        coefficients, r2 = fit(r, change, DEGREE)
        ends = torch.stack([r.min(), r.max(), change.max()]) if len(r) else torch.zeros(3)
        return {"coefficients": coefficients, "bounds": ends, "r2": r2, **self._made_for(pipe, recipe)}

    def prepared(self, pipe: Any, recipe: Any, artefact: Mapping[str, torch.Tensor] | None = None) -> TeaCache:
        if not self.calibrated:
            return self
        made = self.with_numbers(artefact)
        if other := unlike(artefact, self._made_for(pipe, recipe)):
            raise ConfigError(f"the polynomial of {self.label} was fitted for another {other}; fit it again.")
        return made

    def with_numbers(self, artefact: Learned) -> TeaCache:
        if not self.calibrated:
            return self
        if artefact is None:
            raise ConfigError(
                f"the polynomial of {self.label} is still to be fitted; run the recipe through `python -m accel` (the "
                "artefact is then below results/artefacts/), or pass artefacts={'cache': cache.calibrate(...)}, or "
                "cache.coefficients=[...]."
            )
        return replace(self, fitted=Polynomial(tuple(artefact["coefficients"].tolist()), *artefact["bounds"].tolist()))

    def _made_for(self, pipe: Any, recipe: Any) -> dict[str, torch.Tensor]:
        parts = {"sampler": recipe.sampler, "grid": recipe.grid, "guidance": recipe.guidance}
        net = getattr(pipe, denoiser_name(pipe))
        parts |= {"reuse": {"reuse": resolved(self.reuse, net)}}
        return {name: settings_digest(part) for name, part in parts.items()} | {"model": weights_digest(net)}


class _Changes(Method):
    """Attached while the polynomial is fitted: the plain network, and by how much signal and what is kept change."""

    uneven: ClassVar[bool] = True

    def __init__(self, cache: TeaCache) -> None:
        self.cache = cache
        self.of_signal: list[torch.Tensor] = []
        self.of_kept: list[torch.Tensor] = []

    def attach(self, node: Node, inner: Denoise) -> Denoise:
        keep, signal = KEEPERS[resolved(self.cache.reuse, node.net)](node, inner), self.cache.signal(node, inner)
        last: dict[tuple[int, int, tuple[str, ...]], tuple[tuple[Block, ...], torch.Tensor, torch.Tensor]] = {}
        clock = node.clock
        clock.on_reset(last.clear)

        def denoise(inputs: Inputs) -> torch.Tensor:
            now, (prediction, kept) = signal.during(inputs, lambda: keep.run(inputs))
            key = clock.slot, clock.call, inputs.parts
            before, last[key] = last.get(key), (inputs.blocks, now, kept)
            if before is not None and before[0] == inputs.blocks:
                mean = DECISIONS["per_sample"](inputs)
                self.of_signal.append(relative_change(now, before[1], mean))
                self.of_kept.append(relative_change(kept, before[2], mean))
            return prediction

        return denoise
