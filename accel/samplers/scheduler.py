"""What accel's own schedulers share: grid, noise levels, prediction types, thresholding, position and state.

A scheduler of accel is a diffusers scheduler: `pipe.scheduler = X.from_config(pipe.scheduler.config)`. Samples are
x_t = alpha x_0 + sigma eps. A subclass computes its coefficients once a grid, in float64 on the CPU (`_plan`), and
combines tensors with them in `_advance`; all of its state that changes while sampling is in `memory`, which
`set_timesteps` empties.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput

from accel.core.devices import send
from accel.errors import AccelError, ConfigError, check_float, check_int, unknown
from accel.samplers.configs import compatible, flow_match_entries, understood
from accel.samplers.grids import Grid, checked, grid_of
from accel.samplers.noise_schedule import flow_entries, is_flow, noise_schedule


@dataclass(frozen=True)
class Nodes:
    """Where the steps of a trajectory begin and end: arrays (steps + 1,) in float64, the last entry is the end."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    rho: np.ndarray  # sigma / alpha, finite: clipped at a flow's beginning

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    @property
    def lambda_(self) -> np.ndarray:
        """ln(alpha / sigma), infinite at sigma = 0."""
        with np.errstate(divide="ignore"):
            return -np.log(self.rho)


# Prediction type -> (p, q, r, s) at x = alpha x_0 + sigma eps: x_0 = p x + q output, eps = r x + s output.
CONVERSIONS: Mapping[str, Callable[[float, float], tuple[float, float, float, float]]] = {
    "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha, 0.0, 1.0),
    "sample": lambda alpha, sigma: (0.0, 1.0, 1 / sigma, -alpha / sigma),
    "v_prediction": lambda alpha, sigma: (alpha, -sigma, sigma, alpha),
    "flow_prediction": lambda alpha, sigma: (1.0, -sigma, 1.0, alpha),  # eps - x_0 on alpha = 1 - sigma
}


def convert(kind: str, alpha: float, sigma: float) -> tuple[float, float, float, float]:
    """(p, q, r, s): x_0 = p x + q output and eps = r x + s output of a model with prediction type `kind`.

    ConfigError for another one.
    """
    if kind not in CONVERSIONS:
        raise unknown("prediction_type", str(kind), CONVERSIONS)
    return CONVERSIONS[kind](alpha, sigma)


def with_schedule_options(init):
    """Show the options of `BaseScheduler.__init__` in a subclass's signature, where diffusers looks for them."""
    own = inspect.signature(init)
    common = [p for n, p in inspect.signature(BaseScheduler.__init__).parameters.items() if n != "self"]
    positional = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        return init(self, *args, **kwargs)

    wrapped.__signature__ = own.replace(parameters=positional + common)
    return wrapped


class BaseScheduler(SchedulerMixin, ConfigMixin):
    """Base of accel's schedulers.

    `num_train_timesteps` ... `rescale_betas_zero_snr`, `thresholding` ... `sample_max_value`, `timestep_spacing`,
    `steps_offset`, `use_karras_sigmas`, `use_exponential_sigmas`, `use_flow_sigmas`, `flow_shift`,
    `use_dynamic_shifting` and `time_shift_type` mean what they mean in diffusers. `prediction_type`: epsilon, sample,
    v_prediction, or flow_prediction (v = eps - x_0 on alpha = 1 - sigma). `grid`: a grid's name, a list of timesteps,
    or a spec of `accel.samplers.grids` (None: what the diffusers options say). `final_sigma`: `zero` ends at sigma = 0,
    `min` at the schedule's smallest noise level. Raises ConfigError for values out of range.
    """

    _compatibles: ClassVar = [e.name for e in KarrasDiffusionSchedulers if compatible(e.name)]
    ignore_for_config: ClassVar = []
    order = 1
    stochastic: ClassVar[bool] = False  # whether steps draw noise

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A saved pipeline names the scheduler's module, in which diffusers looks for the mixin to know how to load it.
        vars(sys.modules[cls.__module__]).setdefault("SchedulerMixin", SchedulerMixin)

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        grid: str | list[float] | dict[str, Any] | None = None,
        final_sigma: str = "zero",
    ) -> None:
        if prediction_type not in CONVERSIONS:
            raise unknown("prediction_type", str(prediction_type), CONVERSIONS)
        if final_sigma not in ("zero", "min"):
            raise unknown("final_sigma", str(final_sigma), ("zero", "min"))
        self.schedule = noise_schedule(self.config)
        self.register_to_config(**flow_match_entries(self.config))
        if self.schedule.flow and prediction_type == "v_prediction":
            raise ConfigError(
                "prediction_type is 'v_prediction' with use_flow_sigmas=true; the velocity of a flow is "
                "'flow_prediction', v_prediction belongs to a schedule of betas."
            )
        if thresholding:
            check_float("dynamic_thresholding_ratio", dynamic_thresholding_ratio, 0.0, 1.0)
            check_float("sample_max_value", sample_max_value, 1.0)
        check_float("flow_shift", flow_shift, 1e-6)
        self.grid = grid_of(self._default_grid() if grid is None else grid)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.schedule.total - 1, -1, -1)
        self._visited = self.timesteps.numpy()
        self.sigmas = torch.from_numpy(self._sigmas(self._visited)).float()
        self.memory: dict[str, Any] = {}
        self._step_index = self._begin_index = None

    # what a subclass says ------------------------------------------------------------------------------------------

    def _plan(self, nodes: Nodes) -> np.ndarray:
        """Compute the coefficients for `nodes`; returns the timestep of every model evaluation, in order."""
        return nodes.t[:-1]

    def _advance(self, index: int, output: torch.Tensor, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        """The sample after evaluation `index` gave `output`; both in float32 or float64."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to step")

    # diffusers' interface ------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs=False, **kwargs):
        """As ConfigMixin's; the config of a FlowMatch scheduler makes this one a scheduler of flows.

        Raises IncompatibleError for a config whose noise schedule or grid this scheduler does not have.
        """
        if isinstance(config, Mapping):
            kwargs = understood(config, kwargs) | kwargs
        kept: dict[str, Any] = {}
        if isinstance(config, Mapping) and "shift" in config and is_flow(config):
            kwargs = {k: v for k, v in flow_entries(config).items() if k not in config} | kwargs
            # What it says beyond this has no meaning here, and diffusers would warn of each entry. But pipelines read
            # some (base_shift, max_image_seq_len), and so does the next scheduler that is made from this one's config.
            kept = {k: v for k, v in config.items() if k not in cls._get_init_keys(cls) and k[0] != "_"}
            config = {k: v for k, v in config.items() if k not in kept}
        made = super().from_config(config, return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        scheduler.register_to_config(**kept | flow_match_entries(scheduler.config))
        return made

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this evaluation instead of the first one (image-to-image)."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a new trajectory of `num_inference_steps` steps, or one over `timesteps` (fractions allowed).

        `sigmas` of [0, 1] are for flows, like `mu`, the exponent of dynamic shifting; pipelines always pass some, so a
        grid that this scheduler was given wins, and they say the number of steps alone. Everything left from an earlier
        trajectory is dropped. Raises ConfigError for a grid that does not fit the schedule or too few steps.
        """
        self.num_inference_steps = None  # until all is well
        times = self._times(num_inference_steps, timesteps, sigmas, mu)
        end = 0.0 if self.config.final_sigma == "zero" else self.schedule.t_min
        if len(times) and self.config.final_sigma == "min" and times[-1] <= end:
            raise ConfigError(
                f"the grid's last timestep {times[-1]:g} is where final_sigma='min' ends; choose final_sigma='zero', "
                f"or leave timestep {end:g} out."
            )
        if self.schedule.flow and self.config.prediction_type == "epsilon" and times[0] == self.schedule.total:
            raise ConfigError(
                f"the grid begins at timestep {times[0]:g}, where alpha = 0 and a prediction of eps says nothing about "
                "x_0; begin below it, or use prediction_type 'sample' or 'flow_prediction'."
            )
        self.nodes = self._nodes(times, end)
        stages = np.asarray(self._plan(self.nodes))
        whole = np.array_equal(stages, np.round(stages)) and not self.schedule.flow
        fraction = np.float32 if torch.device(device or "cpu").type == "mps" else np.float64  # MPS has no float64
        self.timesteps = send(stages.astype(np.int64 if whole else fraction), device)
        self._visited = stages
        ends = self.nodes.sigma if self.schedule.flow else self.nodes.rho
        self.sigmas = torch.from_numpy(np.append(self._sigmas(stages), ends[-1])).float()
        self.memory = {}
        self._step_index = self._begin_index = None
        self.num_inference_steps = len(times)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """One evaluation further: `model_output` of the model at `timestep` on `sample`, all (B, ...)."""
        if self.num_inference_steps is None:
            raise AccelError("step() was called before set_timesteps(); call scheduler.set_timesteps(steps) first.")
        if self._step_index is None:
            self._step_index = self._find(timestep) if self._begin_index is None else self._begin_index
        if self._step_index >= len(self.timesteps):
            raise AccelError(
                f"step() was called more than {len(self.timesteps)} times; call set_timesteps() to begin again."
            )
        dtype = sample.dtype
        if dtype not in (torch.float32, torch.float64):
            sample, model_output = sample.float(), model_output.float()
        elif model_output.dtype != dtype:
            model_output = model_output.to(dtype)
        result = self._advance(self._step_index, model_output, sample, generator).to(dtype)
        self._step_index += 1
        if return_dict:
            return SchedulerOutput(prev_sample=result)
        # Where diffusers' schedulers have the prediction of x_0, which PixArt takes when there is one step.
        whole = len(self.timesteps) == 1 and self.config.final_sigma == "zero"
        return (result, result) if whole else (result,)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The model's input is the sample itself."""
        return sample

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha x_0 + sigma eps at `timesteps` (B,) or a number."""
        alpha, sigma = self.schedule.alpha_sigma(_float64(timesteps))
        shape = (-1, *[1] * (original.ndim - 1))
        alpha, sigma = (torch.from_numpy(np.atleast_1d(v)).to(original).reshape(shape) for v in (alpha, sigma))
        return alpha * original + sigma * noise

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`add_noise` under the name and argument order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.schedule.total

    def state_dict(self) -> dict[str, Any]:
        """Position and memory in the middle of a trajectory, for `load_state_dict` on the same grid."""
        return {"step_index": self._step_index, "begin_index": self._begin_index, "memory": copy.deepcopy(self.memory)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; `set_timesteps` must have been called with the same arguments."""
        self._step_index, self._begin_index = state["step_index"], state["begin_index"]
        self.memory = copy.deepcopy(state["memory"])

    # helpers for subclasses ----------------------------------------------------------------------------------------

    def conversion(self, alpha: float, sigma: float) -> tuple[float, float, float, float]:
        """(p, q, r, s): x_0 = p x + q output, eps = r x + s output, for an output that went through `thresholded`."""
        return convert("sample" if self.config.thresholding else self.config.prediction_type, alpha, sigma)

    def thresholded(self, output: torch.Tensor, sample: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """x_0 by dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487) if configured; else `output` itself."""
        if not self.config.thresholding:
            return output
        p, q, _, _ = convert(self.config.prediction_type, alpha, sigma)
        x0 = p * sample + q * output
        limit = torch.quantile(x0.abs().flatten(1), self.config.dynamic_thresholding_ratio, dim=1)
        limit = limit.clamp(1, self.config.sample_max_value).reshape(-1, *[1] * (x0.ndim - 1))
        return torch.clamp(x0, -limit, limit) / limit

    @property
    def _own_grid(self) -> bool:
        # Whether it was told where to evaluate, beyond the spacing that every config has.
        config = self.config
        return config.grid is not None or config.use_karras_sigmas or config.use_exponential_sigmas

    def _default_grid(self) -> str:
        config = self.config
        if config.use_karras_sigmas:
            return "karras"
        return "exponential" if config.use_exponential_sigmas else config.timestep_spacing

    def _times(self, steps, timesteps, sigmas, mu) -> np.ndarray:
        given = [n for n, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None]
        if len(given) == 2:
            raise ConfigError("both timesteps and sigmas are given; allowed: one of them.")
        if self.config.use_dynamic_shifting and mu is None:
            raise ConfigError("mu is missing; with use_dynamic_shifting=true set_timesteps needs it.")
        if timesteps is not None:
            times = _float64(timesteps)
            return checked(times, self.schedule, len(times), "`timesteps`")
        if sigmas is not None and not self.schedule.flow:
            raise ConfigError("sigmas are for flow models; pass timesteps.")
        if sigmas is not None and self._own_grid:
            steps = len(sigmas)
        elif sigmas is not None:
            times = self._shift(np.asarray(sigmas, np.float64) * self.schedule.total, mu)
            return checked(times, self.schedule, len(times), "`sigmas`")
        check_int("num_inference_steps", steps, 1)
        times = self.grid.times(self.schedule, steps, self.config.final_sigma == "zero", self.config.steps_offset)
        named = type(self.grid) is Grid and self.grid.name not in ("karras", "exponential")
        return self._shift(times, mu) if named else times

    def _shift(self, times: np.ndarray, mu: float | None) -> np.ndarray:
        # Timestep shifting of flow models (Esser et al. 2024, arXiv:2403.03206, eq. 23).
        if not self.schedule.flow:
            return times
        s = times / self.schedule.total
        if self.config.use_dynamic_shifting:
            shift = np.exp(mu) if self.config.time_shift_type == "exponential" else mu
        else:
            shift = self.config.flow_shift
        return shift * s / (1 + (shift - 1) * s) * self.schedule.total

    def _nodes(self, times: np.ndarray, end: float) -> Nodes:
        alpha, sigma = self.schedule.alpha_sigma(times)
        rho = self.schedule.rho(times)
        if self.schedule.flow:
            # Infinite at t = T: any finite value above the next one keeps the nodes of a polynomial apart.
            rho = np.divide(sigma, alpha, out=rho, where=alpha > 0)
            rho[0] = max(rho[0], 2 * rho[1]) if len(rho) > 1 and alpha[0] == 0 else rho[0]
        if self.config.final_sigma == "zero":
            last = (0.0, 1.0, 0.0, 0.0)
        else:
            last = (end, *self.schedule.alpha_sigma(end), self.schedule.rho(end))
        return Nodes(*(np.append(a, b) for a, b in zip((times, alpha, sigma, rho), last, strict=True)))

    def _sigmas(self, times: np.ndarray) -> np.ndarray:
        return self.schedule.alpha_sigma(times)[1] if self.schedule.flow else self.schedule.rho(times)

    def _find(self, timestep: int | float | torch.Tensor) -> int:
        distance = np.abs(self._visited - float(timestep))
        # The last stage of a step may be at the timestep where the next step begins: begin there.
        at = np.flatnonzero(distance == distance.min()).tolist()
        if not at or distance[at[0]] > 0.5:
            known = ", ".join(f"{t:g}" for t in self._visited)
            raise ConfigError(f"timestep {float(timestep):g} is not in this trajectory: [{known}].")
        return next((i for i in at if i % self.order == 0), at[0])


def _float64(values: Any) -> np.ndarray:
    # Numbers in a list would come out as float32; a device without float64 must be left first.
    tensor = values.cpu().double() if isinstance(values, torch.Tensor) else torch.as_tensor(values, dtype=torch.float64)
    return tensor.numpy()
