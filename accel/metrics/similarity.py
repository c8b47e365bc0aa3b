"""How alike two pictures of one seed are (PSNR, SSIM, LPIPS), and how sharp one is: one number a sample.

What users of caches quote. Pictures are bytes, as files hold them: x / 255 in [0, 1], H x W, C = 1 or 3.

    PSNR = 10 log10(1 / mean (x - y)^2) in dB, by torchmetrics; at most 100 dB, which identical pictures have
    SSIM = mean_p (2 mu_x mu_y + c1)(2 s_xy + c2) / ((mu_x^2 + mu_y^2 + c1)(s_x^2 + s_y^2 + c2)) in -1..1, by
           torchmetrics: c1 = 0.01^2, c2 = 0.03^2, Gaussian window of 11 x 11, sigma 1.5 (Wang et al. 2004), edges
           reflected (the authors leave them out), channels averaged
    LPIPS: see accel/metrics/lpips.py
    sharpness = Var_p(Laplacian of the luminance) on 0..255, the Laplacian that of 4 neighbours, edges reflected
           (Pech-Pacheco et al. 2000; OpenCV's cv2.Laplacian(grey, cv2.CV_64F).var())

PSNR and SSIM are better when higher, LPIPS when lower. Sharpness is no distance and has no better: below that of
another recipe at the same seeds means blurrier, and noise is sharp. A picture with a side below 11 pixels takes the
largest odd window that fits, with sigma in proportion (8 pixels: 7 x 7, sigma 0.9); below 3 pixels there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import ConfigError, unknown
from accel.metrics.lpips import URL, Lpips

EPOCH = 1  # raise when a change alters the values that are computed from the same pictures
PAIRED = ("psnr", "ssim", "lpips")  # of a picture and its reference
ALONE = ("sharpness",)
METRICS = (*PAIRED, *ALONE)
MOST_DB = 100.0
SIGMA, RADIUS = 1.5, 5  # of SSIM's window: 11 pixels
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
PIXELS = 1 << 20  # of the pictures that are computed at once; changes no value beyond rounding


def check_metrics(setting: str, names: Any, weights: Any) -> tuple[str, ...]:
    """`names` as a tuple, in the order of METRICS; ConfigError for what is no list of them, and for AlexNet's weights
    (`weights`) that are missing, or given for nothing."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"{setting} is {names!r}; allowed: a list such as [psnr,ssim] of {', '.join(METRICS)}.")
    for name in names:
        if name not in METRICS:
            raise unknown(setting, str(name), METRICS)
    if weights is None and "lpips" in names:
        raise ConfigError(
            f"{setting} has lpips, but evaluation.lpips_weights is not given; needed: AlexNet's weights, the file of "
            f"{URL}."
        )
    if weights is not None and "lpips" not in names:
        raise ConfigError(f"evaluation.lpips_weights is given, but {setting} has no lpips; add it, or leave that out.")
    return tuple(name for name in METRICS if name in names)


@dataclass(frozen=True)
class Similarity:
    """The metrics `names`; LPIPS with AlexNet's weights in the file `weights`."""

    names: tuple[str, ...]
    weights: str | None = None

    def __post_init__(self) -> None:
        lpips = Lpips(self.weights) if self.weights is not None else None
        object.__setattr__(self, "_lpips", lpips)

    def identity(self) -> dict[str, Any]:
        """What decides the values; ConfigError for weights that cannot be loaded."""
        found: dict[str, Any] = {"epoch": EPOCH, "metrics": list(self.names)}
        return found | ({"lpips": self._lpips.identity()} if self._lpips else {})

    def paired(self, images: Tensor, references: Tensor) -> dict[str, Tensor]:
        """PSNR, SSIM and LPIPS of each pair (B,), float64; uint8 (B, C, H, W) both."""
        metrics = {"psnr": psnr, "ssim": ssim, "lpips": self._perceptual}
        return {name: _each(metrics[name], images, references) for name in self.names if name in PAIRED}

    def alone(self, images: Tensor) -> dict[str, Tensor]:
        """The sharpness of each picture (B,), float64; uint8 (B, C, H, W)."""
        return {name: _each(sharpness, images) for name in self.names if name in ALONE}

    def _perceptual(self, images: Tensor, references: Tensor) -> Tensor:
        return self._lpips(*(x.expand(-1, 3, -1, -1) for x in (images, references))).double()


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """10 log10(1 / MSE) of each pair (B,), dB, at most 100; (B, C, H, W), 0..1."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = peak_signal_noise_ratio(images, references, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return found.clamp(max=MOST_DB)


def window(side: int) -> tuple[int, float]:
    """SSIM's window for pictures whose shorter side is `side`: pixels across and sigma. ConfigError below 3 pixels."""
    if side < 3:
        raise ConfigError(f"ssim of pictures whose shorter side is {side} pixels; needed: 3. Leave ssim out.")
    radius = min(RADIUS, (side - 1) // 2)
    return 2 * radius + 1, SIGMA * radius / RADIUS


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """SSIM of each pair (B,), -1..1; (B, C, H, W), 0..1."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, sigma = window(min(images.shape[-2:]))  # torchmetrics derives the window from sigma
    return structural_similarity_index_measure(images, references, sigma=sigma, data_range=1.0, reduction="none")


def sharpness(images: Tensor) -> Tensor:
    """Variance of the Laplacian of the luminance (B,) on the scale 0..255; (B, C, H, W), 0..1."""
    grey = luminance(images) * 255
    kernel = torch.tensor(LAPLACIAN, dtype=grey.dtype).view(1, 1, 3, 3)
    return F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernel).var((1, 2, 3), correction=0)


def luminance(images: Tensor) -> Tensor:
    """Y = 0.299 R + 0.587 G + 0.114 B (B, 1, H, W); of one channel that channel."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(LUMINANCE, dtype=images.dtype).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _each(metric: Callable[..., Tensor], *pictures: Tensor) -> Tensor:
    # A few pictures at a time: SSIM holds some twenty float64 copies of each.
    for own in pictures:
        if own.dtype != torch.uint8 or own.ndim != 4 or own.shape[1] not in (1, 3) or own.shape != pictures[0].shape:
            raise ConfigError(
                f"pictures are {own.dtype} {tuple(own.shape)}; needed: uint8 (B, C, H, W) with 1 or 3 channels, all of "
                f"the shape {tuple(pictures[0].shape)}."
            )
    count = max(1, PIXELS // pictures[0][0].numel())
    parts = zip(*(own.split(count) for own in pictures), strict=True)
    return torch.cat([metric(*(x.double() / 255 for x in part)) for part in parts])
