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

from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor

from accel.errors import ConfigError, IncompatibleError, check_float, check_int, unknown
from accel.samplers.scheduler import BaseScheduler, Nodes, with_schedule_options

PREDICTORS = ("reverse_diffusion", "ancestral", "euler_maruyama", "none")
CORRECTORS = ("langevin", "none")
SDES = ("vp", "ve")


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
        return corrections + (options.get("predictor", PREDICTORS[0]) != "none")

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """x_t, which is what the model takes, from the state at `timestep`."""
        if self.config.sde == "vp":
            return sample
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
        """Predictor i as x' = a x + b eps + c z, and the corrector's a_i; `_advance` combines them."""
        self.init_noise_sigma = self._initial_scale(nodes.rho[0])
        d = nodes.rho[:-1] ** 2 - nodes.rho[1:] ** 2
        kept = (1 + nodes.rho[1:] ** 2) / (1 + nodes.rho[:-1] ** 2)  # 1 - beta = alpha_bar_i / alpha_bar_{i+1}
        a, b, c = _predictor(self.config.predictor, self.config.sde, nodes, d, kept)
        c[-1] = 0.0
        self._steps = [tuple(map(float, row)) for row in zip(a, b, c, strict=True)]
        self._damping = [float(v) for v in (kept if self.config.sde == "vp" else np.ones_like(kept))]
        return np.repeat(nodes.t[:-1], self.order)

    def _advance(self, index: int, output: torch.Tensor, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        step, slot = divmod(index, self.order)
        alpha, sigma = float(self.nodes.alpha[step]), float(self.nodes.sigma[step])
        x = sample if self.config.sde == "vp" else alpha * sample
        output = self.thresholded(output, x, alpha, sigma)
        _, _, r, s = self.conversion(alpha, sigma)
        eps = (r * x).add_(output, alpha=s)
        if self.config.predictor == "none" or slot < self.order - 1:
            score = eps / -(sigma if self.config.sde == "vp" else float(self.nodes.rho[step]))
            return self._corrected(sample, score, self._damping[step], generator)
        a, b, c = self._steps[step]
        mean = (a * sample).add_(eps, alpha=b)
        return mean.add_(_noise(sample, generator), alpha=c) if c else mean

    def _corrected(self, sample: torch.Tensor, score: torch.Tensor, a: float, generator: Any) -> torch.Tensor:
        if not self.config.snr:
            return sample  # and no noise drawn, so that the predictor's is what it would be alone
        z = _noise(sample, generator)
        norm_z, norm_g = (v.flatten(1).norm(dim=1) for v in (z, score))
        # Where the score vanishes there is no scale for a step, and none is taken.
        ratio = torch.where(norm_g > 0, norm_z / norm_g, torch.zeros_like(norm_g))
        e = (2 * a * (self.config.snr * ratio) ** 2).reshape(-1, *[1] * (sample.ndim - 1))
        return sample + e * score + (2 * e).sqrt() * z


def _predictor(kind: str, sde: str, nodes: Nodes, d: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, ...]:
    """(a, b, c), each (steps,), of x' = a x + b eps + c z: the module's table with g = -eps / sigma or -eps / rho."""
    rho, beta = nodes.rho[:-1], d / (1 + nodes.rho[:-1] ** 2)
    if kind == "none":
        return np.ones_like(d), np.zeros_like(d), np.zeros_like(d)
    if sde == "ve":
        share = nodes.rho[1:] / rho if kind == "ancestral" else 1.0
        return np.ones_like(d), -d / rho, share * np.sqrt(d)
    sigma = nodes.sigma[:-1]
    if kind == "reverse_diffusion":
        return 2 - np.sqrt(kept), -beta / sigma, np.sqrt(beta)
    if kind == "ancestral":
        return 1 / np.sqrt(kept), -beta / (sigma * np.sqrt(kept)), np.sqrt(beta)
    rate = -np.log(kept)
    return 1 + rate / 2, -rate / sigma, np.sqrt(rate)


def _noise(like: torch.Tensor, generator: Any) -> torch.Tensor:
    if isinstance(generator, (list, tuple)) and len(generator) not in (1, len(like)):
        raise ConfigError(
            f"generator is a list of {len(generator)} for {len(like)} samples; allowed: one generator, or one for each."
        )
    generator = list(generator) if isinstance(generator, tuple) else generator
    return randn_tensor(tuple(like.shape), generator=generator, device=like.device, dtype=like.dtype)
