"""The weights of f-divergences against the divergences themselves, and a head that tells two distributions apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from accel.suites.training.discriminator import (
    DIVERGENCES,
    Head,
    divergence_weights,
    passing_loss,
    seeing,
    telling_loss,
)
from accel.testing.suites import unet

F = {
    "reverse_kl": lambda r: -np.log(r),
    "forward_kl": lambda r: r * np.log(r),
    "jensen_shannon": lambda r: r * np.log(r) - (r + 1) * np.log((r + 1) / 2),
    "squared_hellinger": lambda r: 1 - np.sqrt(r),
    "jeffreys": lambda r: (r - 1) * np.log(r),
    "softened_reverse_kl": lambda r: (r + 1) * np.log(0.5 + 0.5 / r),
    "neyman": lambda r: 1 / r - 1,
    "pearson": lambda r: (r - 1) ** 2,
}
# d D_f(p || q) / d mean_q, p = N(0, 1), where it is known without an integral.
CLOSED = {"reverse_kl": 0.7, "forward_kl": 0.7 / 1.69, "jeffreys": 0.7 + 0.7 / 1.69}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_weighted_difference_of_scores_is_the_gradient_of_the_divergence(divergence):
    """-E_q h(r) (s_p - s_q) against finite differences in q's mean, p = N(0, 1)."""
    mean, std = {"neyman": (0.3, 0.6), "pearson": (0.3, 1.3)}.get(divergence, (0.7, 1.3))
    x = np.linspace(-14, 14, 40001)
    p = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def density(m):
        return np.exp(-(((x - m) / std) ** 2) / 2) / (math.sqrt(2 * math.pi) * std)

    def whole(m):
        q = density(m)
        return np.trapezoid(q * F[divergence](p / q), x)

    q = density(mean)
    h = DIVERGENCES[divergence](torch.from_numpy(p / q)).numpy()
    found = -np.trapezoid(q * h * (-x + (x - mean) / std**2), x)
    assert found == pytest.approx((whole(mean + 1e-4) - whole(mean - 1e-4)) / 2e-4, rel=1e-5)
    if divergence in CLOSED:
        assert found == pytest.approx(CLOSED[divergence], rel=1e-6)


def test_weights_have_the_mean_one_and_those_of_dmd2_are_one():
    logits = torch.tensor([-3.0, 0.0, 2.0, 50.0], dtype=torch.float64)
    for name in DIVERGENCES:
        weights = divergence_weights(logits, name)
        assert float(weights.mean()) == pytest.approx(1)
        assert weights.isfinite().all()
    assert divergence_weights(logits, "reverse_kl").tolist() == [1, 1, 1, 1]
    up = divergence_weights(logits[:3], "forward_kl")
    assert (up[1:] / up[:-1]).log().tolist() == pytest.approx([3.0, 2.0]), "r itself"


def test_a_head_learns_the_ratio_of_densities():
    """Of features N(0.5, 1) against N(-0.5, 1) the logit is x; without a difference both losses are those of a coin."""
    torch.manual_seed(0)
    net = torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(150):
        real, made = torch.randn(256, 1) + 0.5, torch.randn(256, 1) - 0.5
        optimizer.zero_grad()
        telling_loss(net(real)[:, 0], net(made)[:, 0]).backward()
        optimizer.step()
    assert float(net.weight.detach()) == pytest.approx(1, abs=0.2)
    zero = torch.zeros(4)
    assert float(telling_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(passing_loss(zero)) == pytest.approx(math.log(2))
    assert passing_loss(zero + 1) < passing_loss(zero), "to look real is what a student wants"


def test_features_are_those_of_the_middle_block_and_the_hook_is_gone():
    net, x, t = unet(0), torch.randn(2, 1, 8, 8), torch.tensor([500.0, 20.0])
    labels = {"class_labels": torch.tensor([1, 2])}
    out, features = seeing(net, x, t, labels)
    assert torch.equal(out, net(x, t, **labels, return_dict=False)[0])
    assert not net.mid_block._forward_hooks
    assert features.shape[:2] == (2, 16)
    assert Head(16)(features).shape == (2,)
