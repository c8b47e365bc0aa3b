"""The optimizer: which parameters Muon has, what a step of it is, and that it moves the network itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accel.errors import ConfigError
from accel.suites.optimizer import Optimizer

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon needs torch >= 2.9")


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {"conv_in": nn.Conv2d(3, 8, 3), "hidden": nn.Conv2d(8, 16, 3), "norm": nn.GroupNorm(4, 16),
         "time_emb_proj": nn.Linear(8, 16), "to_q": nn.Linear(16, 16), "conv_out": nn.Conv2d(16, 3, 3)}
    )  # fmt: skip
    return dict(net.named_parameters())


@needs_muon
def test_muon_has_the_hidden_matrices_only():
    assert set(Optimizer(parameters(), 1e-3, 0.0, 0.02).matrices) == {"hidden.weight", "to_q.weight"}
    assert not Optimizer(parameters(), 1e-3, 0.0).matrices


@needs_muon
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_the_first_step_of_muon_is_nearly_orthogonal(factor):
    """Singular values of the step: those of the gradient, all made about 1 (0.7 to 1.2), times lr."""
    params = parameters()
    before = {name: p.detach().clone() for name, p in params.items()}
    optimizer = Optimizer(params, 1e-3, 0.0, 0.02)
    for p in params.values():
        p.grad = torch.randn_like(p)
    optimizer.step(factor)
    for name in ("hidden.weight", "to_q.weight"):
        moved = (before[name] - params[name].detach()).flatten(1)
        values = torch.linalg.svdvals(moved) / (0.02 * factor)
        assert values.max() < 1.3, name
        assert values.median() > 0.6, name
    # AdamW's first step is its learning rate, whatever the gradient.
    moved = before["conv_in.weight"] - params["conv_in.weight"].detach()
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3 * factor), rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in params.values())


def test_without_muon_it_is_adamw():
    """Bit for bit PyTorch's own."""
    ours, theirs = parameters(), parameters()
    optimizer, plain = Optimizer(ours, 1e-2, 0.1), torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1)
    for seed in range(3):
        torch.manual_seed(seed)
        for a, b in zip(ours.values(), theirs.values(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step(0.5)
        plain.param_groups[0]["lr"] = 0.5e-2
        plain.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_older_torch_is_told_what_it_needs(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"needs torch >= 2\.9"):
        Optimizer(parameters(), 1e-3, 0.0, 0.02)
