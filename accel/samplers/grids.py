"""Timestep grids: where along the noise schedule a sampler evaluates the model.

A grid gives the `steps` evaluation times t_0 > t_1 > ... of a schedule; the sampler's last step then ends at sigma = 0
or at the schedule's smallest noise level, so no noise level appears twice. `Grid` names the grids that diffusers'
schedulers have as options; the other classes reach a diffusers scheduler as explicit timesteps, where it takes them.

`trailing`, `linspace`, `leading`: Lin et al. 2024 (arXiv:2305.08891), Table 2, rounded to integers. `karras`: Karras et
al. 2022 (arXiv:2206.00364), eq. 5, a power law in sigma / alpha with rho = 7; `exponential`: uniform in log(sigma /
alpha), that is in log-SNR. Both lead from the largest noise level to the smallest.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from accel.errors import ConfigError, IncompatibleError, check_float, unknown
from accel.samplers.noise_schedule import NoiseSchedule

_OPTIONS = {
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}
# Options that would win over the timestep spacing, or over explicit timesteps.
_OVERRIDING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
GRID_OPTIONS = ("grid", "timestep_spacing", *_OVERRIDING)  # of schedulers: what a grid has in their place
KARRAS_RHO = 7.0


@dataclass(frozen=True)
class Grid:
    """A grid by its name; `trailing` is what every suite uses unless told otherwise."""

    name: str = "trailing"
    EPOCH = 2
    keyed = False  # whether it may belong to certain weights, see `check`

    def __post_init__(self) -> None:
        if type(self) is Grid and self.name not in _OPTIONS:
            raise unknown("grid", self.name, _OPTIONS)

    def times(self, schedule: NoiseSchedule, steps: int, to_zero: bool = True, offset: int = 0) -> np.ndarray:
        """Evaluation times (steps,), float64, strictly decreasing; the end of the last step is not among them.

        `to_zero`: the trajectory ends at sigma = 0, else at `schedule.t_min`. `offset`: of `leading`, as diffusers'
        `steps_offset`. ConfigError when the schedule has no room for so many steps.
        """
        times = _TIMES[self.name](schedule, steps, to_zero, offset)
        return checked(times, schedule, steps, f"grid {self.name!r}")

    def options(self, scheduler_class: type) -> dict[str, Any]:
        """Scheduler config entries for this grid; IncompatibleError when the class has no such option."""
        accepted = inspect.signature(scheduler_class.__init__).parameters
        if "grid" in accepted:
            return {"grid": self.spec()}
        options = _OPTIONS[self.name]
        if missing := [k for k in options if k not in accepted]:
            fits = [n for n, o in _OPTIONS.items() if all(k in accepted for k in o)]
            raise IncompatibleError(
                f"{scheduler_class.__name__} has no {missing[0]}, so grid {self.name!r} cannot be used with it; "
                f"it takes: {', '.join(fits) or 'its own grid only (grid=none)'}."
            )
        if self.name in ("karras", "exponential") and "timestep_spacing" in accepted:
            # Euler and Heun take the ends of the power law from the spacing: `trailing` would leave out the low sigmas.
            options = options | {"timestep_spacing": "linspace"}
        return _none_overriding(accepted) | options

    def explicit(self, scheduler_class: type, schedule: NoiseSchedule, steps: int) -> list[int] | None:
        """Timesteps to hand to the class's `set_timesteps`, or None when its options say it all."""
        return None

    def check(self, weights: Mapping[str, str]) -> None:
        """Raise ConfigError if it was made for other `weights`: digests of the networks that run, by name."""

    def spec(self) -> dict[str, Any]:
        """JSON that `grid_of` turns into this grid again."""
        return {"type": type(self).__name__} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class _Explicit(Grid):
    # Grids that diffusers has no option for.
    def options(self, scheduler_class: type) -> dict[str, Any]:
        if "grid" in inspect.signature(scheduler_class.__init__).parameters:
            return {"grid": self.spec()}
        if "timesteps" not in inspect.signature(scheduler_class.set_timesteps).parameters:
            raise IncompatibleError(
                f"{scheduler_class.__name__}.set_timesteps takes no timesteps, so grid {self.name!r} cannot be used "
                "with it; use one of accel's own samplers, DPM-Solver++, Euler or Heun, or a grid that diffusers has: "
                f"{', '.join(_OPTIONS)}."
            )
        return _none_overriding(inspect.signature(scheduler_class.__init__).parameters)

    def explicit(self, scheduler_class: type, schedule: NoiseSchedule, steps: int) -> list[int] | None:
        if "grid" in inspect.signature(scheduler_class.__init__).parameters:
            return None
        rounded = np.round(self.times(schedule, steps)).astype(int)
        if (np.diff(rounded) >= 0).any():
            raise ConfigError(
                f"grid {self.name!r} with {steps} steps has timesteps less than 1 apart, and "
                f"{scheduler_class.__name__} takes integers; use fewer steps, or one of accel's own samplers, which "
                "take fractions."
            )
        return rounded.tolist()


@dataclass(frozen=True)
class PowerGrid(_Explicit):
    """Uniform in u = t^(1/kappa) or (sigma/alpha)^(1/kappa), `space` = `t` or `rho`.

    In t (DEIS's grid; kappa = 1 uniform, 2 quadratic): t_i = (t_max^(1/k) + i/N (t_min^(1/k) - t_max^(1/k)))^k for i =
    0..N-1; i = N, at t_min, is where the last step ends. In rho the same formula in sigma / alpha; kappa = 7 is
    `karras`. Source: Zhang & Chen 2023 (arXiv:2204.13902), eq. 25.
    """

    space: str = "t"
    kappa: float = 2.0
    name: str = ""

    def __post_init__(self) -> None:
        if self.space not in ("t", "rho"):
            raise unknown("space of a power grid", str(self.space), ("t", "rho"))
        check_float("kappa", self.kappa, 0.1, 1000.0)
        object.__setattr__(self, "name", self.name or f"{self.space}^{self.kappa:g}")

    def times(self, schedule, steps, to_zero=True, offset=0) -> np.ndarray:
        if self.space == "rho":
            times = power_rho(schedule, steps, self.kappa, to_zero)
        else:
            ends = np.array([schedule.t_max, schedule.t_min]) ** (1 / self.kappa)
            times = (ends[0] + np.arange(steps) / steps * (ends[1] - ends[0])) ** self.kappa
            times[0] = schedule.t_max
        return checked(times, schedule, steps, f"grid {self.name!r}")


@dataclass(frozen=True)
class ExplicitGrid(_Explicit):
    """The given timesteps, whole or fractional, strictly decreasing; `sampler.steps` must be their number."""

    timesteps: tuple[float, ...] = ()
    name: str = "explicit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", _numbers("timesteps", self.timesteps))

    def times(self, schedule, steps, to_zero=True, offset=0) -> np.ndarray:
        return checked(np.array(self.timesteps, np.float64), schedule, steps, f"grid {self.name!r}")


@dataclass(frozen=True)
class TableGrid(_Explicit):
    """A published table of timesteps, stretched to any number of steps: log(sigma / alpha) interpolated linearly.

    Align Your Steps (Sabour et al. 2024, arXiv:2404.14507) gives 10-step tables and this rule for other lengths.
    """

    table: tuple[float, ...] = ()
    name: str = "table"
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", _numbers("table", self.table))

    def times(self, schedule, steps, to_zero=True, offset=0) -> np.ndarray:
        table = checked(np.array(self.table, np.float64), schedule, len(self.table), f"the table of grid {self.name!r}")
        if steps == len(table):
            return table
        at = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
        log_rho = np.interp(at, np.linspace(0, 1, len(table)), np.log(schedule.rho(table)))
        times = schedule.timestep(np.exp(log_rho))
        times[0] = table[0]
        return checked(times, schedule, steps, f"grid {self.name!r}")


@dataclass(frozen=True)
class SearchedGrid(_Explicit):
    """Timesteps found by a search: a JSON file with `timesteps`, and `schedule`, the noise schedule they are for.

    A file that says which `weights` it is for is refused for others, unless `transfer` is set.
    """

    path: str = ""
    name: str = "searched"
    keyed = True
    transfer: bool = field(default=False, metadata={"later": True})  # accel.core.denoiser.LATER

    def check(self, weights: Mapping[str, str]) -> None:
        made_for = self._content().get("weights")
        if made_for and not self.transfer and made_for != dict(weights):
            found, here = (", ".join(f"{k} {v[:12]}" for k, v in w.items()) for w in (made_for, weights))
            raise ConfigError(
                f"{self.path} was searched for other weights ({found}; this recipe runs {here}); search again for this "
                "model, or set grid.transfer=true to try it here all the same."
            )

    def times(self, schedule, steps, to_zero=True, offset=0) -> np.ndarray:
        found = self._content()
        times, made_for = found["timesteps"], found["schedule"]
        if made_for != schedule.identity:
            raise ConfigError(
                f"{self.path} was searched for another noise schedule ({made_for}, this model has "
                f"{schedule.identity}); search again for this model, or use grid=explicit with the timesteps that you "
                "want."
            )
        return checked(np.array(_numbers("timesteps", times)), schedule, steps, f"grid {self.path!r}")

    def _content(self) -> Mapping[str, Any]:
        if not self.path:
            raise ConfigError("grid.path is missing; grid=searched needs the JSON file that a search wrote.")
        try:
            found = json.loads(Path(self.path).read_text())
            return {"timesteps": found["timesteps"], "schedule": found["schedule"], "weights": found.get("weights")}
        except OSError as error:
            raise ConfigError(f"cannot read the searched grid {self.path!r}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path} is not a searched grid: {error!r}; it needs `timesteps` and `schedule`."
            ) from error


_TYPES = {c.__name__: c for c in (Grid, PowerGrid, ExplicitGrid, TableGrid, SearchedGrid)}


def grid_of(spec: str | Mapping[str, Any] | list[float] | Grid) -> Grid:
    """The grid of a scheduler's config entry: a name, a list of timesteps, or what `Grid.spec` returned."""
    if isinstance(spec, Grid):
        return spec
    if isinstance(spec, str):
        return Grid(spec)
    if isinstance(spec, (list, tuple)):
        return ExplicitGrid(timesteps=tuple(spec))
    if not isinstance(spec, Mapping):
        raise ConfigError(f"grid is {spec!r}; allowed: a grid's name, a list of timesteps, or a mapping with `type`.")
    values = dict(spec)
    kind = values.pop("type", "Grid")
    if kind not in _TYPES:
        raise unknown("type of grid", str(kind), _TYPES)
    allowed = [f.name for f in fields(_TYPES[kind])]
    if extra := [k for k in values if k not in allowed]:
        raise unknown(f"setting of {kind}", str(extra[0]), allowed)
    return _TYPES[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def power_rho(schedule: NoiseSchedule, steps: int, kappa: float | None, to_zero: bool) -> np.ndarray:
    """Uniform in rho^(1/kappa), rho = sigma / alpha (kappa None: in log rho), from t_max to t_min (steps,).

    When the trajectory ends at sigma = 0 the smallest rho is the last evaluation; else it is where the last step ends.
    """
    ends = schedule.rho(np.array([schedule.t_max, schedule.t_min]))
    at = np.arange(steps) / max(1, steps - 1 if to_zero else steps)
    if kappa is None:
        rho = np.exp(np.log(ends[0]) + at * np.log(ends[1] / ends[0]))
    else:
        root = ends ** (1 / kappa)
        rho = (root[0] + at * (root[1] - root[0])) ** kappa
    times = schedule.timestep(rho)
    times[0] = schedule.t_max  # exactly: a flow's rho is clipped there
    if to_zero and steps > 1:
        times[-1] = schedule.t_min
    return times


def checked(times: np.ndarray, schedule: NoiseSchedule, steps: int, what: str) -> np.ndarray:
    """`times` if they are `steps` strictly decreasing timesteps of the schedule, else ConfigError."""
    if not len(times):
        raise ConfigError(f"{what} has no timesteps; allowed: at least one.")
    if len(times) != steps:
        raise ConfigError(f"{what} has {len(times)} timesteps, but {steps} steps are wanted; set steps={len(times)}.")
    if not np.isfinite(times).all() or times.max() > schedule.t_max or times.min() < schedule.t_min:
        raise ConfigError(
            f"{what} has timesteps from {times.max():g} to {times.min():g}; allowed: {schedule.t_max:g} down to "
            f"{schedule.t_min:g}."
        )
    if (bad := np.flatnonzero(np.diff(times) >= 0)).size:
        i = int(bad[0])
        raise ConfigError(
            f"{what} with {steps} steps is not strictly decreasing: timestep {times[i]:g} is followed by "
            f"{times[i + 1]:g}; allowed: each smaller than the one before (fewer steps, if they crowd together)."
        )
    return times


# Uniform in t (Lin et al. 2024, Table 2). Written as diffusers writes them: which way a half is rounded hangs on the
# last digit. A flow's t reaches T itself, where alpha = 0, and needs no rounding; of betas the last timestep is T - 1.


def trailing(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """t_i = T - i T / N for i = 0..N-1, rounded, less 1 for betas."""
    length = _length(schedule, steps)
    times = np.arange(length, 0, -length / steps)[:steps]
    return times if schedule.flow else np.minimum(np.round(times) - 1, schedule.t_max)


def linspace(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """N equal steps from t_max to t_min, the last of which ends at t_min; rounded for betas."""
    _length(schedule, steps)
    times = np.linspace(schedule.t_min, schedule.t_max, steps + 1)[:0:-1]
    return times if schedule.flow else np.minimum(np.round(times), schedule.t_max)


def leading(schedule: NoiseSchedule, steps: int, offset: int) -> np.ndarray:
    """t_i = (N - i) floor(T / (N + 1)) + offset for i = 0..N-1."""
    return np.arange(steps, 0, -1) * float(_length(schedule, steps) // (steps + 1)) + offset


def _length(schedule: NoiseSchedule, steps: int) -> float:
    length = schedule.t_max if schedule.flow else schedule.t_max + 1
    if steps > length:
        raise ConfigError(f"{steps} steps are more than the {length:g} of the noise schedule; allowed: 1..{length:g}.")
    return length


_TIMES: Mapping[str, Callable[[NoiseSchedule, int, bool, int], np.ndarray]] = {
    "trailing": lambda schedule, steps, to_zero, offset: trailing(schedule, steps),
    "linspace": lambda schedule, steps, to_zero, offset: linspace(schedule, steps),
    "leading": lambda schedule, steps, to_zero, offset: leading(schedule, steps, offset),
    "karras": lambda schedule, steps, to_zero, offset: power_rho(schedule, steps, KARRAS_RHO, to_zero),
    "exponential": lambda schedule, steps, to_zero, offset: power_rho(schedule, steps, None, to_zero),
}


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(v if isinstance(v, int) else float(v) for v in values)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers:
        raise ConfigError(f"{name} is {values!r}; allowed: a list of numbers, largest first.")
    return numbers


def _none_overriding(accepted: Mapping[str, Any]) -> dict[str, bool]:
    return {k: False for k in _OVERRIDING if k in accepted}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
