"""Real or made: a head on the frozen teacher's features of noised images, and what its ratio of densities says.

The head's logit is ln p(x_t) / q(x_t) of real over made images once it is trained to tell them apart (Goodfellow et al.
2014, arXiv:1406.2661, with the softplus loss of DMD2, Yin et al. 2024, arXiv:2405.14867). Features are those of the
middle block of the teacher, as LADD has them (Sauer et al. 2024, arXiv:2403.12015; theirs are of every block, with a
head each), so that what is learned is a few thousand numbers.

f-distill (Xu et al. 2025, arXiv:2502.15681) weighs the difference of scores by h(r) = r^2 f''(r), r = p / q, which
turns the gradient of the reverse divergence of Kullback and Leibler into that of any D_f(p || q) = E_q f(p / q):

    grad D_f = - E_q [ h(r) (s_p - s_q) dx/dtheta ]

Deviations: r is not divided by its moving average over bins of t, but h by its mean over the batch alone; logits are
cut at +-10; no penalty on the head's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from accel.errors import IncompatibleError
from accel.suites.training.task import Condition

Seen = tuple[torch.Tensor, torch.Tensor]  # a network's output, and its features (B, C, H, W)
LIMIT = 10.0  # of a logit, whose exponential is a ratio of densities

# h(r) = r^2 f''(r) of each divergence D_f(p || q) = E_q f(p / q), r = p / q, and f.
DIVERGENCES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "reverse_kl": torch.ones_like,  # -ln r
    "forward_kl": lambda r: r,  # r ln r
    "jensen_shannon": lambda r: r / (1 + r),  # r ln r - (r + 1) ln ((r + 1) / 2)
    "squared_hellinger": lambda r: r.sqrt() / 4,  # 1 - sqrt r
    "jeffreys": lambda r: 1 + r,  # (r - 1) ln r
    "softened_reverse_kl": lambda r: 1 / (1 + r),  # (r + 1) ln (1/2 + 1 / (2 r))
    "neyman": lambda r: 2 / r,  # 1 / r - 1
    "pearson": lambda r: 2 * r**2,  # (r - 1)^2
}


def divergence_weights(logits: torch.Tensor, divergence: str) -> torch.Tensor:
    """h(r) / mean h(r) (B,) of `divergence` at the ratios r = exp(logit) of a batch (B,)."""
    h = DIVERGENCES[divergence](logits.detach().clamp(-LIMIT, LIMIT).exp())
    return h / h.mean()


def telling_loss(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """What the head minimises: softplus(-D(real)) + softplus(D(made)), logits (B,); 2 ln 2 where it cannot tell."""
    return nn.functional.softplus(-real).mean() + nn.functional.softplus(made).mean()


def passing_loss(made: torch.Tensor) -> torch.Tensor:
    """What the student minimises: softplus(-D(made)), logits (B,)."""
    return nn.functional.softplus(-made).mean()


class Head(nn.Module):
    """The logit (B,) of features (B, C, H, W), H and W any."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(1, channels), nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(),
            nn.GroupNorm(1, width), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.last = nn.Linear(width, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(features).mean((2, 3)))[:, 0]


def head_for(net: nn.Module) -> Head:
    """An untrained head on the features of `net`; IncompatibleError where it has no middle block."""
    if getattr(net, "mid_block", None) is None:
        raise IncompatibleError(
            f"a discriminator looks at the middle block of the teacher, which {type(net).__name__} lacks; train "
            "without one (adversarial=0, divergence=reverse_kl), or distil a UNet."
        )
    return Head(net.config.block_out_channels[-1])


def seeing(net: nn.Module, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> Seen:
    """The output of `net` at x (B, C, H, W) and t (B,), and the features of its middle block."""
    caught: list[torch.Tensor] = []
    hook = net.mid_block.register_forward_hook(lambda module, args, out: caught.append(out))
    try:
        there = {name: value.to(x.device) for name, value in condition.items()}
        out = net(x, t.to(x.device, x.dtype), **there, return_dict=False)[0]
    finally:
        hook.remove()
    # Contiguous: attention leaves them channels-last, of which torch 2.13's backward of a group norm ends the process
    # where no gradient is asked of its input.
    return out, caught[-1].contiguous()
