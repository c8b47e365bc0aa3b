"""The optimizer of the embedded suites' training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from accel.errors import ConfigError

OUTER = ("conv_in", "conv_out", "time_emb")  # of diffusers' UNets


class Optimizer:
    """AdamW; with `muon_lr`, Muon for the matrices of the hidden layers, as its author says to use it.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon): a
    convolution's kernel is the matrix of its output channels by all the rest; biases, norms, embeddings, the first and
    the last layer stay with AdamW. Learning rates are peaks; `step` takes a factor.
    """

    def __init__(
        self, params: Mapping[str, nn.Parameter], lr: float, weight_decay: float, muon_lr: float = 0.0
    ) -> None:
        self.params = dict(params)
        hidden = [name for name, p in params.items() if p.ndim > 1 and not any(o in name for o in OUTER)]
        if muon_lr and not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"this training needs torch >= 2.9 for its Muon optimizer; found {torch.__version__}.")
        # Each in the same memory as its parameter.
        self.matrices = {
            name: params[name].detach().view(len(params[name]), -1).requires_grad_() for name in hidden if muon_lr
        }
        rest = [p for name, p in params.items() if name not in self.matrices]
        self.adamw = torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay)
        self.peaks = [(self.adamw, lr)]
        if self.matrices:
            self.muon = torch.optim.Muon(self.matrices.values(), lr=muon_lr, weight_decay=weight_decay)
            self.peaks.append((self.muon, muon_lr))

    def step(self, factor: float) -> None:
        """One step at `factor` times the peak learning rates; gradients are cleared."""
        for name, matrix in self.matrices.items():
            matrix.grad = self.params[name].grad.flatten(1)
        for optimizer, peak in self.peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        for p in self.params.values():
            p.grad = None

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """State of parameter `name` by the optimizer's own keys; empty before its first step, filled on resume."""
        if name in self.matrices:
            return self.muon.state[self.matrices[name]]
        return self.adamw.state[self.params[name]]
