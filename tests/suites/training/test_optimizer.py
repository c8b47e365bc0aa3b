"""The optimizer: which parameters Muon has, what a step of it is, and equality with PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accel.suites.training.optimizer import Optimizer, orthogonal

HIDDEN = {"hidden.weight", "to_q.weight", "to_k.weight", "narrow.weight"}


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {"conv_in": nn.Conv2d(3, 8, 3), "hidden": nn.Conv2d(8, 16, 3), "norm": nn.GroupNorm(4, 16),
         "time_emb_proj": nn.Linear(8, 16), "to_q": nn.Linear(16, 16), "to_k": nn.Linear(16, 16),
         "narrow": nn.Linear(4, 16), "conv_out": nn.Conv2d(16, 3, 3),
         "token_embedding": nn.Embedding(9, 16), "text_projection": nn.Linear(16, 16), "proj_out_2": nn.Linear(16, 4)}
    )  # fmt: skip
    return dict(net.named_parameters())


def test_muon_has_the_hidden_matrices_only():
    assert set(Optimizer(parameters(), 1e-3, 0.0, 0.02).momentum) == HIDDEN
    assert not Optimizer(parameters(), 1e-3, 0.0).momentum


def test_orthogonal_keeps_directions_and_evens_out_sizes():
    torch.manual_seed(0)
    matrices = torch.randn(3, 16, 40)
    found = orthogonal(matrices).float()
    for matrix, made in zip(matrices, found, strict=True):
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.T @ made @ vh.T
        assert (inside.diagonal() > 0.6).all()
        assert (inside.diagonal() < 1.3).all()
        assert (inside - inside.diagonal().diag()).abs().max() < 0.1
        assert values.max() / values.min() > 2


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_step_is_orthogonal_times_the_learning_rate(factor):
    params = parameters()
    before = {name: p.detach().clone() for name, p in params.items()}
    optimizer = Optimizer(params, 1e-3, 0.0, 0.02)
    for p in params.values():
        p.grad = torch.randn_like(p)
    optimizer.step(factor)
    for name in HIDDEN:
        moved = (before[name] - params[name].detach()).flatten(1)
        scale = max(1, moved.shape[0] / moved.shape[1]) ** 0.5
        values = torch.linalg.svdvals(moved) / (0.02 * factor * scale)
        assert values.max() < 1.3, name
        assert values.median() > 0.6, name
    # AdamW's first step is its learning rate, whatever the gradient.
    moved = before["conv_in.weight"] - params["conv_in.weight"].detach()
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3 * factor), rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in params.values())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon needs torch >= 2.9")
def test_it_is_pytorch_s_muon():
    """Over several steps, within bfloat16: theirs does one matrix at a time."""
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(ours, 1e-3, 0.1, 0.02)
    views = {name: theirs[name].detach().view(len(theirs[name]), -1).requires_grad_() for name in HIDDEN}
    muon = torch.optim.Muon(views.values(), lr=0.02, weight_decay=0.1)
    for seed in range(4):
        torch.manual_seed(seed)
        for name, p in ours.items():
            p.grad = torch.randn_like(p)
            if name in HIDDEN:
                views[name].grad = p.grad.flatten(1).clone()
        optimizer.step(1.0)
        muon.step()
    for name in HIDDEN:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=0)


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
