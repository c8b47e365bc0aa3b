"""Samplers: what is put at the scheduler seam."""

from accel.samplers.base import Sampler
from accel.samplers.deis import DEISScheduler
from accel.samplers.diffusers_schedulers import DiffusersSampler

__all__ = ["DEISScheduler", "DiffusersSampler", "Sampler"]
