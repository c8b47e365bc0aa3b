"""The optimizer of the embedded suites' training: AdamW, and Muon for the matrices of the hidden layers.

Muon: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon).
The momentum M of a weight matrix is replaced by the nearest orthogonal matrix, found by five steps of an odd polynomial
(Newton-Schulz, in bfloat16):

    X <- a X + (b A + c A^2) X,   A = X X^T,   X_0 = M / |M|,   (a, b, c) = (3.4445, -4.7750, 2.0315)

and the step is lr max(1, rows / columns)^(1/2) X. As its author says, a convolution is the matrix of its output
channels by all the rest; biases, norms, embeddings, the first and the last layer stay with AdamW. torch.optim.Muon does
the same one matrix after the other; here matrices of one shape are done together, which takes a quarter of the time on
a CPU, where small matrices abound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import nn

# First and last layers, and those that tell the network time and class, of diffusers' UNets and transformers and CLIP.
OUTER = ("conv_in", "conv_out", "embed", "time_emb", "projection", "norm1.", "proj_out_", "reader")
MOMENTUM, POLYNOMIAL, STEPS = 0.95, (3.4445, -4.7750, 2.0315), 5


class Optimizer:
    """AdamW at `lr`; with `muon_lr`, Muon for the hidden matrices. Learning rates are peaks: `step` takes a factor."""

    def __init__(
        self, params: Mapping[str, nn.Parameter], lr: float, weight_decay: float, muon_lr: float = 0.0,
        beta2: float = 0.999, beta1: float = 0.9,
    ) -> None:  # fmt: skip
        self.params, self.lr, self.muon_lr, self.weight_decay = dict(params), lr, muon_lr, weight_decay
        shapes: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, p in params.items():
            if muon_lr and p.ndim > 1 and not any(o in name for o in OUTER):
                shapes[tuple(_wide(p.detach()).shape)].append(name)
        self.groups = list(shapes.values())
        self.momentum: dict[str, torch.Tensor] = {}
        self.stacks = []
        for names in self.groups:
            stack = torch.stack([torch.zeros_like(_wide(params[name].detach())) for name in names])
            self.stacks.append(stack)
            self.momentum |= dict(zip(names, stack, strict=True))  # in the same memory
        rest = [p for name, p in params.items() if name not in self.momentum]
        self.adamw = torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2))

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step at `factor` times the peak learning rates; gradients are cleared."""
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * factor
        self.adamw.step()
        for names, stack in zip(self.groups, self.stacks, strict=True):
            gradients = torch.stack([_wide(self.params[name].grad) for name in names])
            stack.mul_(MOMENTUM).add_(gradients)
            for name, update in zip(names, orthogonal(gradients.add_(stack, alpha=MOMENTUM)), strict=True):
                self._move(self.params[name], update, self.muon_lr * factor)
        for p in self.params.values():
            p.grad = None

    def _move(self, p: nn.Parameter, update: torch.Tensor, lr: float) -> None:
        rows, columns = p.flatten(1).shape
        update = (update.mT if rows > columns else update).reshape(p.shape).to(p.dtype)
        p.mul_(1 - lr * self.weight_decay).add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """What must be kept of parameter `name` to go on later."""
        if name in self.momentum:
            return {"momentum": self.momentum[name]}
        return self.adamw.state[self.params[name]]

    def load(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""
        if name in self.momentum:
            self.momentum[name].copy_(state["momentum"])
        else:  # AdamW counts its steps on the CPU
            p = self.params[name]
            self.adamw.state[p].update({k: v.to(p.device) if v.ndim else v for k, v in state.items()})


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly orthogonal matrices (K, rows, columns) with the directions of `matrices`, rows <= columns: singular values
    become 0.7 to 1.2, but for those that are a thousandth of the largest and less."""
    a, b, c = POLYNOMIAL
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _wide(p: torch.Tensor) -> torch.Tensor:
    matrix = p.flatten(1)
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
