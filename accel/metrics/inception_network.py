"""Inception-v3 as TensorFlow's graph of 2015-12-05 has it, which published FIDs rest on.

Szegedy et al. 2015, arXiv:1512.00567; layer names and weights are those of torch-fidelity's conversion, whose package
is not needed (it would bring torchvision, and with it another torch). That graph departs from the paper, and so does
this: average pools leave padding out of the mean, the last block pools by maximum, and there are 1,008 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 299
FEATURES, CLASSES = 2048, 1008

Conv = tuple[str, int, int | tuple[int, int]]  # name, output channels, kernel; padded to the same size
POOLS = {
    "mean": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "halve": lambda x: F.max_pool2d(x, 3, stride=2),
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding=0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches of convolutions of one input, and a pool of it; their outputs side by side.

    In a branch a list of convolutions takes one input together. Blocks that halve the picture (`pool` = halve) do so in
    the last convolution of each branch; the others end with a 1 x 1 convolution of the pool, to `pooled` channels.
    """

    def __init__(self, channels: int, branches: list[list[Conv | list[Conv]]], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = [], pool
        for branch in branches:
            steps, inner = [], channels
            for step in branch:
                together = step if isinstance(step, list) else [step]
                last = pool == "halve" and step is branch[-1]
                for name, out, kernel in together:
                    self.add_module(name, ConvNorm(inner, out, kernel, 2, 0) if last else same(inner, out, kernel))
                steps.append([name for name, _, _ in together])
                inner = sum(out for _, out, _ in together)
            self.branches.append(steps)
        if pooled:
            self.branch_pool = ConvNorm(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for steps in self.branches:
            y = x
            for names in steps:
                parts = [self.get_submodule(name)(y) for name in names]
                y = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            outputs.append(y)
        pooled = POOLS[self.pool](x)
        outputs.append(self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled)
        return torch.cat(outputs, 1)


def same(channels: int, out: int, kernel: int | tuple[int, int]) -> ConvNorm:
    """A convolution that keeps height and width."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    return ConvNorm(channels, out, kernel, padding=tuple(side // 2 for side in sides))


def block_35(channels: int, pooled: int) -> Block:
    branches = [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
    ]
    return Block(channels, branches, "mean", pooled)


def block_17(c: int) -> Block:
    wide, high = (1, 7), (7, 1)
    branches = [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", c, 1), ("branch7x7_2", c, wide), ("branch7x7_3", 192, high)],
        [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, high), ("branch7x7dbl_3", c, wide),
         ("branch7x7dbl_4", c, high), ("branch7x7dbl_5", 192, wide)],
    ]  # fmt: skip
    return Block(768, branches, "mean", 192)


def block_8(channels: int, pool: str) -> Block:
    wide, high = (1, 3), (3, 1)
    branches = [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, wide), ("branch3x3_2b", 384, high)]],
        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3),
         [("branch3x3dbl_3a", 384, wide), ("branch3x3dbl_3b", 384, high)]],
    ]  # fmt: skip
    return Block(channels, branches, pool, 192)


def to_17() -> Block:
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return Block(288, [[("branch3x3", 384, 3)], double], "halve")


def to_8() -> Block:
    seven = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
             ("branch7x7x3_4", 192, 3)]  # fmt: skip
    return Block(768, [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)], seven], "halve")


class InceptionV3(nn.Module):
    """Images uint8 (B, 3, H, W) -> features float32 (B, 2048), the values after the last average pooling.

    `antialias`: resized by torch's antialiased bilinear filter, else as TensorFlow 1 did (`resize_like_tensorflow`).
    """

    def __init__(self, antialias: bool = False) -> None:
        super().__init__()
        self.antialias = antialias
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = same(32, 64, 3)
        self.MaxPool_1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.MaxPool_2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = block_35(192, 32)
        self.Mixed_5c = block_35(256, 64)
        self.Mixed_5d = block_35(288, 64)
        self.Mixed_6a = to_17()
        self.Mixed_6b = block_17(128)
        self.Mixed_6c = block_17(160)
        self.Mixed_6d = block_17(160)
        self.Mixed_6e = block_17(192)
        self.Mixed_7a = to_8()
        self.Mixed_7b = block_8(1280, "mean")
        self.Mixed_7c = block_8(2048, "max")
        self.AvgPool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        if self.antialias:
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        else:
            x = resize_like_tensorflow(x, SIZE)
        x = (x - 128) / 128
        for name, layer in self.named_children():
            if name != "fc":
                x = layer(x)
        return x.flatten(1)


def resize_like_tensorflow(x: Tensor, size: int) -> Tensor:
    """Bilinear (B, C, H, W) -> (B, C, size, size): output pixel i is at i H / size of the input, not at its centre."""

    def places(length: int) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.arange(size, dtype=x.dtype, device=x.device) * torch.tensor(length / size, dtype=torch.float32)
        low = at.long()
        return low, (low + 1).clamp_max(length - 1), at - low

    (top, bottom, down), (left, right, across) = places(x.shape[2]), places(x.shape[3])
    upper, lower = x[:, :, top], x[:, :, bottom]
    upper = upper[..., left] + (upper[..., right] - upper[..., left]) * across
    lower = lower[..., left] + (lower[..., right] - lower[..., left]) * across
    return upper + (lower - upper) * down[:, None]
