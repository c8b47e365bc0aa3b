"""The equation of each guidance method, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from accel.core.guidance import classifier_free
from accel.guidance.adaptive import DECISIONS, similarity, unguided
from accel.guidance.autoguidance import autoguidance
from accel.guidance.cfg import in_interval
from accel.guidance.cfgpp import cfgpp
from accel.guidance.classifier import JACOBIANS, elucd, sine_weight
from accel.guidance.gfcg import against, gfcg
from accel.guidance.linear_ag import estimating, linear_ag


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    """(B, K) in float64."""
    return torch.tensor(values, dtype=torch.float64)


U, C = rows((1.0, -2.0), (0.0, 0.5)), rows((3.0, 1.0), (0.0, -0.5))


def test_classifier_free_guidance_runs_through_both_predictions():
    assert torch.equal(classifier_free(U, C, 0.0), U)
    assert torch.equal(classifier_free(U, C, 1.0), C)
    assert torch.equal(classifier_free(U, C, 2.5), rows((6.0, 5.5), (0.0, -2.0)))


def test_the_interval_is_open_below_and_closed_above():
    assert [in_interval(sigma, 0.5, 2.0) for sigma in (0.4, 0.5, 0.6, 2.0, 2.1)] == [False, False, True, True, False]


def test_similarity_is_the_cosine_of_whole_samples():
    u = torch.zeros(2, 1, 1, 2, dtype=torch.float64)
    u[:, ..., 0] = 2.0
    c = torch.tensor([[3.0, 4.0], [-1.0, 0.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    torch.testing.assert_close(similarity(u, c), torch.tensor([0.6, -1.0], dtype=torch.float64))
    gamma = torch.tensor([0.2, 0.6])
    assert DECISIONS["per_sample"](gamma).tolist() == gamma.tolist()
    assert DECISIONS["batch"](gamma).tolist() == pytest.approx([0.4, 0.4])


def test_rows_without_guidance_are_conditional_at_any_scale():
    u = U.clone()
    found = classifier_free(unguided(u, C, [1]), C, 7.0)
    assert torch.equal(found[1], C[1])
    assert torch.equal(found[0], classifier_free(U, C, 7.0)[0])
    assert torch.equal(u, U), "the argument is left alone"


def test_autoguidance_begins_at_the_worse_network():
    bad, good = rows((1.0, 1.0)), rows((2.0, -1.0))
    assert torch.equal(autoguidance(bad, good, 1.0), good)
    assert torch.equal(autoguidance(bad, good, 3.0), rows((4.0, -5.0)))


def test_cfgpp_renoises_by_eps_u_less_eps_g():
    """eps = a x + b output at b = -0.5 and any a: eps_u - eps_g = -0.5 (u - g)."""
    guided, renoise = cfgpp(U, C, 0.25, -0.5)
    assert torch.equal(guided, rows((1.5, -1.25), (0.0, 0.25)))
    assert torch.equal(renoise, rows((0.25, 0.375), (0.0, -0.125)))
    assert not cfgpp(U, C, 0.0, -0.5)[1].any(), "no guidance, no renoising"


def test_elucd_moves_x0_along_the_gradient():
    assert [sine_weight(t, 1000, 0.3) for t in (0, 500, 1000)] == pytest.approx([1.0, 1.3, 1.0])
    alpha, sigma = 0.6, 0.8
    assert JACOBIANS["prior"](alpha, sigma) == pytest.approx(0.64)
    assert JACOBIANS["prior"](0.5, 0.5) == pytest.approx(0.5), "of a flow: alpha^2 + sigma^2 is not 1"
    assert JACOBIANS["one"](alpha, sigma) == pytest.approx(0.64 / 0.6)
    torch.testing.assert_close(elucd(rows((1.0, -2.0)), 2.0, 1.3, 0.5), rows((1.3, -2.6)))


def test_gfcg_leaves_the_sure_alone_and_guides_the_others_from_their_strongest_rival():
    logits = rows((math.log(0.5), math.log(0.2), math.log(0.3)), (math.log(0.05), math.log(0.9), math.log(0.05)))
    weight, reference = against(logits, torch.tensor([0, 1]), strength=3.0, confident=0.9)
    torch.testing.assert_close(weight[0], torch.tensor(1.5, dtype=torch.float64))
    assert reference[0] == 2
    assert against(logits, torch.tensor([0, 1]), 3.0, 0.8)[0].tolist() == pytest.approx([1.5, 0.0])
    cond, other = torch.ones(2, 1, 1, 2, dtype=torch.float64), torch.zeros(2, 1, 1, 2, dtype=torch.float64)
    found = gfcg(cond, other, torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert found.flatten(1).tolist() == [[0.5, 0.5], [2.0, 2.0]]


def test_linear_ag_weighs_what_is_known():
    assert list(estimating(5)) == [1, 3]
    assert list(estimating(1)) == []
    found = linear_ag((0.5, -1.0, 2.0), (rows((1.0, 2.0)), rows((0.0, 1.0)), rows((3.0, -1.0))))
    assert torch.equal(found, rows((6.5, -2.0)))
