"""UniPC, a unified predictor-corrector, and DC-Solver, its dynamic compensation.

Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", NeurIPS 2023
(arXiv:2302.04867). With lambda = ln(alpha / sigma), h = lambda_{i+1} - lambda_i, z = -h and s = alpha_{i+1} for data
prediction (m = x_0) or z = h and s = sigma_{i+1} for noise prediction (m = eps), E = e^z - 1, B = z (bh1) or E (bh2):

    UniP-p  x_{i+1} = base - s B sum_{j=1..p-1} a_j (m_{i-j} - m_i) / r_j,   r_j = (lambda_{i-j} - lambda_i) / h
    UniC-p  the same sum with the a of p conditions, and - s B a_p (m_{i+1} - m_i);   r_p = 1
    base = sigma_{i+1} / sigma_i x_i - s E m_i (data) or alpha_{i+1} / alpha_i x_i - s E m_i (noise)
    sum_j a_j r_j^{k-1} = k! phi_k(z) / B,   phi_k(z) = sum_{n>=1} z^n / (n + k)!,   k = 1..p-1 or 1..p

with a = 1/2 instead for UniP-2 and UniC-1. The corrector needs no evaluation of its own: m_{i+1} is the output on the
predicted x_{i+1}, which the next predictor needs anyway. UniP-1 is DDIM, UniP-2 (bh2, data) is DPM-Solver++(2M).

Zhao et al., "DC-Solver: Improving Predictor-Corrector Diffusion Sampler via Dynamic Compensation", ECCV 2024
(arXiv:2409.03755): the corrected x_i and m_i, the output on the predicted x_i, do not match. Before step i, m_i is
replaced by the polynomial in t through (t_i, m_i), ..., (t_{i-K}, m_{i-K}), taken at q_i t_i + (1 - q_i) t_{i-1}. The
replacement stays in the history, labelled t_i. q_i = 1 changes nothing.

Deviations from diffusers' UniPC: coefficients in float64, once a grid; noise prediction may end at sigma = 0 and takes
thresholding; bh1 may end at sigma = 0. From the authors' code of DC-Solver: all K + 1 outputs are kept at any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from accel.errors import ConfigError, check_float, check_int, unknown
from accel.samplers.scheduler import BaseScheduler, Nodes, with_schedule_options

SOLVER_TYPES = ("bh1", "bh2")
FOREIGN_TYPES = ("midpoint", "heun", "logrho")  # of other schedulers' configs; diffusers' UniPC reads bh2 for them, too
MAX_ORDER = 3
MAX_DC_ORDER = 4
MAX_RATIO = 100.0  # far beyond any extrapolation that makes sense; infinity and NaN end here


def unipc_weights(
    alpha: Sequence[float], sigma: Sequence[float], lambda_: np.ndarray, end: float, data: bool, kind: str
) -> list[tuple[float, ...]]:
    """[weights of (x_i, m_i, m_{i-1}, ...) in UniP-p, those of the same and m_{i+1} in UniC-p], from i to i + 1.

        UniP-p  x_{i+1} = base - s B sum_{j=1..p-1} a_j (m_{i-j} - m_i) / r_j
        UniC-p  the same sum with the a of p conditions, and - s B a_p (m_{i+1} - m_i);   r_p = 1
        base = sigma_{i+1} / sigma_i x_i - s E m_i (data) or alpha_{i+1} / alpha_i x_i - s E m_i (noise)

    alpha, sigma: at i and i + 1; lambda_ (p,): of m_i, m_{i-1}, ...; end: lambda_{i+1}; data: m is x_0, else eps; kind:
    B(h), bh1 | bh2. To sigma = 0, where end is infinite, p is 1 and there is no UniC.
    """
    if data:
        x, own, scale, sign = sigma[1] / sigma[0], alpha[1] - alpha[0] * sigma[1] / sigma[0], alpha[1], -1
    else:
        x, own, scale, sign = alpha[1] / alpha[0], sigma[1] - sigma[0] * alpha[1] / alpha[0], sigma[1], 1
    # `own` is - s E, written without E: it is finite where lambda is not, at alpha = 0 and at sigma = 0.
    h = end - lambda_[0]
    if math.isinf(h):
        return [(float(x), float(own))]
    z, r = sign * h, (lambda_[1:] - lambda_[0]) / h
    b, unit = (z, -scale * z) if kind == "bh1" else (math.expm1(z), own)  # B and - s B
    pair = []
    for nodes in (r, np.append(r, 1.0)):
        c = unit * _solved(nodes, z, b) / nodes if len(nodes) else nodes
        pair.append((x, own - c.sum(), *c))
    return [tuple(map(float, weights)) for weights in pair]


def unipc_predict(x: torch.Tensor, outputs: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """UniP: x_{i+1} = w_x x_i + w_0 m_i + w_1 m_{i-1} + ..., all (B, ...); outputs: m_i, m_{i-1}, ..., newest first."""
    return _combined(weights, (x, *outputs))


def unipc_correct(
    x: torch.Tensor, outputs: Sequence[torch.Tensor], new: torch.Tensor, weights: Sequence[float]
) -> torch.Tensor:
    """UniC: x_{i+1} as `unipc_predict`, with one more term, w_p m_{i+1}; new: m_{i+1}, of the predicted x_{i+1}."""
    return _combined(weights, (x, *outputs, new))


def dynamic_compensation(
    outputs: Sequence[torch.Tensor], positions: Sequence[float], ratio: float | torch.Tensor
) -> torch.Tensor:
    """m_i compensated: the polynomial in t through (t_{i-k}, m_{i-k}), k = 0..K, taken at q t_i + (1 - q) t_{i-1}.

        sum_k m_{i-k} prod_{l != k} (u - u_l) / (u_k - u_l),   u = 1 - q

    outputs: m_i, m_{i-1}, ..., each (B, ...); positions (K + 1,): u_k, where t_i is 0 and t_{i-1} is 1; ratio: q, a
    number, or a tensor that broadcasts against the outputs, then differentiable. Lagrange, as in Zhao et al. 2024.
    """
    at = 1 - ratio
    weights = [math.prod((at - v) / (u - v) for v in positions if v != u) for u in positions]
    if isinstance(ratio, torch.Tensor):
        return sum(w * m for w, m in zip(weights, outputs, strict=False))
    return _combined(weights, outputs)


class DCSolverScheduler(BaseScheduler):
    """UniPC with dynamic compensation.

    `solver_order`: p, 1 to 3; `solver_type`: B(h), bh1 | bh2; `predict_x0`: data prediction, else noise prediction;
    `lower_order_final`: let p fall to 1 at the last step, at any number of steps (a last step to sigma = 0 is always of
    order 1); `disable_corrector`: indices of steps whose end is not corrected; all five as in diffusers' UniPC.
    `corrector`: false leaves the predictor alone. `dc_order`: K, 1 to 4. `compensation_ratios`: q_i, one number a step,
    the first K of them 1; None: all 1. Further options: `BaseScheduler`. Raises ConfigError for values out of range, in
    `set_timesteps` also for another number of ratios than steps, and for noise prediction from alpha = 0.

    Started in the middle (image-to-image), the order grows with the outputs that there are, and a ratio has no effect
    before there are K + 1 of them: the first K evaluations of a trajectory are never compensated.

    A search for ratios differentiates through `absorb`, `compensate` and `predict`, of which `step` consists. They are
    pure: a state, {"sample": x_i, "outputs": [m_i, m_{i-1}, ...]} or {} at the start, goes in and a new one comes out.

        state = scheduler.absorb(i, state, output, x)         # evaluation i: x_i corrected, m_i stored
        trial = scheduler.compensate(i, state, ratio)         # m_i replaced; `ratio` may require a gradient
        x = scheduler.predict(i, trial)                       # the predicted x_{i+1}
        end = scheduler.absorb(i + 1, trial, model(x), x)     # end["sample"]: the corrected x_{i+1}, not after the last
    """

    @register_to_config
    @with_schedule_options
    def __init__(
        self,
        solver_order: int = 2,
        solver_type: str = "bh2",
        predict_x0: bool = True,
        corrector: bool = True,
        disable_corrector: list[int] | None = None,
        lower_order_final: bool = True,
        dc_order: int = 2,
        compensation_ratios: list[float] | None = None,
        **options: Any,
    ) -> None:
        check_int("solver_order", solver_order, 1, MAX_ORDER)
        check_int("dc_order", dc_order, 1, MAX_DC_ORDER)
        if solver_type in FOREIGN_TYPES:
            self.register_to_config(solver_type="bh2")
        elif solver_type not in SOLVER_TYPES:
            raise unknown("solver_type", str(solver_type), SOLVER_TYPES)
        for name, value in (
            ("predict_x0", predict_x0),
            ("corrector", corrector),
            ("lower_order_final", lower_order_final),
        ):
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}; allowed: true, false.")
        self._uncorrected = _listed("disable_corrector", disable_corrector) or ()
        self._ratios = _listed("compensation_ratios", compensation_ratios)
        for step in self._uncorrected:
            check_int("a step of disable_corrector", step, 0)
        for i, ratio in enumerate(self._ratios or ()):
            check_float(f"compensation_ratios[{i}]", ratio, -MAX_RATIO, MAX_RATIO)
            if i < dc_order and ratio != 1:
                raise ConfigError(
                    f"compensation_ratios[{i}] is {ratio!r}; allowed: 1 for the first {dc_order} steps, because "
                    f"dc_order={dc_order} interpolates through {dc_order + 1} outputs."
                )
        if compensation_ratios is not None:
            self.register_to_config(compensation_ratios=list(compensation_ratios))  # not the caller's own list
        super().__init__(**options)

    # the parts of a step -------------------------------------------------------------------------------------------

    def absorb(self, index: int, state: dict[str, Any], output: torch.Tensor, sample: torch.Tensor) -> dict[str, Any]:
        """The state after the model gave `output` at t_index on the predicted `sample`, both (B, ...): x_index is
        corrected, where step `index` - 1 has a corrector, and m_index stored.
        """
        output = self.thresholded(output, sample, self.nodes.alpha[index], self.nodes.sigma[index])
        new = _combined(self._conversions[index], (sample, output))
        old, last = state.get("outputs", []), index - 1
        if old and self.corrects(last):
            order = min(self._orders[last], len(old))
            sample = unipc_correct(state["sample"], old[:order], new, self._weights_of(last, order)[1])
        kept = max(self.config.solver_order - 1, self.config.dc_order)
        return {"sample": sample, "outputs": [new, *old[:kept]]}

    def corrects(self, step: int) -> bool:
        """Whether the end of this step is corrected."""
        return self.config.corrector and step not in self._uncorrected

    def compensate(self, index: int, state: dict[str, Any], ratio: float | torch.Tensor) -> dict[str, Any]:
        """The state with m_index replaced by the compensated one: sum_k w_k(ratio) m_{index-k}, k = 0..K.

        `ratio`: a number, or a tensor that broadcasts against the sample, then differentiable. With fewer than K + 1
        outputs in the state it comes back as it is.
        """
        outputs, positions = state["outputs"], self._positions[index]
        if len(outputs) <= self.config.dc_order:
            return state
        new = dynamic_compensation(outputs, positions, ratio)
        return {"sample": state["sample"], "outputs": [new, *outputs[1:]]}

    def predict(self, index: int, state: dict[str, Any]) -> torch.Tensor:
        """The predicted x_{index+1}, (B, ...), from x_index and the outputs of the state."""
        outputs = state["outputs"]
        order = min(self._orders[index], len(outputs))
        return unipc_predict(state["sample"], outputs[:order], self._weights_of(index, order)[0])

    def _advance(self, index: int, output: torch.Tensor, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        state = self.absorb(index, self.memory, output, sample)
        if self._ratios is not None and self._ratios[index] != 1:
            state = self.compensate(index, state, self._ratios[index])
        self.memory = state
        return self.predict(index, state)

    # coefficients --------------------------------------------------------------------------------------------------

    def _plan(self, nodes: Nodes) -> np.ndarray:
        steps, config = nodes.steps, self.config
        if self._ratios is not None and len(self._ratios) != steps:
            raise ConfigError(
                f"compensation_ratios has {len(self._ratios)} ratios, but the trajectory has {steps} steps; allowed: "
                "one ratio a step, on the grid that they were searched for."
            )
        if not config.predict_x0 and nodes.alpha[0] == 0:
            raise ConfigError(
                "predict_x0 is false and the trajectory starts at alpha = 0, by which noise prediction divides; use "
                "predict_x0=true, or a grid that starts below."
            )
        remaining = np.arange(steps, 0, -1)
        orders = np.minimum(config.solver_order, remaining if config.lower_order_final else config.solver_order)
        self._orders = np.broadcast_to(orders, steps).tolist()
        if config.final_sigma == "zero":
            self._orders[-1] = 1
        levels = zip(nodes.alpha[:-1].tolist(), nodes.sigma[:-1].tolist(), strict=True)
        used = slice(0, 2) if config.predict_x0 else slice(2, 4)
        self._conversions = [tuple(map(float, self.conversion(*level)[used])) for level in levels]
        # t_i, ..., t_{i-K} with t_i as origin and t_{i-1} - t_i as unit: there t' is 1 - q, and q = 1 exactly at t_i.
        windows = [nodes.t[i - config.dc_order : i + 1][::-1] for i in range(config.dc_order, steps)]
        positions = [((w - w[0]) / (w[1] - w[0])).tolist() for w in windows]
        self._positions = [[]] * (steps - len(positions)) + positions
        self._lambda = nodes.lambda_
        self._weights: dict[tuple[int, int], Any] = {}
        for i in range(steps):
            self._weights_of(i, min(self._orders[i], i + 1))
        return nodes.t[:-1]

    def _weights_of(self, i: int, order: int) -> list[tuple[float, ...]]:
        if (i, order) not in self._weights:
            ends = slice(i, i + 2)
            lambda_ = self._lambda[i : i - order : -1] if i >= order else self._lambda[i::-1]
            self._weights[i, order] = unipc_weights(
                self.nodes.alpha[ends], self.nodes.sigma[ends], lambda_, self._lambda[i + 1],
                self.config.predict_x0, self.config.solver_type,
            )  # fmt: skip
        return self._weights[i, order]


def _solved(r: np.ndarray, z: float, b: float) -> np.ndarray:
    # a (K,) with sum_j a_j r_j^{k-1} = k! phi_k(z) / B, k = 1..K; one unknown takes the limit of small steps
    if len(r) == 1:
        return np.array([0.5])
    right = [math.factorial(k) * phi(k, z) / b for k in range(1, len(r) + 1)]
    return np.linalg.solve(np.vander(r, increasing=True).T, right)


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum_{n>=1} z^n / (n + k)!: (e^z - 1) / z - 1 for k = 1, then phi_{k+1} = phi_k / z - 1 / (k + 1)!."""
    if abs(z) < 1:  # the recursion would cancel
        return math.fsum(z**n / math.factorial(n + k) for n in range(1, 20))
    value = math.expm1(z) / z - 1
    for j in range(1, k):
        value = value / z - 1 / math.factorial(j + 1)
    return value


def _combined(weights: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    # sum of weight * tensor; a weight of 0 costs nothing and spreads no NaN, a lone 1 is the tensor itself
    terms = [(w, t) for w, t in zip(weights, tensors, strict=False) if w]
    (first, tensor), *rest = terms
    if first == 1 and not rest:
        return tensor
    result = first * tensor
    for weight, tensor in rest:
        result.add_(tensor, alpha=weight)
    return result


def _listed(name: str, values: Any) -> tuple[Any, ...] | None:
    # A copy: nobody's later change of the caller's list reaches the scheduler.
    if values is None:
        return None
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise ConfigError(f"{name} is {values!r}; allowed: a list of numbers, or none.")
    return tuple(values)
