"""Recipe files as `accel recipe` would write them, quickly, and what is looked at of the images that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from accel.caching import DeepCache
from accel.config import compose, instantiate
from accel.core.recipe import Recipe
from accel.deploy.first_images import first_samples
from accel.deploy.recipe_file import save_recipe
from accel.guidance import CFG
from accel.samplers import DiffusersSampler

DPM = {"solver_order": 2, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
FAST = Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 4, "dpmpp_2m", DPM), cache=DeepCache(2, 1))
BASE = Recipe(DiffusersSampler("DDIMScheduler", 5, "ddim", {"set_alpha_to_one": True, "clip_sample": False}))
PLAIN = Recipe(DiffusersSampler("DPMSolverMultistepScheduler", 4, "dpmpp_2m", DPM), guidance=CFG(3.0))


def saved(folder: Path, words: list[str], recipe: Recipe, measured: dict[str, Any] | None = None, **more: Any) -> Path:
    """`recipe` as `accel recipe` would save it, of the suite that `words` open."""
    suite = instantiate(compose(words)["suite"])
    pipe, models = suite.pipeline(), suite.networks()
    own = more if "samples" in more else more | {"samples": first_samples(pipe, suite, recipe, models)}
    said = {"suite": suite.name, "n": 60, "seeds": [0]} | (measured or {})
    files = suite.fingerprint()
    return save_recipe(recipe, folder, pipe=pipe, models=models, files=files, suite=words, measured=said, **own)


def pixels(path: Path) -> torch.Tensor:
    """The picture in a PNG file, uint8 (C, H, W)."""
    import numpy as np
    from PIL import Image

    found = torch.from_numpy(np.array(Image.open(path)))
    return found[None] if found.ndim == 2 else found.permute(2, 0, 1)
