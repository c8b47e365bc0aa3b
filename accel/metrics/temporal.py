"""How much a video moves: the temporal difference of its frames, one number a video.

    d = mean over frames t, channels and pixels of |x_(t+1) - x_t|

of pixels on the scale -1..1, as distances are: 0 for a still picture, 2 at most. It is no quality and has no better: a
cache that freezes features makes calmer videos, flicker makes livelier ones, so it is read against the baseline's at
the same seeds. One frame has none: 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.errors import ConfigError


def temporal_difference(videos: Tensor) -> Tensor:
    """d of each video (B,), float64; uint8 (B, F, C, H, W). One at a time: differences take eight times the memory."""
    if videos.dtype != torch.uint8 or videos.ndim != 5:
        raise ConfigError(f"videos are {videos.dtype} {tuple(videos.shape)}; needed: uint8 (B, F, C, H, W).")
    if videos.shape[1] < 2:
        return torch.zeros(len(videos), dtype=torch.float64)
    return torch.stack([video.double().diff(dim=0).abs().mean().cpu() for video in videos]) / 127.5


def frame_means(values: Tensor, videos: int) -> Tensor:
    """The mean over its frames (B,) of each of B `videos`, of values of all their frames (B F,), video by video."""
    return values.unflatten(0, (videos, -1)).mean(1)
