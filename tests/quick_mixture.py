"""A suite for tests of what becomes of a study, not of its numbers."""

from __future__ import annotations

from accel.core.recipe import Recipe
from accel.core.seeds import generators
from accel.samplers import DiffusersSampler
from accel.samplers.ode import initial_latents
from accel.suites.mixture import MixtureSuite


class Quick(MixtureSuite):
    """The mixture, with an exact solution that takes no time. STEPS: what its converged sampler is called by."""

    STEPS = 20

    def converged(self, guidance):
        return Recipe(DiffusersSampler("EulerDiscreteScheduler", self.STEPS, "euler"))

    def solve(self, pipe, recipe, seed, a, b):
        return initial_latents(pipe, {"batch_size": b - a, "generator": generators(seed, a, b)}).float() / 100
