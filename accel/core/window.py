"""The part of a trajectory within which a method acts."""

from __future__ import annotations

from dataclasses import dataclass

from accel.errors import ConfigError, check_float


@dataclass(frozen=True)
class Window:
    """Steps k of N with begin <= k / N < end, of the method on axis `axis` (for messages)."""

    begin: float
    end: float
    axis: str

    def __post_init__(self) -> None:
        for name in ("begin", "end"):
            check_float(f"{self.axis}.{name}", getattr(self, name), 0.0, 1.0)
        if self.begin >= self.end:
            raise ConfigError(
                f"{self.axis}.begin is {self.begin:g} and {self.axis}.end {self.end:g}; allowed: begin < end."
            )

    def holds(self, step: int, num_steps: int) -> bool:
        return self.begin * num_steps <= step < self.end * num_steps

    @property
    def label(self) -> str:
        """Short, for tables; empty for the whole trajectory."""
        return "" if (self.begin, self.end) == (0, 1) else f"[{self.begin:g},{self.end:g}]"
