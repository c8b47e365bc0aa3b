"""DC-Solver as a recipe's sampler: UniPC whose compensation ratios are searched, predicted, loaded or given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from accel.core.artefacts import unlike
from accel.core.denoiser import denoiser_name
from accel.core.recipe import Recipe, accelerate
from accel.core.sampler import Sampler
from accel.digests import settings_digest, weights_digest
from accel.errors import ConfigError, IncompatibleError, check_int
from accel.files import load_tensors
from accel.guidance.cfg import CFG
from accel.samplers.dc_solver import DCSolverScheduler
from accel.samplers.grids import Grid
from accel.samplers.predictor import Predictor
from accel.search.cascade import Cascade
from accel.search.ratios import RatioSearch, search_ratios

SEARCH = "search"


@dataclass(frozen=True)
class DCSolver(Sampler):
    """UniPC of order `order` with dynamic compensation (`accel.samplers.DCSolverScheduler`).

    `ratios`: `search` finds them for this model, grid, number of steps and guidance when they are first needed; a list
    gives one number a step; a `.safetensors` file holds those of an earlier search and is refused for any other model,
    grid or guidance scale; a `.json` file holds a cascade regression, which predicts them from steps and scale.
    `corrector` false leaves the predictor alone: with order 1 compensation for DDIM, with order 2 for DPM-Solver++(2M).
    """

    steps: int
    order: int = 2
    solver_type: str = "bh2"
    corrector: bool = True
    dc_order: int = 2
    ratios: str | tuple[float, ...] = SEARCH
    search: RatioSearch = field(default_factory=RatioSearch)
    name: str = "dc_solver"

    def __post_init__(self) -> None:
        check_int("sampler.steps", self.steps, 1)
        if not isinstance(self.ratios, str):
            object.__setattr__(self, "ratios", tuple(self.ratios))
        elif self.ratios != SEARCH and not self.ratios.endswith((".safetensors", ".json")):
            raise ConfigError(
                f"sampler.ratios is {self.ratios!r}; allowed: search, a list of one number a step, or the path of a "
                ".safetensors (searched ratios) or .json (cascade regression) file."
            )

    @property
    def label(self) -> str:
        how = "" if self.ratios == SEARCH else "(cascade)" if str(self.ratios).endswith(".json") else "(given)"
        return f"{self.name}{how}-{self.steps}"

    @property
    def calibrated(self) -> bool:
        return self.ratios == SEARCH

    def build(self, config: Mapping[str, Any], grid: Grid | None = None) -> DCSolverScheduler:
        """The scheduler; ratios that are still to be found count as 1."""
        own = {
            "solver_order": self.order,
            "solver_type": self.solver_type,
            "corrector": self.corrector,
            "dc_order": self.dc_order,
            "compensation_ratios": None if isinstance(self.ratios, str) else list(self.ratios),
            "predict_x0": True,
            "thresholding": False,
            "timestep_spacing": "trailing",
            "disable_corrector": None,
            "lower_order_final": True,
        }
        scheduler = DCSolverScheduler.from_config(
            dict(config), **own | (grid.options(DCSolverScheduler) if grid else {})
        )
        dynamic = scheduler.config.use_dynamic_shifting
        if dynamic and self.calibrated:
            raise IncompatibleError(
                f"the pipeline shifts its timesteps by the size of the image, which the ratio search of {self.name} "
                "does not know; give sampler.ratios of your own, or use sampler=unipc_accel."
            )
        # What does not fit fails here, before any work. The pipeline will know the exponent of dynamic shifting.
        scheduler.set_timesteps(self.steps, mu=1.0 if dynamic else None)
        return scheduler

    def calibrate(
        self, pipe: Any, recipe: Any, call: Mapping[str, Any], noise: torch.Tensor, on_step: Callable[[int, int], None]
    ) -> dict[str, torch.Tensor]:
        """The artefact of a ratio search: ratios, what they are for, and the errors without and with them."""
        scheduler = self.build(pipe.scheduler.config, recipe.grid)
        with accelerate(pipe, Recipe(guidance=recipe.guidance)) as run:
            predict = Predictor(pipe, run.clock, **call)
            found = search_ratios(scheduler, predict, noise, self.search, on_step)
        return {
            "ratios": torch.tensor(found.ratios, dtype=torch.float64),
            "rejected": torch.tensor(found.rejected, dtype=torch.int64),
            "fit": torch.tensor(found.fit, dtype=torch.float64),
            "held_out": torch.tensor(found.held_out, dtype=torch.float64),
            "calls": torch.tensor(found.calls),
            **self._made_for(pipe, recipe),
        }

    def samples_wanted(self) -> int:
        """Initial noises that `calibrate` needs."""
        return self.search.samples

    def prepared(self, pipe: Any, recipe: Any, artefact: Mapping[str, torch.Tensor] | None = None) -> DCSolver:
        """This sampler with its ratios as numbers; ConfigError if they are missing or belong to something else."""
        if not isinstance(self.ratios, str):
            return self
        if self.ratios.endswith(".json"):
            if self._other_guidance(recipe):
                raise ConfigError(
                    f"{self.ratios} predicts ratios from the scale of plain guidance, this recipe has guidance "
                    f"{recipe.guidance.label}; use ratios=search, or guidance=cfg."
                )
            found = Cascade.load(Path(self.ratios)).predict(self.steps, recipe.guidance_scale, self.dc_order)
            return replace(self, ratios=tuple(found))
        if self.ratios.endswith(".safetensors"):
            artefact = load_tensors(Path(self.ratios))
            if artefact is None or "ratios" not in artefact:
                raise ConfigError(f"{self.ratios} does not exist, is damaged, or holds no ratios; use ratios=search.")
        elif artefact is None:
            raise ConfigError(
                "the compensation ratios are still to be searched; run the recipe through `python -m accel` (the "
                "artefact is then below results/artefacts/), or give sampler.ratios as a list or a file."
            )
        made_for = self._made_for(pipe, recipe)
        if ("guidance" in artefact) != ("guidance" in made_for):
            raise ConfigError("the compensation ratios were searched under another guidance; use ratios=search.")
        if other := unlike(artefact, made_for):
            raise ConfigError(
                f"the compensation ratios were searched for {other.replace('_', ' ')} {_shown(artefact.get(other))}, "
                f"this recipe has {_shown(made_for[other])}; search again (ratios=search)."
            )
        return replace(self, ratios=tuple(artefact["ratios"].tolist()))

    def _made_for(self, pipe: Any, recipe: Any) -> dict[str, torch.Tensor]:
        scheduler = self.build(pipe.scheduler.config, recipe.grid)
        net = getattr(pipe, denoiser_name(pipe))
        made_for = {
            "timesteps": torch.from_numpy(scheduler.nodes.t.copy()),
            "guidance_scale": torch.tensor([recipe.guidance_scale], dtype=torch.float64),
            "solver": torch.tensor([self.order, self.dc_order, self.solver_type == "bh2", self.corrector]).long(),
            "weights": weights_digest(net),
        }
        if self._other_guidance(recipe):
            made_for["guidance"] = settings_digest(recipe.guidance)
        return made_for

    @staticmethod
    def _other_guidance(recipe: Any) -> bool:
        # Of plain guidance, the scale says all.
        return recipe.guidance is not None and type(recipe.guidance) is not CFG


def _shown(value: torch.Tensor | None) -> str:
    if value is None:
        return "(not said)"
    if value.dtype == torch.uint8:
        return bytes(value.tolist()).hex()[:12]
    return "[" + ", ".join(f"{v:g}" for v in value.tolist()) + "]"
