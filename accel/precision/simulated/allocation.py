"""Which layer gets how many bits: an integer programme over measured sensitivities.

    maximise sum_l score(l, b_l)   subject to   sum_l size(l) b_l <= budget x sum_l size(l)

one number of bits b_l for each layer l (MixDQ, Zhao et al. 2024, arXiv:2405.17873, sec. 3.3; they ask for a band around
the mean, which a maximum of increasing scores reaches by itself). Solved exactly by HiGHS (`scipy.optimize.milp`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from accel.errors import AccelError, ConfigError


def allocate(scores: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget: float) -> dict[str, int]:
    """The bits of each layer. scores: {layer: {bits: score, higher is better}}; sizes: weights of each layer; budget:
    mean bits of a weight. ConfigError if even the fewest bits exceed it."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    pairs = [(layer, bits) for layer, own in scores.items() for bits in sorted(own)]
    total = sum(sizes[layer] for layer in scores)
    least = sum(sizes[layer] * min(own) for layer, own in scores.items()) / total
    if least > budget * (1 + 1e-12):
        raise ConfigError(
            f"a mean of {budget:g} bits cannot be met; allowed: at least {least:g}, the fewest bits of every layer. "
            "Raise precision.budget, or allow fewer bits in precision.candidates."
        )
    values = np.array([scores[layer][bits] for layer, bits in pairs], dtype=float)
    if not np.isfinite(values).all():
        layer, bits = pairs[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise ConfigError(f"the score of {layer!r} at {bits} bits is not finite; measure it on more samples.")
    spread = np.ptp(values) or 1.0  # scaled, for the solver's tolerances
    one_each = np.array([[float(layer == own) for own, _ in pairs] for layer in scores])
    spent = np.array([[sizes[layer] * bits / total for layer, bits in pairs]])
    found = milp(
        -values / spread,
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(spent, -np.inf, budget)],
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.status != 0:
        raise AccelError(f"the bit allocation found no optimum: {found.message}.")
    return {layer: bits for (layer, bits), chosen in zip(pairs, found.x, strict=True) if chosen > 0.5}


def mean_bits(bits: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Bits of a weight, averaged over all weights."""
    return sum(sizes[layer] * b for layer, b in bits.items()) / sum(sizes[layer] for layer in bits)
