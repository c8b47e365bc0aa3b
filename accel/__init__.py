"""accel: a benchmark harness for diffusion sampling acceleration."""

from accel.core.recipe import Recipe, Run, accelerate

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "accelerate"]
