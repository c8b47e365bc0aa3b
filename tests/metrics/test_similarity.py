"""PSNR, SSIM and sharpness by closed forms and independent computations; settings that cannot work."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from accel.errors import ConfigError
from accel.metrics.similarity import Similarity, check_metrics, luminance, psnr, sharpness, ssim, window


def bytes_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def flat(value: int, size: int = 16, channels: int = 1) -> torch.Tensor:
    return torch.full((1, channels, size, size), value, dtype=torch.uint8)


def similar(images: torch.Tensor, references: torch.Tensor, *names: str) -> dict[str, torch.Tensor]:
    return Similarity(names).paired(images, references)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_of_a_constant_offset(channels):
    images, other = torch.cat([flat(100, 8, channels)] * 2), torch.cat([flat(105, 8, channels), flat(100, 8, channels)])
    expected = [20 * math.log10(255 / 5), 100.0]  # identical pictures, whose PSNR is infinite, count as 100 dB
    assert similar(images, other, "psnr")["psnr"].tolist() == pytest.approx(expected, rel=1e-6)


def test_ssim_of_flat_pictures_is_its_luminance_term():
    a, b, c1 = 100 / 255, 150 / 255, 0.01**2
    found = similar(torch.cat([flat(100), flat(100)]), torch.cat([flat(150), flat(100)]), "ssim")["ssim"]
    assert found.tolist() == pytest.approx([(2 * a * b + c1) / (a * a + b * b + c1), 1.0], rel=1e-9)


def by_hand(x: np.ndarray, y: np.ndarray, pixels: int, sigma: float) -> float:
    """Wang et al. 2004, eq. 13, by separable filters of scipy with mirrored edges."""
    taps = np.exp(-((np.arange(pixels) - pixels // 2) ** 2) / (2 * sigma**2))

    def mean(z):
        for axis in (-2, -1):
            z = correlate1d(z, taps / taps.sum(), axis=axis, mode="mirror")
        return z

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


@pytest.mark.parametrize(
    ("shape", "pixels", "sigma"), [((3, 24, 16), 11, 1.5), ((1, 8, 8), 7, 0.9), ((1, 20, 4), 3, 0.3)]
)
def test_ssim_is_that_of_the_paper_with_a_window_that_fits(shape, pixels, sigma):
    images = bytes_of(2, *shape)
    references = (images.int() * 3 // 4 + bytes_of(2, *shape, seed=1) // 4).byte()
    assert window(min(shape[1:])) == (pixels, pytest.approx(sigma))
    found = similar(images, references, "ssim")["ssim"]
    pairs = zip(images.numpy() / 255, references.numpy() / 255, strict=True)
    assert found.tolist() == pytest.approx([by_hand(x, y, pixels, sigma) for x, y in pairs], rel=1e-6)


def test_pictures_without_room_for_a_window_are_refused():
    with pytest.raises(ConfigError, match="shorter side is 2 pixels; needed: 3"):
        similar(flat(0, 2), flat(0, 2), "ssim")


def test_sharpness_of_known_pictures():
    """Flat: 0. A chessboard's Laplacian is +-4 x 255 everywhere, mirrored edges included."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    pictures = torch.stack([board * 255, torch.full_like(board, 7)])[:, None].byte()
    assert Similarity(("sharpness",)).alone(pictures)["sharpness"].tolist() == pytest.approx([(4 * 255) ** 2, 0.0])


def test_blur_lowers_sharpness():
    picture = bytes_of(1, 3, 32, 32).double() / 255
    blurred = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
    assert sharpness(blurred) < 0.2 * sharpness(picture)


def test_luminance_is_of_three_channels_or_the_one():
    green = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert luminance(green).item() == pytest.approx(0.587)
    assert luminance(green[:, 1:2]).item() == 1
    grey = torch.full((1, 3, 4, 4), 0.25, dtype=torch.float64)
    torch.testing.assert_close(luminance(grey), grey[:, :1])


def test_a_value_does_not_depend_on_the_pictures_beside_it(monkeypatch):
    images, references = bytes_of(5, 3, 12, 12), bytes_of(5, 3, 12, 12, seed=1)
    whole = similar(images, references, "psnr", "ssim")
    monkeypatch.setattr("accel.metrics.similarity.PIXELS", 1)
    for name, values in similar(images, references, "psnr", "ssim").items():
        torch.testing.assert_close(values, whole[name], rtol=1e-12, atol=1e-12)
    assert psnr(*(x[:1].double() / 255 for x in (images, references))).item() == pytest.approx(whole["psnr"][0].item())
    assert ssim(*(x[:1].double() / 255 for x in (images, references))).item() == pytest.approx(whole["ssim"][0].item())


@pytest.mark.parametrize("wrong", [bytes_of(2, 4, 8, 8), bytes_of(2, 1, 8, 8).float(), bytes_of(2, 3, 8, 8)])
def test_what_is_no_pair_of_pictures_is_refused(wrong):
    with pytest.raises(ConfigError, match="needed: uint8"):
        similar(bytes_of(2, 1, 8, 8), wrong, "psnr")


@pytest.mark.parametrize(
    ("names", "weights", "said"),
    [
        ("psnr", None, "allowed: a list such as"),
        (["pnsr"], None, "Did you mean psnr"),
        (["lpips"], None, "evaluation.lpips_weights is not given"),
        (["psnr"], "alexnet.pth", "has no lpips"),
    ],
)
def test_settings_that_cannot_work(names, weights, said):
    with pytest.raises(ConfigError, match=said):
        check_metrics("evaluation.reference_metrics", names, weights)


def test_the_order_of_metrics_changes_no_id():
    assert check_metrics("x", ["sharpness", "psnr"], None) == check_metrics("x", ["psnr", "sharpness"], None)
