"""The continuous noise schedule behind a model's training timesteps, in float64.

x_t = alpha x_0 + sigma eps with rho = sigma / alpha and lambda = -ln rho. Two kinds: variance preserving, alpha^2 +
sigma^2 = 1, from the betas of a diffusers scheduler; and flow, alpha = 1 - sigma, sigma = t / T (rectified flow, Liu et
al. 2022, arXiv:2209.03003). Between integer timesteps log rho is linear in t, the inverse of `_sigma_to_t` of
diffusers' schedulers. Betas are kept in float64: diffusers' float32 cumulative products differ by up to 8e-5 at t = 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from accel.errors import IncompatibleError, check_float, check_int, unknown

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
ZERO_SNR_ALPHA_BAR = 2.0**-24  # what diffusers puts in place of 0 after `rescale_betas_zero_snr`
# Entries of diffusers configs with noise levels that are neither those of betas nor of a flow from 0 to 1. Their betas,
# where they have any, would give a schedule that the model was not trained on.
OTHER_SCHEDULES = {
    "sigma_data": "an EDM, consistency or trigflow model (scaled by sigma_data)",
    "s_churn": "a variance-exploding model (Karras VE)",
    "sampling_eps": "a variance-exploding model (Score SDE)",
    "snr_shift_scale": "a model with shifted signal-to-noise ratio (CogVideoX)",
    "scaler": "a Wuerstchen prior",
    "alpha_cum_start": "a discrete model (VQ-Diffusion)",
}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels as functions of the timestep t in [t_min, t_max]; `log_rho` (T,) is None for a flow.

    Arrays in, arrays out. A flow ends at alpha = 0; its rho is clipped to that of t = T - 1 there, so that grids in rho
    stay finite, while alpha and sigma are exact.
    """

    total: int
    log_rho: np.ndarray | None
    t_max: float

    @property
    def flow(self) -> bool:
        return self.log_rho is None

    @property
    def identity(self) -> str:
        """Short text that differs for different schedules."""
        if self.flow:
            return f"flow/{self.total}"
        return f"vp/{self.total}/{hashlib.sha256(self.log_rho.astype(np.float32).tobytes()).hexdigest()[:12]}"

    @property
    def t_min(self) -> float:
        """The least noisy timestep that the model knows."""
        return 1.0 if self.flow else 0.0

    def rho(self, t: np.ndarray | float) -> np.ndarray:
        """sigma / alpha at timestep t."""
        if self.flow:
            s = np.minimum(np.asarray(t, np.float64), self.total - 1) / self.total
            return s / (1 - s)
        return np.exp(np.interp(t, np.arange(self.total), self.log_rho))

    def timestep(self, rho: np.ndarray | float) -> np.ndarray:
        """The timestep at which sigma / alpha is `rho`; clipped to the schedule's ends."""
        rho = np.asarray(rho, np.float64)
        if self.flow:
            return np.clip(rho / (1 + rho) * self.total, self.t_min, self.total)
        return np.interp(np.log(rho), self.log_rho, np.arange(self.total, dtype=np.float64))

    def alpha_sigma(self, t: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) at timestep t."""
        if self.flow:
            sigma = np.asarray(t, np.float64) / self.total
            return 1 - sigma, sigma
        return self.of_rho(self.rho(t))

    def of_rho(self, rho: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) at sigma / alpha = rho."""
        rho = np.asarray(rho, np.float64)
        alpha = 1 / (1 + rho) if self.flow else 1 / np.sqrt(1 + rho**2)
        return alpha, rho * alpha

    def starting_at(self, t: float) -> NoiseSchedule:
        """The part of the schedule below timestep t."""
        check_float("start timestep", t, self.t_min, self.t_max)
        return replace(self, t_max=float(t))


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule that a diffusers scheduler config describes.

    ConfigError for values out of range, IncompatibleError for the config of another kind of model.
    """
    refuse_others(config)
    total = config.get("num_train_timesteps", 1000)
    check_int("num_train_timesteps", total, 2)
    if is_flow(config):
        return NoiseSchedule(total, None, float(total))
    betas = config.get("trained_betas")
    betas = None if betas is None else tuple(map(float, betas))
    log_rho = _log_rho(
        total,
        config.get("beta_start", 1e-4),
        config.get("beta_end", 0.02),
        str(config.get("beta_schedule", "linear")),
        betas,
        bool(config.get("rescale_betas_zero_snr", False)),
    )
    return NoiseSchedule(len(log_rho), log_rho, float(len(log_rho) - 1))


def flow_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a FlowMatch scheduler in the words of the others: theirs for a flow, with its shift."""
    shift = config.get("shift", config.get("flow_shift")) or 1.0
    return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler config is of a flow-matching model."""
    # FlowMatch schedulers have no betas; only a config that was loaded from a file names its class.
    flow_match = "shift" in config and "beta_schedule" not in config
    return bool(config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction" or flow_match)


def refuse_others(config: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """IncompatibleError for a scheduler config with noise levels that are neither those of betas nor of a flow.

    known: config entries that whatever will run it understands itself.
    """
    found = [(key, f"has {key}", kind) for key, kind in OTHER_SCHEDULES.items() if config.get(key) is not None]
    if config.get("timestep_type") == "continuous":
        kind = "a model whose timesteps are log sigma (EDM)"
        found.append(("timestep_type", "has timestep_type 'continuous'", kind))
    if config.get("invert_sigmas"):
        found.append(("invert_sigmas", "has invert_sigmas", "a flow whose time runs backwards"))
    if found := [(said, kind) for key, said, kind in found if key not in known]:
        said, kind = found[0]
        raise IncompatibleError(
            f"the scheduler config {said}, so it is of {kind}; allowed: models trained on betas (DDPM, Stable "
            "Diffusion, DiT) or as a flow from 0 to 1 (Stable Diffusion 3, Flux). Keep this pipeline's own scheduler."
        )


@lru_cache(maxsize=32)
def _log_rho(total, beta_start, beta_end, schedule, trained_betas, zero_snr) -> np.ndarray:
    """log(sigma / alpha) of timesteps 0..T-1, (T,) float64."""
    # In logs: 1 - alpha_bar by subtraction would lose digits at the first timesteps.
    log_alpha_bar = np.cumsum(np.log1p(-betas(total, beta_start, beta_end, schedule, trained_betas)))
    if zero_snr:
        root = np.exp(log_alpha_bar / 2)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        log_alpha_bar = np.log(np.maximum(root**2, ZERO_SNR_ALPHA_BAR))
    log_rho = 0.5 * (np.log(-np.expm1(log_alpha_bar)) - log_alpha_bar)
    log_rho.flags.writeable = False  # shared by all users of the cache
    return log_rho


def betas(total: int, beta_start: float, beta_end: float, schedule: str, trained: Any = None) -> np.ndarray:
    """beta of timesteps 0..T-1, (T,) float64; `schedule` is named as in diffusers' schedulers."""
    if trained is not None:
        check_int("the number of trained_betas", len(trained), 2)
        for value in trained:
            check_float("trained_betas", value, 1e-12, 1 - 1e-12)
        return np.asarray(trained, np.float64)
    if schedule == "squaredcos_cap_v2":
        alpha_bar = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    check_float("beta_end", beta_end, 1e-12, 1 - 1e-12)
    check_float("beta_start", beta_start, 1e-12, beta_end)
    if schedule == "linear":
        return np.linspace(beta_start, beta_end, total)
    if schedule == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, total) ** 2
    raise unknown("beta_schedule", schedule, BETA_SCHEDULES)
