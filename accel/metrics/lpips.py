"""LPIPS: the learned perceptual distance of two pictures, version 0.1 on AlexNet, by torchmetrics' linear layers.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv:1801.03924), eq. 1:

    d(x, x0) = sum_l 1 / (H_l W_l) sum_hw sum_c w_lc (y_lhwc - y0_lhwc)^2,   y = f / sqrt(1e-8 + sum_c f^2)

with f_l the outputs of AlexNet's five ReLUs and w_l >= 0 learned; 0: alike. The w_l come with torchmetrics, whose
arithmetic this is (its 1e-8 stands within the root; in the authors' code 1e-10 beside it). AlexNet's weights are
torchvision's of ImageNet, a local file that a setting names; torchvision itself, which would bring another torch, is
not needed, and nothing is downloaded. The published file is a pickle: it is read by torch's weights-only unpickler,
which runs no code; a safetensors file of the same names does as well.
"""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.files import file_hash
from accel.metrics.base import exact_arithmetic, frozen

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
SMALLEST = 31  # pixels: below that AlexNet's second pooling has nothing to pool
ENLARGED = 64  # the side to which smaller pictures are brought; the patches that LPIPS learned from had it
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# (input channels, output channels, kernel, stride, padding) of each convolution; pools come before the 2nd and 3rd.
CONVOLUTIONS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
POOLED = (1, 2)
PLACES = (0, 3, 6, 8, 10)  # of the convolutions among torchvision's `features`


class AlexNet(nn.Module):
    """Pictures (B, 3, H, W), normalised, to the outputs of the five ReLUs, each (B, C_l, H_l, W_l).

    Krizhevsky 2014, arXiv:1404.5997, as torchvision has it; its classifier is not needed.
    """

    def __init__(self) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(*settings) for settings in CONVOLUTIONS)
        self.features = nn.ModuleDict({str(i): conv for i, conv in zip(PLACES, convolutions, strict=True)})

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for i, convolution in enumerate(self.features.values()):
            x = F.relu(convolution(F.max_pool2d(x, 3, stride=2) if i in POOLED else x))
            found.append(x)
        return found


class Lpips:
    """LPIPS with AlexNet's weights in the file `path`, in float32 on the CPU; ConfigError where they cannot be had."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    @cached_property
    def network(self) -> nn.Module:
        """The loaded AlexNet, kept."""
        net, state = AlexNet(), _read(self.path)
        try:
            net.load_state_dict({k: v for k, v in state.items() if k.startswith("features.")})
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"LPIPS weights: {self.path} is no AlexNet ({said}). Needed: the file of {URL}."
            ) from error
        return frozen(net, "cpu")

    @cached_property
    def weights(self) -> list[Tensor]:
        """w_l (1, C_l, 1, 1) of the five layers, float32."""
        state = torch.load(_linear_file(), map_location="cpu", weights_only=True)
        return [state[f"lin{i}.model.1.weight"] for i in range(len(CONVOLUTIONS))]

    def identity(self) -> dict[str, Any]:
        """What decides the values: both files' sha256 and the rule for small pictures. No paths."""
        _ = self.network
        return {
            "network": "AlexNet (torchvision), LPIPS 0.1",
            "weights_sha256": file_hash(self.path),
            "linear_sha256": file_hash(_linear_file()),
            "enlarged": ENLARGED,
        }

    @torch.inference_mode()
    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """d of each pair (B,), float32; pictures (B, 3, H, W), 0..1. A side below 31 pixels: both are brought to
        64 x 64 by bilinear interpolation before, as torch-fidelity does."""
        with exact_arithmetic():
            pairs = zip(self._features(images), self._features(references), self.weights, strict=True)
            return sum(((a - b).square() * w).sum(1).mean((1, 2)) for a, b, w in pairs)

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x = (2 * images.float() - 1 - shift) / scale
        if min(x.shape[-2:]) < SMALLEST:
            x = F.interpolate(x, (ENLARGED, ENLARGED), mode="bilinear", align_corners=False)
        return [f / (1e-8 + f.square().sum(1, keepdim=True)).sqrt() for f in self.network(x)]


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(
            f"LPIPS weights: there is no file {path}. Needed: AlexNet's of {URL}; fetch it where there is a network."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle may fail in any way
        raise ConfigError(f"LPIPS weights: cannot load {path}: {error}") from error


def _linear_file() -> Path:
    return Path(str(resources.files("torchmetrics"))) / "functional" / "image" / "lpips_models" / "alex.pth"
