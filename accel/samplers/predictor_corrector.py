"""Predictor-corrector samplers of the reverse diffusion SDE (Score-SDE).

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021 (arXiv:2011.13456),
algorithms 2-5 and appendix G. With rho = sigma / alpha, g = -eps / sigma the score of x_t (-eps / rho that of x_t /
alpha), z fresh noise, and beta_i = 1 - alpha_bar_i / alpha_bar_{i+1} between consecutive noise levels of the grid:

    predictor           sde=vp, on x = x_t                                  sde=ve, on x = x_t / alpha
    reverse_diffusion   (2 - sqrt(1 - beta)) x + beta g + sqrt(beta) z      x + d g + sqrt(d) z
    ancestral           (x + beta g) / sqrt(1 - beta) + sqrt(beta) z        x + d g + rho_{i+1} / rho_i sqrt(d) z
    euler_maruyama      x + B (x / 2 + g) + sqrt(B) z,  B = -ln(1 - beta)   as reverse_diffusion
                                                                            d = rho_i^2 - rho_{i+1}^2
    corrector
    langevin            x + e g + sqrt(2 e) z,  e = 2 a (snr |z| / |g|)^2,  a = 1 - beta (vp) or 1 (ve)

`euler_maruyama` is Euler's method in the time in which the SDE has constant coefficients: the integral of beta (vp),
and rho^2 (ve), where it is reverse diffusion. As in the authors' code the corrector goes first, at the noise level
where the predictor then starts (the paper's listings have the predictor first), and the last predictor step leaves its
noise out.

Deviations from the authors' code: |z| and |g| are norms of each sample (theirs are averaged over the batch, so that a
sample depends on what is drawn beside it); beta_i is the grid's own (theirs, linspace(0.1, 20, N) / N, reaches 1 at
N = 20 steps, and with fewer the samples are NaN); the last step leads to sigma = 0 (theirs ends at a small time).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor

from accel.core.devices import send
from accel.errors import AccelError, ConfigError, IncompatibleError, check_float, check_int, unknown
from accel.samplers.scheduler import BaseScheduler, Nodes, with_schedule_options

CORRECTORS = ("langevin", "none")
SDES = ("vp", "ve")


@dataclass(frozen=True)
class Levels:
    """Noise levels of the predictor steps, arrays (steps,): rho and sigma where each begins, rho where it ends."""

    rho: np.ndarray
    sigma: np.ndarray
    end: np.ndarray

    @property
    def d(self) -> np.ndarray:
        return self.rho**2 - self.end**2

    @property
    def beta(self) -> np.ndarray:
        return self.d / (1 + self.rho**2)

    @property
    def kept(self) -> np.ndarray:
        """1 - beta = alpha_bar_i / alpha_bar_{i+1}."""
        return (1 + self.end**2) / (1 + self.rho**2)

    @property
    def integral(self) -> np.ndarray:
        """B = -ln(1 - beta)."""
        return -np.log(self.kept)

    @property
    def one(self) -> np.ndarray:
        return np.ones_like(self.rho)


# The module's table with g = -eps / sigma (vp) or -eps / rho (ve): (a, b, c), each (steps,), of `reverse_sde_step`.
Coefficients = Callable[[Levels], tuple[np.ndarray, np.ndarray, np.ndarray]]
PREDICTORS: dict[str, dict[str, Coefficients]] = {
    "reverse_diffusion": {
        "vp": lambda v: (2 - np.sqrt(v.kept), -v.beta / v.sigma, np.sqrt(v.beta)),
        "ve": lambda v: (v.one, -v.d / v.rho, np.sqrt(v.d)),
    },
    "ancestral": {
        "vp": lambda v: (1 / np.sqrt(v.kept), -v.beta / (v.sigma * np.sqrt(v.kept)), np.sqrt(v.beta)),
        "ve": lambda v: (v.one, -v.d / v.rho, v.end / v.rho * np.sqrt(v.d)),
    },
    "euler_maruyama": {
        "vp": lambda v: (1 + v.integral / 2, -v.integral / v.sigma, np.sqrt(v.integral)),
        "ve": lambda v: (v.one, -v.d / v.rho, np.sqrt(v.d)),
    },
    "none": dict.fromkeys(SDES, lambda v: (v.one, 0 * v.one, 0 * v.one)),
}


def reverse_sde_step(
    x: torch.Tensor, eps: torch.Tensor, z: torch.Tensor | None, a: float, b: float, c: float
) -> torch.Tensor:
    """x' = a x + b eps + c z: one predictor step of the reverse SDE; all (B, ...), z: fresh noise, None for none."""
    mean = (a * x).add_(eps, alpha=b)
    return mean if z is None else mean.add_(z, alpha=c)


def langevin_correct(x: torch.Tensor, score: torch.Tensor, z: torch.Tensor, snr: float, a: float) -> torch.Tensor:
    """x + e g + sqrt(2 e) z with e = 2 a (snr |z| / |g|)^2 for each sample: a Langevin step at one noise level.

    x, score g, fresh noise z: (B, ...); a: 1 - beta (vp) or 1 (ve). Song et al. 2021, algorithms 4 and 5. Where the
    score vanishes there is no scale for a step, and none is taken.
    """
    norm_z, norm_g = (v.flatten(1).norm(dim=1) for v in (z, score))
    ratio = torch.where(norm_g > 0, norm_z / norm_g, torch.zeros_like(norm_g))
    e = (2 * a * (snr * ratio) ** 2).reshape(-1, *[1] * (x.ndim - 1))
    return x + e * score + (2 * e).sqrt() * z


class PredictorCorrectorScheduler(BaseScheduler):
    """Score-SDE sampler: `corrector_steps` Langevin steps at each noise level, then one step of the predictor.

    `predictor`: reverse_diffusion | ancestral | euler_maruyama | none (annealed Langevin dynamics: the level changes,
    the sample does not, and the result keeps the noise of the last level). `corrector`: langevin | none. `snr`: the
    corrector's signal-to-noise ratio; 0.16 is the paper's for CIFAR-10, 0.075 for LSUN. `sde`: the state is x_t (`vp`)
    or x_t / alpha = x_0 + rho eps (`ve`), as in diffusers' EulerDiscreteScheduler; either runs every model that is not
    a flow. One model evaluation a corrector step and one a predictor step. Noise comes from `step(generator=...)`:
    None, one generator, or a list with one for each sample. Further options: `BaseScheduler`. Raises IncompatibleError
    for a flow model, ConfigError for values out of range.
    """

    stochastic = True

    @register_to_config
    @with_schedule_options
    def __init__(
        self,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        corrector_steps: int = 1,
        snr: float = 0.16,
        sde: str = "vp",
        **options: Any,
    ) -> None:
        for kind, value, allowed in (
            ("predictor", predictor, PREDICTORS),
            ("corrector", corrector, CORRECTORS),
            ("sde", sde, SDES),
        ):
            if value not in allowed:
                raise unknown(kind, str(value), allowed)
        check_int("corrector_steps", corrector_steps, 1)
        check_float("snr", snr, 0.0)
        if predictor == corrector == "none":
            raise ConfigError("predictor and corrector are both 'none', so that nothing would move; choose one.")
        super().__init__(**options)
        if self.schedule.flow:
            raise IncompatibleError(
                "PredictorCorrectorScheduler needs a diffusion model with betas, this is a flow model; its reverse SDE "
                "is not one of the paper's. Use a solver of flows, such as RFSolverScheduler or DEISScheduler."
            )
        self.init_noise_sigma = self._initial_scale(self.schedule.rho(self.schedule.t_max))

    @property
    def order(self) -> int:
        """Evaluations a step."""
        return self.stages(self.config)

    @staticmethod
    def stages(options: Any) -> int:
        """Evaluations a step of a scheduler with these options."""
        corrections = options.get("corrector_steps", 1) if options.get("corrector", "langevin") != "none" else 0
        return corrections + (options.get("predictor", "reverse_diffusion") != "none")

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """x_t, which is what the model takes, from the state at `timestep`."""
        if self.config.sde == "vp":
            return sample
        if self.num_inference_steps is None:
            raise AccelError(
                "scale_model_input() was called before set_timesteps(); call scheduler.set_timesteps(steps) first."
            )
        index = self._begin_index if self._step_index is None else self._step_index
        if index is None or index >= len(self.timesteps):
            index = self._find(timestep)
        return sample * float(self.nodes.alpha[index // self.order])

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The state of x_0 = `original` at `timesteps` (B,) or a number: alpha x_0 + sigma eps, or x_0 + rho eps."""
        if self.config.sde == "vp":
            return super().add_noise(original, noise, timesteps)
        rho = np.atleast_1d(self.schedule.rho(torch.as_tensor(timesteps).cpu().double().numpy()))
        return original + torch.from_numpy(rho).to(original).reshape(-1, *[1] * (original.ndim - 1)) * noise

    def _initial_scale(self, rho: float) -> float:
        # x_T ~ N(0, I) for a model of x_t; the state x_T / alpha is as much larger.
        return 1.0 if self.config.sde == "vp" else float(np.sqrt(1 + rho**2))

    def _plan(self, nodes: Nodes) -> np.ndarray:
        """(a, b, c) of each predictor step and a of each corrector step."""
        self.init_noise_sigma = self._initial_scale(nodes.rho[0])
        levels = Levels(nodes.rho[:-1], nodes.sigma[:-1], nodes.rho[1:])
        a, b, c = PREDICTORS[self.config.predictor][self.config.sde](levels)
        c[-1] = 0.0
        self._steps = [tuple(map(float, row)) for row in zip(a, b, c, strict=True)]
        self._damping = [float(v) for v in (levels.kept if self.config.sde == "vp" else levels.one)]
        return np.repeat(nodes.t[:-1], self.order)

    def _advance(self, index: int, output: torch.Tensor, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        step, slot = divmod(index, self.order)
        alpha, sigma = float(self.nodes.alpha[step]), float(self.nodes.sigma[step])
        x = sample if self.config.sde == "vp" else alpha * sample
        output = self.thresholded(output, x, alpha, sigma)
        _, _, r, s = self.conversion(alpha, sigma)
        eps = (r * x).add_(output, alpha=s)
        if self.config.predictor == "none" or slot < self.order - 1:
            if not self.config.snr:
                return sample  # and no noise drawn, so that the predictor's is what it would be alone
            score = eps / -(sigma if self.config.sde == "vp" else float(self.nodes.rho[step]))
            return langevin_correct(sample, score, _noise(sample, generator), self.config.snr, self._damping[step])
        a, b, c = self._steps[step]
        return reverse_sde_step(sample, eps, _noise(sample, generator) if c else None, a, b, c)


def _noise(like: torch.Tensor, generator: Any) -> torch.Tensor:
    if isinstance(generator, (list, tuple)) and len(generator) not in (1, len(like)):
        raise ConfigError(
            f"generator is a list of {len(generator)} for {len(like)} samples; allowed: one generator, or one for each."
        )
    generator = list(generator) if isinstance(generator, tuple) else generator
    own = generator[0] if isinstance(generator, list) and generator else generator
    at = like.device if own is None else own.device  # noise of a CPU generator is drawn there, and sent without a wait
    return send(randn_tensor(tuple(like.shape), generator=generator, device=at, dtype=like.dtype), like.device)
