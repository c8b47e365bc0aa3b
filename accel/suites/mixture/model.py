"""`MixtureDenoiser`: a class-conditional Gaussian mixture with closed-form noise prediction, called like UNet2DModel.

Data: p(x0 | c) = sum_k w_ck N(mu_ck, Sigma_ck), classes equally likely. Variance-preserving noising,
x_t = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1 and rho = sigma / alpha, keeps it a mixture:

    p_t(x | c) = sum_k w_ck N(alpha mu_ck, alpha^2 Sigma_ck + sigma^2 I)
    eps(x, t, c) = E[eps | x_t = x, c] = -sigma grad_x log p_t(x | c)      (Tweedie; Song et al. 2021, eq. 7-10)

so every sampler can be held against a model without training error and a probability-flow ODE known to 1e-10
(`accel.suites.mixture.exact`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from accel.errors import ConfigError, check_int, unknown
from accel.samplers.noise_schedule import noise_schedule

MEAN_RANGE = 1.0  # component means are uniform in [-1, 1], the range of image pixels
STD_RANGE = (0.1, 0.3)  # principal standard deviations: structure at several noise levels, but no stiffness
TIMESTEP_SLACK = 1e-3  # float32 grids may end a rounding error outside [0, T - 1]


class _Mixture(NamedTuple):
    """Of (B,) labels the log weights of all M components (B, M); means and principal variances (M, D), rotations."""

    log_weights: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    rotations: torch.Tensor


class MixtureDenoiser(ModelMixin, ConfigMixin):
    """Exact noise prediction of a seeded Gaussian mixture behind UNet2DModel's call interface.

    eps(x, t, c) = sigma sum_m r_m(x) (alpha^2 Sigma_m + sigma^2 I)^-1 (x - alpha mu_m), r = posterior of component m.
    There are `num_class_embeds - 1` classes of `components_per_class` components each, over
    D = in_channels * height * width dimensions; the last label is the null label, the marginal over the classes.
    Covariances are full (random rotation, principal standard deviations log-uniform in `STD_RANGE`).
    `num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule` mean what they mean in a diffusers scheduler and
    must equal the scheduler's. Computes in the dtype of its buffers, float64 unless `.to(dtype)` says otherwise
    (float16 and bfloat16 round the mixture and its noise schedule; the arithmetic is float32 then).
    Raises ConfigError for a setting that is out of range.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = (2, 4),
        in_channels: int = 1,
        out_channels: int = 1,
        num_class_embeds: int = 5,
        components_per_class: int = 3,
        seed: int = 0,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        prediction_type: str = "epsilon",
    ) -> None:
        super().__init__()
        sides = [sample_size] * 2 if isinstance(sample_size, int) else list(sample_size)
        if len(sides) != 2:
            raise ConfigError(f"sample_size is {sample_size!r}; allowed: one integer or (height, width).")
        for name, value, low in (
            *(("sample_size", side, 1) for side in sides),
            ("in_channels", in_channels, 1),
            ("num_class_embeds", num_class_embeds, 2),
            ("components_per_class", components_per_class, 1),
            ("seed", seed, 0),
        ):
            check_int(name, value, low)
        if out_channels != in_channels:
            raise ConfigError(f"out_channels is {out_channels!r}; allowed: in_channels = {in_channels}.")
        if prediction_type != "epsilon":
            raise unknown("prediction_type", str(prediction_type), ["epsilon"])

        self.sample_shape = (in_channels, *sides)
        self.num_classes = num_class_embeds - 1
        means, stds, rotations, weights = _draw_mixture(
            self.num_classes, components_per_class, math.prod(self.sample_shape), seed
        )
        # Saved, although the seed determines them: the file then has a hash and outlives a change of numpy's stream.
        self.register_buffer("means", torch.from_numpy(means))  # (M, D), M = classes * components
        self.register_buffer("stds", torch.from_numpy(stds))  # (M, D) principal standard deviations
        self.register_buffer("rotations", torch.from_numpy(rotations))  # (M, D, D), columns = principal axes
        self.register_buffer("weights", torch.from_numpy(weights))  # (classes, components), rows sum to 1
        schedule = noise_schedule(self.config)
        self.register_buffer("log_rho", torch.from_numpy(schedule.log_rho.copy()), persistent=False)  # (T,)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As ModelMixin's; `torch_dtype` is honoured (ModelMixin leaves float64 buffers as they are)."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        if isinstance(dtype, torch.dtype) and model.dtype != dtype:
            model.to(dtype)
        return loaded

    @property
    def null_label(self) -> int:
        """Label of the marginal over all classes."""
        return self.num_classes

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Noise prediction (B, C, H, W), in the dtype of `sample`, for x_t = `sample` (B, C, H, W).

        `timestep`: number, 0-d or (B,) tensor in [0, T - 1], fractions allowed (see `rho`). `class_labels`: (B,).
        Raises ConfigError for a wrong shape, a missing or unknown label, or a timestep outside the range.
        """
        if class_labels is None:
            raise ConfigError(f"class_labels is missing; this model needs labels in 0..{self.null_label}.")
        predicted = self.noise_prediction(sample, self.rho(timestep), class_labels)
        return UNet2DOutput(sample=predicted) if return_dict else (predicted,)

    def rho(self, timestep: torch.Tensor | float) -> torch.Tensor:
        """rho = sigma / alpha of a timestep in [0, T - 1], same shape as `timestep`.

        Between integers log rho is linear in t: the inverse of `_sigma_to_t` of diffusers' schedulers, so that
        fractional timesteps of Karras grids and two-stage solvers mean the noise level that the scheduler means.
        """
        last = len(self.log_rho) - 1
        t = torch.as_tensor(timestep, dtype=self._compute_dtype, device=self.log_rho.device)
        if not bool(((t >= -TIMESTEP_SLACK) & (t <= last + TIMESTEP_SLACK)).all()):
            raise ConfigError(f"timestep is {t.tolist()}; allowed: numbers in [0, {last}].")
        t = t.clamp(0, last)
        low = t.floor().clamp(max=last - 1).long()
        fraction = t - low
        log_rho = self.log_rho.to(t.dtype)
        return (log_rho[low] * (1 - fraction) + log_rho[low + 1] * fraction).exp()

    def noise_prediction(
        self, x: torch.Tensor, rho: torch.Tensor | float, labels: torch.Tensor | Sequence[int] | int | None = None
    ) -> torch.Tensor:
        """eps(x, rho, c) = -sigma grad_x log p(x | c) at alpha = 1 / sqrt(1 + rho^2), sigma = rho alpha.

        `x`: (B, C, H, W) in variance-preserving scale (x_bar / sqrt(1 + rho^2)); `rho` >= 0: number or (B,); `labels`:
        number, (B,), or None for the null label. Returns (B, C, H, W). eps is 0 at rho = 0.
        """
        return self.predictor(labels, len(x))(x, rho)

    def predictor(
        self, labels: torch.Tensor | Sequence[int] | int | None, count: int
    ) -> Callable[[torch.Tensor, torch.Tensor | float], torch.Tensor]:
        """(x, rho) -> `noise_prediction` of `count` samples with these labels. What labels and weights alone decide is
        made once: half of an evaluation's time, of which an ODE solver needs a thousand."""
        mixture = self._mixture(labels, count)

        def predict(x: torch.Tensor, rho: torch.Tensor | float) -> torch.Tensor:
            log_joint, scaled, sigma = self._components(x, rho, mixture)
            posterior = log_joint.softmax(dim=1)
            eps = sigma * torch.einsum("bm,bme,mde->bd", posterior, scaled, mixture.rotations)
            return eps.reshape(x.shape).to(x.dtype)

        return predict

    def log_density(
        self, x: torch.Tensor, rho: torch.Tensor | float, labels: torch.Tensor | Sequence[int] | int | None = None
    ) -> torch.Tensor:
        """log p(x_t = x | c), (B,), at noise level `rho` (0: the data); arguments as in `noise_prediction`."""
        return self._components(x, rho, self._mixture(labels, len(x)))[0].logsumexp(dim=1)

    def sample(
        self,
        n: int,
        labels: torch.Tensor | Sequence[int] | int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """`n` exact data samples x0 (n, C, H, W) of `labels` (number, (n,), None = null); `generator` on the CPU."""
        check_int("n", n, 1)
        rows = self._log_weights().cpu()[self.expand_labels(labels, n).cpu()].double().exp()
        index = torch.multinomial(rows, 1, generator=generator)[:, 0]
        normal = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        # Drawn on the CPU in float64, so that one seed gives one data set on every device and in every dtype.
        normal, index = normal.to(self.means.device, self._compute_dtype), index.to(self.means.device)
        means, stds, rotations = (b[index].to(normal.dtype) for b in (self.means, self.stds, self.rotations))
        x0 = means + torch.einsum("bde,be->bd", rotations, stds * normal)
        return x0.reshape(n, *self.sample_shape).to(self.dtype)

    def check_shape(self, x: torch.Tensor) -> None:
        """Raise ConfigError unless `x` is (B, C, H, W) of this model's C, H, W."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.sample_shape:
            allowed = ", ".join(map(str, self.sample_shape))
            raise ConfigError(f"sample has shape {tuple(x.shape)}; allowed: (B, {allowed}).")

    def expand_labels(self, labels: torch.Tensor | Sequence[int] | int | None, count: int) -> torch.Tensor:
        """`labels` (a number, (count,), or None for the null label) as a checked (count,) tensor."""
        labels = torch.as_tensor(self.null_label if labels is None else labels, device=self.means.device)
        found = f"labels are {labels.tolist()}; allowed: "
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim > 1:
            raise ConfigError(f"{found}integers, one for each sample.")
        if labels.numel() not in (1, count):
            raise ConfigError(f"{found}one for each of the {count} samples, or a single one.")
        if labels.min() < 0 or labels.max() > self.null_label:
            raise ConfigError(f"{found}0..{self.null_label}, where {self.null_label} is the null label.")
        return labels.long().reshape(-1).expand(count)

    @property
    def _compute_dtype(self) -> torch.dtype:
        return torch.promote_types(self.means.dtype, torch.float32)

    def _log_weights(self) -> torch.Tensor:
        """(classes + 1, M): log weight of every component under every label, -inf for those of other classes."""
        classes = self.num_classes
        weights = self.weights.to(self._compute_dtype)
        own = torch.eye(classes, dtype=weights.dtype, device=weights.device)[:, :, None] * weights
        return torch.cat([own.reshape(classes, -1), weights.reshape(1, -1) / classes]).log()

    def _mixture(self, labels: torch.Tensor | Sequence[int] | int | None, count: int) -> _Mixture:
        dtype = self._compute_dtype
        means, variances, rotations = self.means.to(dtype), self.stds.to(dtype).square(), self.rotations.to(dtype)
        return _Mixture(self._log_weights()[self.expand_labels(labels, count)], means, variances, rotations)

    def _components(self, x, rho, mixture: _Mixture) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log w_m N_m(x) (B, M); (alpha^2 S_m + sigma^2)^-1 (x - alpha mu_m) in principal axes (B, M, D); sigma."""
        self.check_shape(x)
        count, dtype, device = len(x), self._compute_dtype, self.means.device
        rho = torch.as_tensor(rho, dtype=dtype, device=device)
        if rho.numel() not in (1, count) or rho.ndim > 1:
            raise ConfigError(f"timestep or rho has shape {tuple(rho.shape)}; allowed: a number or ({count},).")
        alpha = (1 + rho.square()).rsqrt().reshape(-1, 1)
        sigma = rho.reshape(-1, 1) * alpha

        centred = x.reshape(count, 1, -1).to(dtype) - (alpha[:, :, None] * mixture.means)
        centred = torch.einsum("bmd,mde->bme", centred, mixture.rotations)
        variance = alpha[:, :, None].square() * mixture.variances + sigma[:, :, None].square()
        scaled = centred / variance
        log_normal = -0.5 * (centred * scaled + variance.log() + math.log(2 * math.pi)).sum(dim=2)
        return mixture.log_weights + log_normal, scaled, sigma


def _draw_mixture(classes: int, components: int, dim: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    count = classes * components
    means = rng.uniform(-MEAN_RANGE, MEAN_RANGE, (count, dim))
    stds = np.exp(rng.uniform(*np.log(STD_RANGE), (count, dim)))
    rotations, upper = np.linalg.qr(rng.standard_normal((count, dim, dim)))
    # Column signs of QR differ between LAPACK builds; fixing them makes the rotation a function of the seed alone.
    rotations = rotations * np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None, :]
    weights = rng.uniform(0.5, 1.5, (classes, components))
    return means, stds, np.ascontiguousarray(rotations), weights / weights.sum(axis=1, keepdims=True)
